/* Part of load.c: what goes over connections. */

/* ---- echo over open connections ---- */

static void flush(Connection *c) {
    while (c->unsent) {
        size_t piece = c->unsent < CHUNK ? c->unsent : CHUNK;
        ssize_t n = write_some(c, pattern + c->sent, piece);
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) fail("send");
        c->unsent -= n;
        c->sent = (c->sent + n) % size;
    }
    if (!c->unsent != !c->watching_output) {
        c->watching_output = c->unsent > 0;
        watch(c, EPOLL_CTL_MOD, EPOLLIN | (c->watching_output ? EPOLLOUT : 0));
    }
}

static void issue(Connection *c, int messages, uint64_t at) {
    for (; messages && may_issue(at); messages--) {
        c->starts[c->started++ % depth] = at;
        c->in_flight++, issued++;
        c->unsent += size;
    }
    flush(c);
}

static void finish(Connection *c, uint64_t at) {
    record(at - c->starts[c->finished++ % depth]);
    c->in_flight--, completed++;
}

static void on_echo(Connection *c) {
    int done = 0;
    ssize_t n;
    do {
        n = read_some(c, buffer, CHUNK);
        if (n == 0 || (n < 0 && errno != EAGAIN)) fail("the server ended a connection in the middle of an echo");
        if (n < 0) break;
        check(c, n);
        for (c->received += n; c->received >= size; c->received -= size) done++;
    } while (c->ssl); /* OpenSSL may hold more; a plain socket tells through epoll */
    uint64_t at = now();
    for (int i = 0; i < done; i++) finish(c, at);
    if (done) issue(c, done, at);
}

static void run_streams(void) {
    struct epoll_event events[EVENTS];
    uint64_t end = 0;
    open_connections();
    begin();
    for (int i = 0; i < connections; i++) issue(&all[i], depth, now());
    while (completed < issued && (!end || now() < end)) {
        int n = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < n; i++) {
            Connection *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) flush(c);
            if (events[i].events & ~EPOLLOUT) on_echo(c);
        }
        if (!end && (stopping || now() >= deadline)) end = now() + GRACE;
    }
    lost = issued - completed;
    report();
}

/* ---- one sends, and all receive ---- */

/* What is there of a broadcast; whether that is all of it. */
static int on_broadcast(Connection *c) {
    ssize_t n = read_some(c, buffer, size - c->received);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) fail("the server ended a connection in the middle of a broadcast");
    check(c, n);
    c->received = (c->received + n) % size;
    return !c->received;
}

static void run_broadcasts(void) {
    struct epoll_event events[EVENTS];
    open_connections();
    for (size_t i = 0; i < CHUNK + 2 * size; i += size) pattern[i] = '!'; /* anything else is echoed */
    begin();
    for (uint64_t at = now(); may_issue(at); at = now()) {
        issued++;
        if (write_some(&all[0], pattern, size) != (ssize_t)size) fail("send");
        for (int missing = connections; missing;) {
            int n = epoll_wait(epoll, events, EVENTS, GRACE / (SECOND / 1000));
            if (n <= 0) fail("not all have got a broadcast");
            for (int i = 0; i < n; i++) missing -= on_broadcast(events[i].data.ptr);
        }
        record(now() - at), completed++;
    }
    report();
}

/* ---- connect, echo, close ---- */

static void start_client(Connection *c, uint64_t at) {
    if (!may_issue(at)) return;
    issued++;
    c->starts[0] = at;
    c->received = c->half_closed = 0;
    c->fd = open_socket(SOCK_STREAM); /* blocks only if the backlog is full, which is larger than our number */
    if (send(c->fd, pattern, size, MSG_NOSIGNAL) != (ssize_t)size) fail("send");
    set_blocking(c->fd, 0);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void on_client(Connection *c) {
    ssize_t n = recv(c->fd, buffer, CHUNK, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0) {
        check(c, n);
        c->received += n;
        if (c->received >= size && !c->half_closed) c->half_closed = !shutdown(c->fd, SHUT_WR);
        return;
    }
    uint64_t at = now();
    if (c->received == size) record(at - c->starts[0]), completed++;
    else lost++;
    close(c->fd);
    start_client(c, at);
}

static void run_clients(void) {
    struct epoll_event events[EVENTS];
    uint64_t end = 0;
    begin();
    for (int i = 0; i < connections; i++) start_client(&all[i], now());
    while (completed + lost < issued && (!end || now() < end)) {
        int n = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < n; i++) on_client(events[i].data.ptr);
        if (!end && now() >= deadline && !operations_wanted) stopping = 1;
        if (!end && stopping) end = now() + GRACE;
    }
    lost = issued - completed;
    report();
}
