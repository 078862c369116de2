"""Serving, and no longer serving: loops, hooks and shutdowns, under one body for socketserver and compat."""

import asyncio
import functools
import queue
import threading
import time
from typing import Any

import pytest

from tests.kit.compat import LOOPBACK, ask, connect, echo, serving


def test_the_same_server_can_serve_again(ss: Any) -> None:
    """After each `shutdown()`."""
    with ss.ThreadingTCPServer(LOOPBACK, echo) as server:
        for _ in range(3):
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            assert ask(server, b"abc") == b"ABC"
            server.shutdown()
            thread.join(10)
            assert not thread.is_alive()


def test_a_shutdown_that_comes_first_ends_the_next_serve_forever(ss: Any) -> None:
    """No race between starting the serving thread and stopping it again."""
    with ss.TCPServer(LOOPBACK, echo) as server:
        server._BaseServer__shutdown_request = True
        server.serve_forever()
        with serving(server):
            assert ask(server, b"abc") == b"ABC"


def test_the_private_flag_ends_serving(ss: Any) -> None:
    """Programs set it from handlers and signal handlers, where `shutdown()` would deadlock."""

    def handler(_: Any, __: Any, server: Any) -> None:
        server._BaseServer__shutdown_request = True

    with ss.TCPServer(LOOPBACK, handler) as server, connect(server):
        server.serve_forever(0.02)
        assert server._BaseServer__is_shut_down.is_set()


def test_shutdown_works_from_a_threaded_handler(ss: Any) -> None:
    """Which then still answers."""

    def handler(request: Any, _: Any, server: Any) -> None:
        server.shutdown()
        request.sendall(b"bye")

    with ss.ThreadingTCPServer(LOOPBACK, handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        assert ask(server) == b"bye"
        thread.join(10)
        assert not thread.is_alive()


def test_service_actions_runs_while_nothing_arrives(ss: Any) -> None:
    """Every poll interval, in the serving thread; and after a request."""
    calls: queue.Queue[int] = queue.Queue()

    class Server(ss.ThreadingTCPServer):  # type: ignore[misc]
        def service_actions(self) -> None:
            calls.put(threading.get_ident())

    with serving(Server(LOOPBACK, echo)):
        assert len({calls.get(timeout=10) for _ in range(5)}) == 1


def test_a_hook_that_is_decorated_on_the_instance_is_still_called(ss: Any) -> None:
    """`functools.wraps` makes it look like the module's own; instrumentation does that."""
    calls: queue.Queue[None] = queue.Queue()
    server = ss.TCPServer(LOOPBACK, echo)
    original = server.service_actions

    @functools.wraps(original)
    def counted() -> None:
        calls.put(None)
        original()

    server.service_actions = counted
    with serving(server):
        for _ in range(3):
            calls.get(timeout=10)


def test_without_a_poll_interval_requests_are_still_served(ss: Any) -> None:
    """A selector waits for ever when its timeout is None."""

    class Server(ss.TCPServer):  # type: ignore[misc]
        def service_actions(self) -> None:
            self._BaseServer__shutdown_request = True  # nobody else could end the stdlib's loop

    with Server(LOOPBACK, echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(None,))
        thread.start()
        assert ask(server, b"abc") == b"ABC"
        thread.join(10)
        assert not thread.is_alive()


def test_service_actions_runs_after_each_request(ss: Any) -> None:
    """However long the poll interval is."""
    calls: queue.Queue[None] = queue.Queue()

    class Server(ss.TCPServer):  # type: ignore[misc]
        def service_actions(self) -> None:
            calls.put(None)

    with Server(LOOPBACK, echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(30,))
        thread.start()
        for _ in range(3):
            assert ask(server, b"abc") == b"ABC"
            calls.get(timeout=10)
        server._BaseServer__shutdown_request = True
        connect(server).close()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(("server_timeout", "socket_timeout"), [(0.05, 30.0), (30.0, 0.05), (0.05, None)])
def test_handle_request_waits_for_the_shorter_timeout(
    ss: Any, server_timeout: float, socket_timeout: float | None
) -> None:
    """Of `timeout` and the socket's, and what `handle_timeout` raises comes out."""

    class Server(ss.ThreadingTCPServer):  # type: ignore[misc]
        timeout = server_timeout

        def handle_timeout(self) -> None:
            raise TimeoutError

    with Server(LOOPBACK, echo) as server:
        server.socket.settimeout(socket_timeout)
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            server.handle_request()
        assert time.monotonic() - begun < 10


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer"])
def test_handle_request_serves_one(ss: Any, kind: str) -> None:
    """Without `serve_forever()`, and in a thread that runs a loop of its own."""
    with getattr(ss, kind)(LOOPBACK, echo) as server:

        async def main() -> bytes:
            client = asyncio.create_task(asyncio.to_thread(ask, server, b"abc"))
            await asyncio.sleep(0)
            server.handle_request()
            return await client

        assert asyncio.run(main()) == b"ABC"


def test_serve_forever_works_in_a_thread_that_runs_a_loop(ss: Any) -> None:
    """Unwise, as nothing else runs there, but possible."""
    with ss.ThreadingTCPServer(LOOPBACK, echo) as server:

        async def main() -> None:
            server.serve_forever(0.02)

        thread = threading.Thread(target=asyncio.run, args=(main(),))
        thread.start()
        assert ask(server, b"abc") == b"ABC"
        server.shutdown()
        thread.join(10)
        assert not thread.is_alive()


def test_own_select_loops_take_one_step_at_a_time(ss: Any) -> None:
    """Programs watch several servers at once and call `_handle_request_noblock()`."""
    import selectors

    with ss.ThreadingTCPServer(LOOPBACK, echo) as one, ss.TCPServer(LOOPBACK, echo) as other:
        clients = [connect(one), connect(other)]
        for client in clients:
            client.sendall(b"abc")
        with selectors.DefaultSelector() as selector:
            pending = {one, other}
            for server in pending:
                selector.register(server, selectors.EVENT_READ)
            while pending:
                for key, _ in selector.select(10):
                    server_at_hand: Any = key.fileobj
                    server_at_hand._handle_request_noblock()
                    pending.discard(server_at_hand)
        for client in clients:
            assert client.recv(100) == b"ABC"
            client.close()


def test_an_overridden_serve_forever_is_shut_down_by_the_private_names(ss: Any) -> None:
    """As servers that poll in their own way do."""

    class Server(ss.TCPServer):  # type: ignore[misc]
        def serve_forever(self: Any, poll_interval: float = 0.01) -> None:
            self._BaseServer__is_shut_down.clear()
            try:
                while not self._BaseServer__shutdown_request:
                    self.timeout = poll_interval
                    self.handle_request()
            finally:
                self._BaseServer__shutdown_request = False
                self._BaseServer__is_shut_down.set()

    with serving(Server(LOOPBACK, echo)) as server:
        assert ask(server, b"abc") == b"ABC"
