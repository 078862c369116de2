/* Part of load.c: what goes over UDP. */

/* ---- datagrams ---- */

static void send_datagram(Connection *c, uint64_t at) {
    if (!may_issue(at)) return;
    c->sequence++;
    memcpy(pattern, &c->sequence, sizeof c->sequence);
    c->starts[0] = at;
    c->in_flight = 1;
    issued++;
    if (send(c->fd, pattern, size, 0) != (ssize_t)size) fail("send");
}

static void on_datagram(Connection *c) {
    ssize_t n = recv(c->fd, buffer, CHUNK, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n != (ssize_t)size) fail("a datagram of another length came back");
    if (!c->in_flight || memcmp(buffer, &c->sequence, sizeof c->sequence)) return; /* late: counted as lost before */
    uint64_t at = now();
    record(at - c->starts[0]);
    c->in_flight = 0;
    completed++;
    send_datagram(c, at);
}

static void give_up_on_late_ones(uint64_t at) {
    for (int i = 0; i < connections; i++) {
        if (!all[i].in_flight || at - all[i].starts[0] < DATAGRAM_TIMEOUT) continue;
        all[i].in_flight = 0;
        lost++;
        send_datagram(&all[i], at);
    }
}

static void open_datagram_sockets(void) {
    for (int i = 0; i < connections; i++) {
        all[i].fd = open_socket(SOCK_DGRAM);
        watch(&all[i], EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void run_datagrams(void) {
    struct epoll_event events[EVENTS];
    open_datagram_sockets();
    begin();
    uint64_t looked = now();
    for (int i = 0; i < connections; i++) send_datagram(&all[i], now());
    while (completed + lost < issued) {
        int n = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < n; i++) on_datagram(events[i].data.ptr);
        if (now() - looked > SECOND / 10) give_up_on_late_ones(looked = now());
    }
    report();
}

static void send_burst(struct mmsghdr *messages) {
    for (int i = 0; i < connections; i++) {
        int share = depth / connections + (i < depth % connections);
        for (int done = 0; done < share;) {
            int n = sendmmsg(all[i].fd, messages, share - done, 0);
            if (n < 0) fail("sendmmsg");
            done += n;
        }
    }
}

/* Answers to one burst: until all are here or none has come for a while. */
static int collect_burst(uint64_t start) {
    struct epoll_event events[EVENTS];
    uint64_t last = now();
    int answers = 0;
    while (answers < depth && now() - last < QUIET) {
        int n = epoll_wait(epoll, events, EVENTS, 20);
        for (int i = 0; i < n; i++) {
            Connection *c = events[i].data.ptr;
            while (recv(c->fd, buffer, CHUNK, MSG_DONTWAIT) == (ssize_t)size) {
                record((last = now()) - start);
                answers++;
            }
        }
    }
    return answers;
}

static void run_bursts(void) {
    struct iovec data = {.iov_base = pattern, .iov_len = size};
    struct mmsghdr *messages = calloc(depth, sizeof *messages);
    for (int i = 0; i < depth; i++) messages[i].msg_hdr.msg_iov = &data, messages[i].msg_hdr.msg_iovlen = 1;
    open_datagram_sockets();
    begin();
    for (uint64_t at = now(); may_issue(at); at = now()) {
        send_burst(messages);
        int answers = collect_burst(at);
        issued += depth, completed += answers, lost += depth - answers;
    }
    report();
    free(messages);
}
