"""What programs build on: the hooks and their order, and what the request is. One body for socketserver and compat.

The standard library is executed, not remembered: a test that fails for it would be a wrong test.
"""

import functools
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

import compat
from compat.intake.batches import plain_source
from tests.kit.compat import LOOPBACK, ask, connect, drained, echo, serving

ORDER = [
    "get_request",
    "verify_request",
    "process_request",
    "process_request_thread",
    "finish_request",
    "shutdown_request",
    "close_request",
]


def recorded(base: Any, log: "queue.Queue[tuple[str, int]]") -> Any:
    """A server class that notes each hook and its thread."""

    def noting(name: str) -> Callable[..., Any]:
        def hook(self: Any, *args: Any) -> Any:
            log.put((name, threading.get_ident()))
            return getattr(super(recording, self), name)(*args)

        return hook

    names = [name for name in ORDER if hasattr(base, name)]
    recording: Any = type("Recording", (base,), {name: noting(name) for name in names})
    return recording


# The order of hooks, and that none is short-cut.


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer"])
def test_every_hook_is_called_in_order(ss: Any, kind: str) -> None:
    """And from `process_request_thread` on in the handler's thread, `close_request` included."""
    log: queue.Queue[tuple[str, int]] = queue.Queue()
    server = recorded(getattr(ss, kind), log)(LOOPBACK, echo)
    with serving(server):
        assert ask(server, b"abc") == b"ABC"
    calls = drained(log)
    threaded = kind.startswith("Threading")
    assert [name for name, _ in calls] == [name for name in ORDER if threaded or name != ORDER[3]]
    assert len({thread for _, thread in calls}) == (2 if threaded else 1)
    first = 3 if threaded else 0
    assert len({thread for _, thread in calls[first:]}) == 1


def test_hooks_are_looked_up_on_the_instance(ss: Any) -> None:
    """Programs assign to the instance, also while it serves."""
    server = ss.ThreadingTCPServer(LOOPBACK, echo)
    with serving(server):
        assert ask(server, b"abc") == b"ABC"
        server.finish_request = lambda request, _: request.sendall(b"mine")
        assert ask(server) == b"mine"
        server.RequestHandlerClass = lambda request, _, __: request.sendall(b"other")
        del server.finish_request
        assert ask(server) == b"other"


HOOKS = ("get_request", "verify_request", "process_request", "process_request_thread", "shutdown_request")


@pytest.mark.parametrize("kind", ["ThreadingTCPServer", "ThreadingUDPServer"])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_is_set_while_it_serves_is_called_from_then_on(ss: Any, kind: str, hook: str) -> None:
    """Before, requests may have been taken without a call of any."""
    log: queue.Queue[str] = queue.Queue()
    server = getattr(ss, kind)(LOOPBACK, lambda *_: log.put("handler"))
    original = getattr(server, hook)

    def noted(*args: Any) -> Any:
        log.put(hook)
        return original(*args)

    with serving(server), socket.socket(server.address_family, server.socket_type) as client:
        client.connect(server.server_address)
        client.send(b"x")
        assert log.get(timeout=10) == "handler"
        setattr(server, hook, noted)
        with socket.socket(server.address_family, server.socket_type) as other:
            other.connect(server.server_address)
            other.send(b"x")
            assert {log.get(timeout=10), log.get(timeout=10)} == {hook, "handler"}


def test_a_socket_with_a_receive_of_its_own_is_asked(ss: Any) -> None:
    """Such as one that decrypts: what it returns is the request."""

    class Reversed(socket.socket):
        def recvfrom(self, *args: Any) -> Any:
            data, address = super().recvfrom(*args)
            return data[::-1], address

    received: queue.Queue[bytes] = queue.Queue()
    server = ss.ThreadingUDPServer(LOOPBACK, lambda request, *_: received.put(request[0]), bind_and_activate=False)
    server.socket.close()
    server.socket = Reversed(socket.AF_INET, socket.SOCK_DGRAM)
    server.server_bind()
    with serving(server), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"abc", server.server_address)
        assert received.get(timeout=10) == b"cba"


@pytest.mark.parametrize("kind", ["ThreadingTCPServer", "ThreadingUDPServer"])
def test_taking_what_is_not_there_does_not_wait(kind: str) -> None:
    """Another process may be quicker; a server that waits would not see its shutdown."""
    with getattr(compat, kind)(LOOPBACK, None) as server:
        source = plain_source(server, server.fileno())
        assert source is not None
        with pytest.raises(BlockingIOError):
            source.take()


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "UDPServer", "ThreadingUDPServer"])
def test_a_request_that_is_not_verified_has_no_handler(ss: Any, kind: str) -> None:
    """It goes through `shutdown_request`, and the next is served."""
    closed, handled = queue.Queue[Any](), queue.Queue[Any]()

    class Server(getattr(ss, kind)):  # type: ignore[misc]
        verdicts = iter([False, True])

        def verify_request(self, request: Any, address: Any) -> bool:
            return next(self.verdicts)

        def shutdown_request(self, request: Any) -> None:
            closed.put(request)
            super().shutdown_request(request)

    with serving(Server(LOOPBACK, lambda *args: handled.put(args[1]))) as server:
        for _ in range(2):
            with socket.socket(server.address_family, server.socket_type) as client:
                client.settimeout(10)
                client.connect(server.server_address)
                client.send(b"x")
                closed.get(timeout=10)
    assert handled.qsize() == 1


