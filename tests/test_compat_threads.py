"""ThreadingMixIn on the pool: the bound, held connections, refused threads, graceful closing."""

import functools
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import compat

LOOPBACK = ("127.0.0.1", 0)


@contextmanager
def serving(server: Any) -> Iterator[Any]:
    """Serve in a thread, and close the server afterwards."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def connect(server: Any) -> socket.socket:
    """A connection whose operations give up after twenty seconds."""
    return socket.create_connection(server.server_address, timeout=20)


def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody tells of, for ten seconds at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Echo(compat.BaseRequestHandler):
    """Answers until the client has closed."""

    def handle(self) -> None:
        while data := self.request.recv(1024):
            self.request.sendall(data.upper())


# The bound.


@pytest.mark.parametrize("kind", ["ThreadingTCPServer", "ThreadingUDPServer"])
def test_at_the_bound_taking_pauses_and_everything_is_served(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Never more than max_threads at a time; one warning with the oldest handler's stack; a counter."""
    gate = threading.Event()
    running: list[int] = []
    counts: queue.Queue[int] = queue.Queue()

    def recognisable(*_: Any) -> None:
        running.append(1)
        counts.put(len(running))
        gate.wait(20)
        running.pop()

    server_class = type("Server", (getattr(compat, kind),), {"max_threads": 3, "request_queue_size": 50})
    server: Any = server_class(LOOPBACK, recognisable)
    with caplog.at_level(logging.WARNING, "compat"), serving(server):
        clients = [socket.socket(server.address_family, server.socket_type) for _ in range(20)]
        for client in clients:
            client.connect(server.server_address)
            client.send(b"x")
        for _ in range(3):
            counts.get(timeout=10)
        until(lambda: caplog.records)
        assert counts.qsize() == 0
        gate.set()
        assert max(counts.get(timeout=20) for _ in range(17)) <= 3
        for client in clients:
            client.close()
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "handles 3 requests, which is its max_threads" in warnings[0]
    assert "in recognisable" in warnings[0]
    assert server.times_full >= 1


