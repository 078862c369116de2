"""ThreadingMixIn on the pool: the bound, held connections, refused threads."""

import functools
import logging
import queue
import socket
import socketserver
import threading
from collections.abc import Callable
from typing import Any

import pytest

import compat
from tests.kit.compat import LOOPBACK, Echo, ask, connect, meet, serving
from tests.kit.waiting import wait_until

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
        wait_until(lambda: caplog.records)
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
    wait_until(lambda: [loop._watched for loop in server._compat_loops] == [-1, -1])
    for client in clients:
        client.sendall(b"abc")
    for client in clients:
        assert client.recv(10) == b"abc"
        client.close()
    wait_until(lambda: all(loop._watched >= 0 for loop in server._compat_loops))
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


@pytest.mark.parametrize("value", [0, -1, "many", True, 2.5])
def test_a_bound_that_is_no_number_of_threads_is_not_ours(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A program may call something of its own so: it is served, and told once."""
    server: Any = compat.ThreadingTCPServer(LOOPBACK, Echo)
    server.max_threads = value
    with serving(server):
        for _ in range(2):
            assert ask(server, b"abc") == b"ABC"
    (message,) = [record.getMessage() for record in caplog.records if record.name == "compat"]
    default = compat.ThreadingMixIn.max_threads
    assert message.endswith(
        f"max_threads is {value!r}, expected a number of threads or None; the default is used, {default}"
    )


def test_a_server_of_the_stdlib_under_our_threads_is_bounded() -> None:
    """`class S(compat.ThreadingMixIn, http.server.HTTPServer)`, where one module has been changed and not the other."""
    gate, running = threading.Event(), threading.Semaphore(0)

    def handler(request: Any, *_: Any) -> None:
        running.release()
        gate.wait(20)
        request.sendall(b"abc")

    class Server(compat.ThreadingMixIn, socketserver.TCPServer):
        max_threads = 2

    handler_class: Any = handler
    with serving(Server(LOOPBACK, handler_class)) as server:
        clients = [connect(server) for _ in range(4)]
        for _ in range(2):
            assert running.acquire(timeout=20)
        wait_until(lambda: server.times_full)
        assert len(server._compat_pool) == 2
        gate.set()
        for client in clients:
            assert client.recv(10) == b"abc"
            client.close()


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
        for _ in range(25):
            meet(server, met)


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
    monkeypatch.setattr("compat.ThreadingTCPServer.handle_error", lambda *_: None)
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
