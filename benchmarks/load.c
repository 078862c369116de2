/* The load generator: one process, one core, cheaper than any server it drives.
 *
 *     load MODE ADDRESS [--connections N] [--size BYTES] [--depth N] [--seconds S] [--operations N] [--pids P,P]
 *
 * MODE      tcp, unix, tls   echo over N open connections, `depth` messages in flight on each
 *           broadcast        a message on one of N open connections, and all of them get it: one operation
 *           connect          N clients that connect, echo one message, half-close, wait for the server's close
 *           udp              echo over N sockets, one datagram in flight on each
 *           burst            `depth` datagrams at once from N sockets, then silence; what is not answered is lost
 *           idle             N connections, opened after 500 others that warm the server up; the server's RSS before
 *                            and after them
 * ADDRESS   host:port, or a path for unix
 *
 * It stops after `seconds`, or after `operations` when given, waits for the answers that are due and prints one line
 * of JSON. The CPU time of the processes in `pids` is read by this process at the very start and end of the measured
 * window (Linux gives every process a clock that others may read, exact to the nanosecond and including threads that
 * have ended), so opening and closing the connections is not in the figure.
 *
 * Built by benchmarks/load.py; -DWITH_TLS needs OpenSSL's headers. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
static SSL_CTX *tls;
#else
typedef void SSL;
#endif

enum { CHUNK = 256 << 10, EVENTS = 256, MAX_PIDS = 64, IDLE_WARMUP = 500 };
static const uint64_t SECOND = 1000000000, GRACE = 5 * SECOND, DATAGRAM_TIMEOUT = SECOND / 2, QUIET = SECOND / 5;

typedef struct {
    int fd;
    SSL *ssl;
    size_t unsent, sent, received; /* bytes: accepted but not written; written and read modulo the message size */
    int in_flight, started, finished, watching_output, half_closed;
    uint32_t sequence;   /* datagrams: the one we wait for */
    uint64_t *starts;    /* ring of `depth` start times, oldest at `finished` modulo depth */
} Connection;

static const char *mode, *host;
static char address[256];
static int port, connections = 1, depth = 1, pid_count, epoll;
static size_t size = 64;
static double seconds = 1;
static uint64_t operations_wanted;
static pid_t pids[MAX_PIDS];
static Connection *all;
static char *pattern, *buffer;
static uint64_t issued, completed, lost, deadline;
static int stopping;

static void fail(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, errno ? strerror(errno) : "not possible");
    exit(1);
}

static uint64_t read_clock(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t)) fail("clock_gettime (has the server died?)");
    return t.tv_sec * SECOND + t.tv_nsec;
}

static uint64_t now(void) { return read_clock(CLOCK_MONOTONIC); }

static uint64_t server_cpu(void) {
    uint64_t total = 0;
    for (int i = 0; i < pid_count; i++) {
        clockid_t clock;
        if ((errno = clock_getcpuclockid(pids[i], &clock))) fail("the server's CPU clock");
        total += read_clock(clock);
    }
    return total;
}

/* ---- latencies: a histogram with 64 steps per power of two, so a percentile is right to 1.6 % ---- */

static uint64_t histogram[64 * 64], latencies;

static void record(uint64_t ns) {
    int high = ns < 128 ? 0 : 57 - __builtin_clzll(ns);
    histogram[(high << 6) + (ns >> high)]++; /* ns >> high is in 64..127 where high > 0 */
    latencies++;
}

static double percentile(double share) {
    uint64_t seen = 0, wanted = latencies * share;
    for (int i = 0; i < 64 * 64; i++) {
        seen += histogram[i];
        if (seen > wanted) {
            int high = i < 128 ? 0 : (i >> 6) - 1;
            return (double)((uint64_t)(i - (high << 6)) << high) / 1000;
        }
    }
    return 0;
}

/* ---- the measured window ---- */

static uint64_t window_start, server_start, load_start;

static void begin(void) {
    window_start = now();
    deadline = window_start + seconds * SECOND;
    load_start = read_clock(CLOCK_PROCESS_CPUTIME_ID);
    server_start = server_cpu();
}

static int may_issue(uint64_t at) {
    if (operations_wanted ? issued >= operations_wanted : at >= deadline) stopping = 1;
    return !stopping;
}

