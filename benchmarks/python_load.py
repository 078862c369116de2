"""The load generator for machines without a C compiler: the modes, options and figures of load.c, in Python.

It costs as much as the servers it drives, or more, so throughput and latency say little; the servers' own CPU time
still does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import ssl
import time
from collections import deque
from pathlib import Path
from typing import Any

GRACE = 5.0
DATAGRAM_TIMEOUT = 0.5
QUIET = 0.2
IDLE_WARMUP = 500
CHUNK = 256 * 1024
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def server_cpu(pids: list[int]) -> float:
    """Seconds of CPU that the processes have used: Linux gives every process a clock that others may read."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)  # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)


class Window:
    """The measured window: what was asked for, answered and lost, and when it ends."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.latencies: list[float] = []
        self.issued = 0
        self.lost = 0
        self.stopping = False
        self._load_cpu = time.process_time()
        self._server_cpu = server_cpu(options.pids)
        self._begin = time.perf_counter()
        self._deadline = self._begin + options.seconds

    def may_issue(self, count: int = 1) -> bool:
        """Whether more may be sent; if so it is counted as sent."""
        limit = self._options.operations
        self.stopping = self.issued >= limit if limit else time.perf_counter() >= self._deadline
        self.issued += 0 if self.stopping else count
        return not self.stopping

    def overdue(self) -> bool:
        """Whether what is still due will not come any more."""
        return time.perf_counter() >= self._deadline + GRACE and not (self._options.operations and not self.stopping)

    def report(self) -> dict[str, float]:
        """The figures, in the form of load.c."""
        wall = time.perf_counter() - self._begin
        ordered = sorted(self.latencies) or [0.0]
        return {
            "operations": len(self.latencies),
            "lost": self.lost,
            "seconds": wall,
            "server_cpu": server_cpu(self._options.pids) - self._server_cpu,
            "load_cpu": time.process_time() - self._load_cpu,
            "p50_us": ordered[len(ordered) // 2] * 1e6,
            "p99_us": ordered[len(ordered) * 99 // 100] * 1e6,
        }


class Connection:
    """One connection of an echo: what is unsent, and when each message in flight was sent."""

    def __init__(self, sock: socket.socket, message: bytes) -> None:
        self.sock = sock
        self.message = message
        self.unsent = memoryview(b"")
        self.received = 0
        self.starts: deque[float] = deque()

    def issue(self, window: Window, count: int) -> None:
        """Send up to that many messages."""
        now = time.perf_counter()
        count = sum(window.may_issue() for _ in range(count))
        self.starts.extend([now] * count)
        self.unsent = memoryview(bytes(self.unsent) + self.message * count)
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes."""
        with contextlib.suppress(*WOULD_BLOCK):
            while self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]

    def receive(self, window: Window) -> None:
        """Take in answers and send as many messages again."""
        try:
            data = self.sock.recv(CHUNK)
        except WOULD_BLOCK:
            return
        if not data:
            raise SystemExit("load: the server ended a connection in the middle of an echo")
        if len(self.message) >= len(data) and data not in self.message * 2:
            raise SystemExit("load: the echo differs from what was sent")
        done, self.received = divmod(self.received + len(data), len(self.message))
        now = time.perf_counter()
        window.latencies.extend(now - self.starts.popleft() for _ in range(done))
        self.issue(window, done)