def test_at_the_bound_every_thread_that_serves_goes_on_afterwards() -> None:
    """Each of them has to hear that there is room, not only the last that found none."""

    class Server(compat.ThreadingTCPServer):
        max_threads = 2
        _compat_unwarned = False  # or each would look again soon, to tell of the handlers

    class Waiting(compat.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(self.request.recv(10))

    server: Any = Server(LOOPBACK, Waiting)
    threads = [threading.Thread(target=server.serve_forever, args=(30,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    clients = [socket.create_connection(server.server_address, timeout=10) for _ in range(3)]
    until(lambda: [loop._watched for loop in server._compat_loops] == [-1, -1])
    for client in clients:
        client.sendall(b"abc")
    for client in clients:
        assert client.recv(10) == b"abc"
        client.close()
    until(lambda: all(loop._watched >= 0 for loop in server._compat_loops))
    server.shutdown()
    for thread in threads:
        thread.join(10)
    server.server_close()


def test_the_bound_is_read_when_it_is_needed() -> None:
    """Raising it lets waiting requests in with the next one that ends, None for good."""
    begun, gate = threading.Semaphore(0), threading.Event()

    def handler(*_: Any) -> None:
        begun.release()
        gate.wait(20)

    server: Any = compat.ThreadingTCPServer(LOOPBACK, handler)
    server.max_threads = None
    with serving(server):
        clients = [connect(server) for _ in range(5)]
        for _ in clients:
            assert begun.acquire(timeout=10)
        gate.set()
        for client in clients:
            client.close()


def test_a_bound_below_one_is_an_error_of_each_request(capsys: pytest.CaptureFixture[str]) -> None:
    """It is told where all errors of requests are told, and the client is not left waiting."""
    server: Any = compat.ThreadingTCPServer(LOOPBACK, Echo)
    server.max_threads = 0
    with serving(server), connect(server) as client:
        assert client.recv(1) == b""
    assert "max_threads is 0, expected at least 1" in capsys.readouterr().err


# Many at a time.


def test_held_connections_are_all_answered() -> None:
    """Five hundred (two thousand in the figures of the documentation), each in its own blocking handler."""
    server_class = type("Server", (compat.ThreadingTCPServer,), {"request_queue_size": 1024})
    with serving(server_class(LOOPBACK, Echo)) as server:
        clients = [connect(server) for _ in range(500)]
        for _ in range(2):
            for number, client in enumerate(clients):
                client.sendall(b"question %d" % number)
            for number, client in enumerate(clients):
                assert client.recv(100) == b"QUESTION %d" % number
        for client in clients:
            client.close()


@pytest.mark.parametrize("kind", ["ThreadingTCPServer", "ThreadingUDPServer"])
def test_two_hundred_handlers_meet_on_the_same_server_again_and_again(kind: str) -> None:
    """With idle threads from the round before, which is where a hand-over could lose one."""
    met = threading.Semaphore(0)
    barrier = threading.Barrier(200, action=functools.partial(met.release, 200))
    server_class = type("Server", (getattr(compat, kind),), {"request_queue_size": 300})
    with serving(server_class(LOOPBACK, lambda *_: barrier.wait(20))) as server:
        for _ in range(60):
            clients = []
            for _ in range(200):
                clients.append(socket.socket(server.address_family, server.socket_type))
                clients[-1].connect(server.server_address)
                clients[-1].send(b"x")
            for _ in range(200):
                assert met.acquire(timeout=20)
            for client in clients:
                client.close()


def test_a_slow_datagram_handler_never_holds_up_the_next() -> None:
    """Also when both arrive in one batch."""
    gate = threading.Event()

    def handler(request: Any, address: Any, _: Any) -> None:
        if request[0] == b"slow":
            gate.wait(20)
        request[1].sendto(request[0].upper(), address)

    with (
        serving(compat.ThreadingUDPServer(LOOPBACK, handler)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(10)
        for _ in range(20):
            client.sendto(b"slow", server.server_address)
            client.sendto(b"quick", server.server_address)
        assert [client.recv(100) for _ in range(20)] == [b"QUICK"] * 20
        gate.set()
        assert [client.recv(100) for _ in range(20)] == [b"SLOW"] * 20


def test_a_hook_that_waits_for_an_earlier_request_is_not_stuck_in_its_batch() -> None:
    """Workers are woken at the end of a batch only when no hook of somebody else's can block inside it."""
    handled = threading.Semaphore(0)

    class Server(compat.ThreadingTCPServer):
        first = True

        def verify_request(self, request: Any, address: Any) -> bool:
            if not self.first:
                assert handled.acquire(timeout=10)
            self.first = False
            return True

    server = Server(LOOPBACK, lambda *_: handled.release())
    clients = [connect(server) for _ in range(4)]  # in the backlog before serving begins: one batch
    with serving(server):
        for client in clients:
            assert client.recv(1) == b""
            client.close()


# Threads that cannot be started.


def refuse_threads(monkeypatch: pytest.MonkeyPatch, refuses: Callable[[int], bool]) -> None:
    """Make the start of the servers' threads fail at the attempts that are named."""
    original = threading.Thread.start
    attempts = iter(range(1, 1_000_000))

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("ThreadingTCPServer-") and refuses(next(attempts)):
            raise RuntimeError("can't start new thread")
        original(thread)

    monkeypatch.setattr(threading.Thread, "start", start)


def test_without_any_thread_a_request_fails_as_in_the_stdlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reported and closed; the next is served."""
    refuse_threads(monkeypatch, lambda attempt: attempt == 1)
    with serving(compat.ThreadingTCPServer(LOOPBACK, Echo)) as server:
        with connect(server) as client:
            assert client.recv(1) == b""
        with connect(server) as client:
            client.sendall(b"abc")
            assert client.recv(100) == b"ABC"
    assert "can't start new thread" in capsys.readouterr().err


def test_handlers_that_wait_for_each_other_meet_although_threads_were_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop tries again: nobody else would, as all workers wait and no request arrives."""
    refuse_threads(monkeypatch, lambda attempt: attempt in {2, 3, 4, 5})
    pair = threading.Barrier(2)

    def handler(request: Any, *_: Any) -> None:
        pair.wait(20)
        request.sendall(b"met")

    with serving(compat.ThreadingTCPServer(LOOPBACK, handler)) as server:
        clients = [connect(server) for _ in range(2)]
        for client in clients:
            assert client.recv(100) == b"met"
            client.close()


def test_several_clients_close_and_refusals_strand_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection that was made is answered or closed, while servers come and go."""
    refuse_threads(monkeypatch, lambda attempt: attempt % 3 == 0)
    monkeypatch.setattr(compat.ThreadingTCPServer, "handle_error", lambda *_: None)
    for _ in range(15):
        server_class = type("ThreadingTCPServer", (compat.ThreadingTCPServer,), {"request_queue_size": 200})
        server: Any = server_class(LOOPBACK, Echo)
        outcomes: queue.Queue[bytes] = queue.Queue()
        with serving(server):
            threads = [threading.Thread(target=talk, args=(server, outcomes)) for _ in range(20)]
            for thread in threads:
                thread.start()
            for _ in range(10):
                outcomes.get(timeout=20)
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert {outcomes.get_nowait() for _ in range(10)} <= {b"ABC", b""}


def talk(server: Any, outcomes: "queue.Queue[bytes]") -> None:
    """Connect, ask, and note what came of it: the answer, or nothing."""
    try:
        with connect(server) as client:
            client.sendall(b"abc")
            outcomes.put(client.recv(100))
    except ConnectionError:
        outcomes.put(b"")


# Threads end with the server, and change with its attributes.


def test_threads_end_with_the_server() -> None:
    """Also the daemonic ones, which nobody joins."""
    for daemon in (False, True):
        server: Any = compat.ThreadingTCPServer(LOOPBACK, Echo)
        server.daemon_threads = daemon
        with serving(server):
            clients = [connect(server) for _ in range(5)]
            for client in clients:
                client.sendall(b"abc")
                assert client.recv(100) == b"ABC"
                client.close()
            ours = [thread for thread in threading.enumerate() if thread.name.startswith("ThreadingTCPServer-")]
            assert ours
        for thread in ours:
            thread.join(10)
            assert not thread.is_alive()


def test_daemon_threads_may_change_while_serving() -> None:
    """It is read for each request."""
    seen: queue.Queue[bool] = queue.Queue()
    server: Any = compat.ThreadingTCPServer(LOOPBACK, lambda *_: seen.put(threading.current_thread().daemon))
    with serving(server):
        for daemon in (False, True, False):
            server.daemon_threads = daemon
            connect(server).close()
            assert seen.get(timeout=10) is daemon


def test_a_request_that_is_processed_after_the_close_is_still_handled() -> None:
    """As in the stdlib, where nothing ties process_request to the listener."""
    handled: queue.Queue[object] = queue.Queue()
    server: Any = compat.ThreadingTCPServer(LOOPBACK, lambda request, *_: handled.put(request))
    server.server_close()
    ours, theirs = socket.socketpair()
    server.process_request(ours, "somewhere")
    assert handled.get(timeout=10) is ours
    theirs.close()
    server.server_close()


# graceful_timeout


@pytest.mark.parametrize("daemon", [False, True])
def test_a_blocked_handler_is_woken_after_the_grace(daemon: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Its recv sees the end of the stream; who ends by itself in time is left in peace; a report tells."""
    gate, reading = threading.Event(), threading.Semaphore(0)

    class Handler(compat.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"ready")
            reading.release()
            if self.request.recv(10) == b"finish":
                gate.wait(20)
                self.request.sendall(b"finished")

    server: Any = compat.ThreadingTCPServer(LOOPBACK, Handler)
    server.graceful_timeout, server.daemon_threads = 0.3, daemon
    with connect(server) as quick, connect(server) as blocked:
        with caplog.at_level(logging.WARNING, "compat"), serving(server):
            for client in (quick, blocked):
                assert client.recv(100) == b"ready"
                assert reading.acquire(timeout=10)
            quick.sendall(b"finish")
            threading.Timer(0.1, gate.set).start()
            begun = time.monotonic()
        assert 0.25 < time.monotonic() - begun < 5
        assert quick.recv(100) == b"finished"
        assert blocked.recv(100) == b""
    assert server.close_report == compat.CloseReport(completed=1, interrupted=1, running=0)
    assert "CloseReport(completed=1, interrupted=1, running=0)" in caplog.text


def test_a_handler_that_cannot_be_woken_is_reported() -> None:
    """server_close() does not wait for it for ever."""
    gate, begun = threading.Event(), threading.Event()

    def handler(*_: Any) -> None:
        begun.set()
        gate.wait(20)

    server: Any = compat.ThreadingTCPServer(LOOPBACK, handler)
    server.graceful_timeout = 0.05
    with serving(server), connect(server):
        assert begun.wait(10)
    assert server.close_report == compat.CloseReport(completed=0, interrupted=0, running=1)
    gate.set()


def test_requests_that_have_not_begun_are_closed_after_the_grace() -> None:
    """None is left open: at the bound they wait in the queue of a server that a program's own loop steps."""
    gate = threading.Event()
    server: Any = compat.ThreadingTCPServer(LOOPBACK, lambda *_: gate.wait(20))
    server.max_threads, server.graceful_timeout = 1, 0.05
    clients = [connect(server) for _ in range(3)]
    for _ in clients:
        server._handle_request_noblock()
    threading.Timer(0.2, gate.set).start()
    server.server_close()
    for client in clients:
        assert client.recv(1) == b""
        client.close()
    assert server.close_report == compat.CloseReport(completed=0, interrupted=3, running=0)


def test_a_quiet_close_reports_nothing_to_wait_for() -> None:
    """And takes no time."""
    server: Any = compat.ThreadingTCPServer(LOOPBACK, Echo)
    server.graceful_timeout = 30
    with serving(server), connect(server) as client:
        client.sendall(b"abc")
        assert client.recv(100) == b"ABC"
        client.close()
        until(lambda: len(server._compat_pool) == 0)
    assert server.close_report == compat.CloseReport(completed=0, interrupted=0, running=0)


def test_a_handler_may_close_its_own_server_gracefully() -> None:
    """It is not waited for."""
    closed = threading.Event()

    def handler(_: Any, __: Any, server: Any) -> None:
        server.server_close()
        closed.set()

    server: Any = compat.ThreadingTCPServer(LOOPBACK, handler)
    server.graceful_timeout = 30
    with serving(server), connect(server):
        assert closed.wait(10)


def test_several_producers_share_one_pool() -> None:
    """When a server is served by several threads, their first requests do not each make a pool."""
    for _ in range(50):
        met = threading.Event()
        together = threading.Barrier(4, action=met.set)
        server: Any = compat.ThreadingTCPServer(LOOPBACK, lambda *_, together=together: together.wait(20))
        pairs = [socket.socketpair() for _ in range(4)]
        producers = [threading.Thread(target=server.process_request, args=(ours, "somewhere")) for ours, _ in pairs]
        for producer in producers:
            producer.start()
        assert met.wait(20)
        for producer, (_, theirs) in zip(producers, pairs, strict=True):
            producer.join()
            theirs.close()
        server.server_close()