static void report(void) {
    uint64_t cpu = server_cpu() - server_start, wall = now() - window_start;
    uint64_t load = read_clock(CLOCK_PROCESS_CPUTIME_ID) - load_start;
    printf("{\"operations\": %lu, \"lost\": %lu, \"seconds\": %.9f, \"server_cpu\": %.9f, \"load_cpu\": %.9f, "
           "\"p50_us\": %.2f, \"p99_us\": %.2f}\n",
           completed, lost, wall / 1e9, cpu / 1e9, load / 1e9, percentile(.5), percentile(.99));
}

static void watch(Connection *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll, operation, c->fd, &event)) fail("epoll_ctl");
}

/* ---- sockets ---- */

static int open_socket(int type) {
    static unsigned turn;
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, four_mebibytes = 4 << 20;
    int unix_socket = !port;
    int fd = socket(unix_socket ? AF_UNIX : AF_INET, type | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("socket (is `ulimit -n` high enough?)");
    if (unix_socket) {
        snprintf(path.sun_path, sizeof path.sun_path, "%.107s", address);
        if (connect(fd, (void *)&path, sizeof path)) fail(address);
        return fd;
    }
    if (type == SOCK_DGRAM) { /* answers must not be lost on our side */
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &four_mebibytes, sizeof four_mebibytes);
    } else { /* many source addresses, since each has no more than 28,000 ports and a closed one rests for a minute */
        struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001 + turn++ % 200)};
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (strncmp(host, "127.", 4) == 0 && bind(fd, (void *)&from, sizeof from)) fail("bind");
    }
    if (inet_pton(AF_INET, host, &to.sin_addr) != 1) fail(host);
    if (connect(fd, (void *)&to, sizeof to)) fail("connect");
    return fd;
}

static void set_blocking(int fd, int blocking) {
    if (fcntl(fd, F_SETFL, blocking ? 0 : O_NONBLOCK)) fail("fcntl");
}

static ssize_t read_some(Connection *c, void *into, size_t room) {
#ifdef WITH_TLS
    if (c->ssl) {
        int n = SSL_read(c->ssl, into, room);
        if (n > 0) return n;
        errno = SSL_get_error(c->ssl, n) == SSL_ERROR_WANT_READ ? EAGAIN : EPROTO;
        return -1;
    }
#endif
    return recv(c->fd, into, room, 0);
}

static ssize_t write_some(Connection *c, const void *from, size_t length) {
#ifdef WITH_TLS
    if (c->ssl) {
        int n = SSL_write(c->ssl, from, length);
        if (n > 0) return n;
        errno = SSL_get_error(c->ssl, n) == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
        return -1;
    }
#endif
    return send(c->fd, from, length, MSG_NOSIGNAL);
}

static void secure(Connection *c) {
    if (strcmp(mode, "tls")) return;
#ifdef WITH_TLS
    if (!tls) {
        tls = SSL_CTX_new(TLS_client_method()); /* no verification: the certificate was made for this run */
        SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    }
    c->ssl = SSL_new(tls);
    SSL_set_fd(c->ssl, c->fd);
    errno = 0;
    if (SSL_connect(c->ssl) != 1) fail("the TLS handshake");
#else
    c->ssl = NULL;
    errno = 0;
    fail("this load generator was built without TLS");
#endif
}

/* What comes back must be what was sent; for large messages only its length is looked at, to stay cheap. */
static void check(Connection *c, size_t length) {
    if (size > 16384 || !memcmp(buffer, pattern + c->received % size, length)) return;
    errno = 0;
    fail("the echo differs from what was sent");
}

/* Opens a connection and sees one line echoed on it, blocking: every server is past its first message. */
static void open_connection(Connection *c) {
    size_t length = size < 16384 ? size : 64; /* fits the socket's buffers, so that neither side can block */
    c->fd = open_socket(SOCK_STREAM);
    secure(c);
    c->received = size - length;
    if (write_some(c, pattern + c->received, length) != (ssize_t)length) fail("send on a new connection");
    while (c->received < size) {
        ssize_t n = read_some(c, buffer, size - c->received);
        if (n <= 0) fail("receive on a new connection");
        check(c, n);
        c->received += n;
    }
    c->received = 0;
}