def connect(options: argparse.Namespace) -> socket.socket:
    """A blocking connection, with TLS if that is the mode."""
    if ":" not in options.address:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(options.address)
        return sock
    host, port = options.address.rsplit(":", 1)
    sock = socket.create_connection((host, int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if options.mode != "tls":
        return sock
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the certificate was made for this run
    return context.wrap_socket(sock)


def connect_and_echo(options: argparse.Namespace) -> socket.socket:
    """A connection on which one line has been echoed."""
    sock = connect(options)
    line = options.message[-64:]
    sock.sendall(line)
    left = len(line)
    while left:
        left -= len(sock.recv(left)) or left
    return sock


def streams(options: argparse.Namespace) -> dict[str, float]:
    """Echo over open connections."""
    poll = select.epoll()
    connections = {}
    for _ in range(options.connections):
        connection = Connection(connect_and_echo(options), options.message)
        connection.sock.setblocking(False)
        connections[connection.sock.fileno()] = connection
        poll.register(connection.sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
    window = Window(options)
    for connection in connections.values():
        connection.issue(window, options.depth)
    while len(window.latencies) < window.issued and not window.overdue():
        for fd, _ in poll.poll(0.1):
            connection = connections[fd]
            before = -1
            while before != len(window.latencies) + connection.received:  # edges: until nothing more comes
                before = len(window.latencies) + connection.received
                connection.flush()
                connection.receive(window)
    window.lost = window.issued - len(window.latencies)
    return window.report()


def broadcasts(options: argparse.Namespace) -> dict[str, float]:
    """One sends, and all receive: one operation."""
    poll = select.epoll()
    sockets = [connect_and_echo(options) for _ in range(options.connections)]
    by_fd = {sock.fileno(): sock for sock in sockets}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    message = b"!" + options.message[1:]  # anything else is echoed
    window = Window(options)
    while window.may_issue():
        begin = time.perf_counter()
        sockets[0].sendall(message)
        missing = len(message) * len(sockets)
        while missing:
            ready = poll.poll(GRACE)
            if not ready:
                raise SystemExit("load: not all have got a broadcast")
            missing -= sum(len(by_fd[fd].recv(CHUNK)) for fd, _ in ready)
        window.latencies.append(time.perf_counter() - begin)
    return window.report()


def clients(options: argparse.Namespace) -> dict[str, float]:
    """Connect, echo, half-close, wait for the server's close."""
    poll = select.epoll()
    live: dict[int, tuple[socket.socket, float]] = {}
    window = Window(options)

    def start() -> None:
        if window.may_issue():
            begin = time.perf_counter()
            sock = connect(options)
            sock.sendall(options.message)
            live[sock.fileno()] = sock, begin
            poll.register(sock, select.EPOLLIN)

    for _ in range(options.connections):
        start()
    while live and not window.overdue():
        for fd, _ in poll.poll(0.1):
            sock, begin = live[fd]
            if sock.recv(CHUNK):
                sock.shutdown(socket.SHUT_WR)
                continue
            window.latencies.append(time.perf_counter() - begin)
            del live[fd]
            sock.close()
            start()
    window.lost = len(live)
    return window.report()


def datagram_sockets(options: argparse.Namespace) -> list[socket.socket]:
    """Connected sockets with room for every answer."""
    host, port = options.address.rsplit(":", 1)
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(options.connections)]
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.connect((host, int(port)))
        sock.setblocking(False)
    return sockets


def datagrams(options: argparse.Namespace) -> dict[str, float]:
    """One datagram in flight on each socket; an answer is told from a late one by its number."""
    sockets = {sock.fileno(): sock for sock in datagram_sockets(options)}
    poll = select.epoll()
    due: dict[int, tuple[bytes, float]] = {}
    window = Window(options)

    def send(fd: int) -> None:
        due.pop(fd, None)
        if window.may_issue():
            data = window.issued.to_bytes(8, "big") + options.message[8:]
            due[fd] = data, time.perf_counter()
            sockets[fd].send(data)

    for fd in sockets:
        poll.register(fd, select.EPOLLIN)
        send(fd)
    while due:
        for fd, _ in poll.poll(0.1):
            data = sockets[fd].recv(CHUNK)
            if fd in due and due[fd][0] == data:
                window.latencies.append(time.perf_counter() - due[fd][1])
                send(fd)
        now = time.perf_counter()
        for fd in [fd for fd, (_, sent) in due.items() if now - sent > DATAGRAM_TIMEOUT]:
            window.lost += 1
            send(fd)
    return window.report()


def bursts(options: argparse.Namespace) -> dict[str, float]:
    """`depth` datagrams as fast as they go, then silence until all answers are here or none has come for a while."""
    sockets = datagram_sockets(options)
    poll = select.epoll()
    by_fd = {sock.fileno(): sock for sock in sockets}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    window = Window(options)
    while window.may_issue(options.depth):
        begin = last = time.perf_counter()
        for i in range(options.depth):
            sockets[i % len(sockets)].send(options.message)
        missing = options.depth
        while missing and time.perf_counter() - last < QUIET:
            for fd, _ in poll.poll(0.02):
                by_fd[fd].recv(CHUNK)
                last = time.perf_counter()
                window.latencies.append(last - begin)
                missing -= 1
        window.lost += missing
    return window.report()


def memory(pids: list[int]) -> int:
    """Resident bytes of the processes."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) * 1024
    return total


def idle(options: argparse.Namespace) -> dict[str, float]:
    """Memory per idle connection, after 500 others."""
    kept = [connect_and_echo(options) for _ in range(min(IDLE_WARMUP, options.connections))]
    time.sleep(0.2)
    before, begin = memory(options.pids), time.perf_counter()
    kept += [connect_and_echo(options) for _ in range(options.connections)]
    elapsed = time.perf_counter() - begin
    time.sleep(0.2)
    after = memory(options.pids)
    return {
        "operations": options.connections,
        "lost": 0,
        "seconds": elapsed,
        "rss_before": before,
        "rss_after": after,
        "bytes_per_connection": (after - before) / options.connections,
    }


MODES: dict[str, Any] = {
    "tcp": streams,
    "unix": streams,
    "tls": streams,
    "broadcast": broadcasts,
    "connect": clients,
    "udp": datagrams,
    "burst": bursts,
    "idle": idle,
}


def main() -> None:
    """Read the command line of load.c and print its line of JSON."""
    parser = argparse.ArgumentParser(description="Drive an echo server.")
    parser.add_argument("mode", choices=sorted(MODES))
    parser.add_argument("address")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--operations", type=int, default=0)
    parser.add_argument("--pids", type=lambda text: [int(pid) for pid in text.split(",")], default=[])
    options = parser.parse_args()
    options.message = bytes(97 + i % 26 for i in range(options.size - 1)) + b"\n"
    print(json.dumps(MODES[options.mode](options)))


if __name__ == "__main__":
    main()