def test_process_request_may_keep_the_request(ss: Any) -> None:
    """Only the path of hooks closes a request: one that never reaches its end stays open."""
    kept: queue.Queue[socket.socket] = queue.Queue()

    class Server(ss.ThreadingTCPServer):  # type: ignore[misc]
        def process_request(self, request: socket.socket, address: Any) -> None:
            kept.put(request)

    with serving(Server(LOOPBACK, echo)) as server, connect(server) as client:
        request = kept.get(timeout=10)
        request.sendall(b"still open")
        assert client.recv(100) == b"still open"
        request.close()


def test_a_handler_may_outlive_its_request(ss: Any) -> None:
    """`shutdown_request` overridden to do nothing leaves the socket to whoever has it."""
    kept: queue.Queue[socket.socket] = queue.Queue()

    class Server(ss.ThreadingTCPServer):  # type: ignore[misc]
        def shutdown_request(self, request: socket.socket) -> None:
            kept.put(request)

    with serving(Server(LOOPBACK, lambda *_: None)) as server, connect(server) as client:
        request = kept.get(timeout=10)
        request.sendall(b"late")
        assert client.recv(100) == b"late"
        request.close()


def test_finish_request_may_pass_more_arguments(ss: Any) -> None:
    """As servers that hand things to their handlers do."""

    class Server(ss.ThreadingTCPServer):  # type: ignore[misc]
        def finish_request(self, request: Any, address: Any) -> None:
            self.RequestHandlerClass(request, address, self, b"extra")

    with serving(Server(LOOPBACK, lambda request, _, __, extra: request.sendall(extra))) as server:
        assert ask(server) == b"extra"


def test_process_request_thread_may_be_overridden(ss: Any) -> None:
    """It surrounds the handler in the handler's thread."""
    threads: queue.Queue[int] = queue.Queue()

    class Server(ss.ThreadingTCPServer):  # type: ignore[misc]
        def process_request_thread(self, request: Any, address: Any) -> None:
            threads.put(threading.get_ident())
            super().process_request_thread(request, address)
            threads.put(threading.get_ident())

    def handler(request: Any, *_: Any) -> None:
        threads.put(threading.get_ident())
        echo(request, None, None)

    with serving(Server(LOOPBACK, handler)) as server:
        assert ask(server, b"abc") == b"ABC"
    idents = drained(threads)
    assert len(idents) == 3
    assert len(set(idents)) == 1


@pytest.mark.parametrize("make", ["class", "partial", "lambda", "method"])
def test_the_handler_may_be_any_callable(ss: Any, make: str) -> None:
    """Of three arguments."""

    class Handler(ss.StreamRequestHandler):  # type: ignore[misc]
        def __init__(self, *args: Any, answer: bytes = b"fixed") -> None:
            self.answer = answer
            super().__init__(*args)

        def handle(self) -> None:
            self.wfile.write(self.answer)

    class Application:
        def handle(self, request: Any, _: Any, __: Any) -> None:
            request.sendall(b"fixed")

    handlers: dict[str, Any] = {
        "class": Handler,
        "partial": functools.partial(Handler, answer=b"fixed"),
        "lambda": lambda *args: Handler(*args),
        "method": Application().handle,
    }
    with serving(ss.ThreadingTCPServer(LOOPBACK, handlers[make])) as server:
        assert ask(server) == b"fixed"


# What the request is.


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer"])
def test_the_request_is_a_blocking_socket(ss: Any, kind: str) -> None:
    """A real one, and the server is the very instance."""
    seen: queue.Queue[Any] = queue.Queue()

    class Handler(ss.StreamRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            seen.put((type(self.request), self.request.gettimeout(), self.server))
            seen.put((self.rfile.fileno() == self.request.fileno(), self.rfile.readline()))

    with serving(getattr(ss, kind)(LOOPBACK, Handler)) as server:
        ask(server, b"a line\n")
        assert seen.get(timeout=10) == (socket.socket, None, server)
        assert seen.get(timeout=10) == (True, b"a line\n")


@pytest.mark.parametrize("kind", ["UDPServer", "ThreadingUDPServer"])
def test_a_datagram_comes_with_the_servers_own_socket(ss: Any, kind: str) -> None:
    """Which stays blocking, so that a handler's `sendto` never fails for want of room."""
    seen: queue.Queue[Any] = queue.Queue()

    def handler(request: Any, address: Any, server: Any) -> None:
        seen.put((request[0], request[1] is server.socket, request[1].getblocking()))
        request[1].sendto(request[0].upper(), address)

    with serving(getattr(ss, kind)(LOOPBACK, handler)) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"abc", server.server_address)
            assert client.recv(100) == b"ABC"
        assert seen.get(timeout=10) == (b"abc", True, True)


def test_the_datagram_handler_answers_what_it_wrote(ss: Any) -> None:
    """DatagramRequestHandler sends its wfile."""

    class Handler(ss.DatagramRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.wfile.write(self.rfile.read()[::-1])

    with (
        serving(ss.ThreadingUDPServer(LOOPBACK, Handler)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(10)
        client.sendto(b"abc", server.server_address)
        assert client.recv(100) == b"cba"


def test_a_socket_that_replaces_the_first_is_the_one_that_serves(ss: Any) -> None:
    """As `server.socket = context.wrap_socket(server.socket)` does, or a descriptor that was handed in."""
    server = ss.ThreadingTCPServer(LOOPBACK, echo, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.create_server(LOOPBACK)
    server.socket.settimeout(30)
    server.server_address = server.socket.getsockname()
    with serving(server):
        assert ask(server, b"abc") == b"ABC"