static void open_connections(void) {
    for (int i = 0; i < connections; i++) {
        open_connection(&all[i]);
        set_blocking(all[i].fd, 0);
        watch(&all[i], EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void close_connections(void) {
    for (int i = 0; i < connections; i++) close(all[i].fd);
}

#include "load_datagrams.h"
#include "load_streams.h"

/* ---- memory of idle connections ---- */

static double server_memory(void) {
    double total = 0;
    for (int i = 0; i < pid_count; i++) {
        char path[64], line[256];
        unsigned long kibibytes;
        snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pids[i]); /* exact; statm lags by some pages per core */
        FILE *file = fopen(path, "r");
        if (!file) fail(path);
        while (fgets(line, sizeof line, file))
            if (sscanf(line, "Rss: %lu kB", &kibibytes) == 1) total += kibibytes * 1024.0;
        fclose(file);
    }
    return total;
}

static void run_idle(void) {
    int warmup = connections < IDLE_WARMUP ? connections : IDLE_WARMUP;
    Connection *first = calloc(warmup, sizeof *first);
    for (int i = 0; i < warmup; i++) open_connection(&first[i]);
    usleep(200000); /* what the server does after its last answer is not watched, only given time */
    double before = server_memory();
    uint64_t start = now();
    for (int i = 0; i < connections; i++) open_connection(&all[i]);
    double elapsed = (now() - start) / 1e9;
    usleep(200000);
    double after = server_memory();
    printf("{\"operations\": %d, \"lost\": 0, \"seconds\": %.9f, \"rss_before\": %.0f, \"rss_after\": %.0f, "
           "\"bytes_per_connection\": %.1f}\n",
           connections, elapsed, before, after, (after - before) / connections);
    for (int i = 0; i < warmup; i++) close(first[i].fd);
    free(first);
}

/* ---- the command line ---- */

static void read_pids(char *list) {
    for (char *pid = strtok(list, ","); pid && pid_count < MAX_PIDS; pid = strtok(NULL, ",")) pids[pid_count++] = atoi(pid);
}

static void read_arguments(int count, char **arguments) {
    static const struct option options[] = {
        {"connections", 1, 0, 'c'}, {"size", 1, 0, 's'}, {"depth", 1, 0, 'd'}, {"seconds", 1, 0, 't'},
        {"operations", 1, 0, 'n'}, {"pids", 1, 0, 'p'}, {0}};
    for (int option; (option = getopt_long(count, arguments, "", options, NULL)) != -1;) {
        if (option == 'c') connections = atoi(optarg);
        else if (option == 's') size = strtoul(optarg, NULL, 10);
        else if (option == 'd') depth = atoi(optarg);
        else if (option == 't') seconds = atof(optarg);
        else if (option == 'n') operations_wanted = strtoull(optarg, NULL, 10);
        else if (option == 'p') read_pids(optarg);
        else exit(2);
    }
    if (optind != count - 2 || connections < 1 || depth < 1 || size < 4) {
        fprintf(stderr, "usage: load tcp|unix|tls|broadcast|connect|udp|burst|idle ADDRESS [options]; see the head of load.c\n");
        exit(2);
    }
    mode = arguments[optind];
    snprintf(address, sizeof address, "%s", arguments[optind + 1]);
    char *colon = strrchr(address, ':');
    if (address[0] == '/' || !colon) return;
    *colon = 0, host = address, port = atoi(colon + 1);
}

/* Messages are lines, so that line-based handlers echo them too; the pattern repeats so that any part of the stream
 * can be sent from, and compared with, one address. */
static void make_pattern(void) {
    size_t length = CHUNK + 2 * size;
    pattern = malloc(length), buffer = malloc(CHUNK);
    for (size_t i = 0; i < length; i++) pattern[i] = i % size == size - 1 ? '\n' : 'a' + i % size % 26;
}

int main(int count, char **arguments) {
    read_arguments(count, arguments);
    make_pattern();
    all = calloc(connections, sizeof *all);
    for (int i = 0; i < connections; i++) all[i].starts = calloc(depth, sizeof *all[i].starts);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!strcmp(mode, "tcp") || !strcmp(mode, "unix") || !strcmp(mode, "tls")) run_streams();
    else if (!strcmp(mode, "broadcast")) run_broadcasts();
    else if (!strcmp(mode, "connect")) run_clients();
    else if (!strcmp(mode, "udp")) run_datagrams();
    else if (!strcmp(mode, "burst")) run_bursts();
    else if (!strcmp(mode, "idle")) run_idle();
    else errno = 0, fail(mode);
    if (strcmp(mode, "connect")) close_connections();
    return 0;
}
