/* The limit: an echo server in C over plain epoll, one thread, one read and one write per message.
 * Kind broadcast: what begins with `!` goes to all connections, in one write for each.
 *
 *     epoll --kind tcp|udp|unix|broadcast [--path PATH]
 *
 * The same contract as the Python servers: it prints one line of JSON with its address and serves until SIGTERM. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { CHUNK = 256 << 10, EVENTS = 256, MAX_FD = 65536 };

/* Bytes that the peer has not taken yet; while there are any, nothing more is read from it. */
typedef struct { char *data; size_t from, length; } Unsent;

static Unsent unsent[MAX_FD];
static char buffer[CHUNK];
static int epoll, broadcasts, highest;
static char is_open[MAX_FD];

static void fail(const char *what) { perror(what), exit(1); }

static void watch(int operation, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll, operation, fd, &event)) fail("epoll_ctl");
}

static void drop(int fd) {
    free(unsent[fd].data);
    memset(&unsent[fd], 0, sizeof unsent[fd]);
    is_open[fd] = 0;
    close(fd);
}

/* Send what is in the buffer; who has not taken the last yet is too slow for broadcasts. */
static void answer(int fd, ssize_t n) {
    if (unsent[fd].length) { drop(fd); return; }
    ssize_t sent = send(fd, buffer, n, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) sent = 0;
    if (sent < 0) { drop(fd); return; }
    if (sent == n) return;
    unsent[fd] = (Unsent){malloc(n - sent), 0, n - sent};
    memcpy(unsent[fd].data, buffer + sent, n - sent);
    watch(EPOLL_CTL_MOD, fd, EPOLLOUT);
}

static void on_readable(int fd) {
    ssize_t n = recv(fd, buffer, CHUNK, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) { drop(fd); return; }
    if (!broadcasts || *buffer != '!') { answer(fd, n); return; }
    for (int each = 0; each <= highest; each++)
        if (is_open[each]) answer(each, n);
}

static void on_writable(int fd) {
    Unsent *left = &unsent[fd];
    ssize_t sent = send(fd, left->data + left->from, left->length, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) return;
    if (sent < 0) { drop(fd); return; }
    left->from += sent, left->length -= sent;
    if (left->length) return;
    free(left->data);
    memset(left, 0, sizeof *left);
    watch(EPOLL_CTL_MOD, fd, EPOLLIN);
}

static void on_acceptable(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        if (fd >= MAX_FD) { close(fd); continue; }
        is_open[fd] = 1;
        if (fd > highest) highest = fd;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN);
    }
}

static void on_datagrams(int fd) {
    struct sockaddr_storage from;
    for (int i = 0; i < 32; i++) {
        socklen_t length = sizeof from;
        ssize_t n = recvfrom(fd, buffer, CHUNK, 0, (void *)&from, &length);
        if (n < 0) return;
        sendto(fd, buffer, n, 0, (void *)&from, length);
    }
}

static int listen_on(const char *kind, const char *path) {
    int udp = !strcmp(kind, "udp"), one = 1, mebibyte = 1 << 20;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    socklen_t length = sizeof any;
    int fd = socket(path ? AF_UNIX : AF_INET, (udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (path) strncpy(local.sun_path, path, sizeof local.sun_path - 1);
    if (bind(fd, path ? (void *)&local : (void *)&any, path ? sizeof local : sizeof any)) fail("bind");
    if (udp) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &mebibyte, sizeof mebibyte);
    else if (listen(fd, 4096)) fail("listen");
    if (path) { printf("{\"address\": \"%s\"}\n", path); return fd; }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    getsockname(fd, (void *)&any, &length);
    printf("{\"address\": \"127.0.0.1:%d\"}\n", ntohs(any.sin_port));
    return fd;
}

int main(int count, char **arguments) {
    const char *kind = "tcp", *path = NULL;
    for (int i = 1; i + 1 < count; i += 2) {
        if (!strcmp(arguments[i], "--kind")) kind = arguments[i + 1];
        if (!strcmp(arguments[i], "--path")) path = arguments[i + 1];
    }
    epoll = epoll_create1(EPOLL_CLOEXEC);
    broadcasts = !strcmp(kind, "broadcast");
    int listener = listen_on(kind, strcmp(kind, "unix") ? NULL : path), udp = !strcmp(kind, "udp");
    fflush(stdout);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);
    for (struct epoll_event events[EVENTS];;) {
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) udp ? on_datagrams(fd) : on_acceptable(fd);
            else if (events[i].events & EPOLLOUT) on_writable(fd);
            else on_readable(fd);
        }
    }
}
