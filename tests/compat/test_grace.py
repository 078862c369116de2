"""ThreadingMixIn's threads end with the server, in the end by force."""

import logging
import queue
import socket
import threading
from typing import Any

import pytest

import compat
from compat import threads
from tests.kit.compat import LOOPBACK, Echo, connect, serving
from tests.kit.waiting import wait_until

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
def test_a_blocked_handler_is_woken_after_the_grace(
    daemon: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recv sees the end of the stream; who ends by itself in time is left in peace; a report tells."""
    gate, finishing, reading = threading.Event(), threading.Event(), threading.Semaphore(0)

    class Handler(compat.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"ready")
            reading.release()
            if self.request.recv(10) == b"finish":
                finishing.set()
                gate.wait(20)
                self.request.sendall(b"finished")

    def wait(*args: Any) -> Any:
        gate.set()
        return waiting(*args)

    waiting = threads._wait
    monkeypatch.setattr(threads, "_wait", wait)
    server: Any = compat.ThreadingTCPServer(LOOPBACK, Handler)
    server.graceful_timeout, server.daemon_threads = 2, daemon
    with connect(server) as quick, connect(server) as blocked:
        with caplog.at_level(logging.WARNING, "compat"), serving(server):
            for client in (quick, blocked):
                assert client.recv(100) == b"ready"
                assert reading.acquire(timeout=10)
            quick.sendall(b"finish")
            assert finishing.wait(10)
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
        wait_until(lambda: len(server._compat_pool) == 0)
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
