"""TLS listeners: hooks see what they saw, and silent clients hold up nobody."""

import queue
import select
import selectors
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest

import compat
from tests.kit.certificates import client_context, plain_context
from tests.kit.compat import LOOPBACK, connect, echo, serving
from tests.kit.waiting import wait_until


@pytest.fixture
def context() -> ssl.SSLContext:
    """The server's side."""
    return plain_context()


@pytest.fixture
def trusting() -> ssl.SSLContext:
    """The client's side."""
    return client_context()


def ask(server: Any, trusting: ssl.SSLContext) -> bytes:
    """What the server answers to `abc` over TLS."""
    with connect(server) as plain, trusting.wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(b"abc")
        return client.recv(100)


def tls_listener(base: Any, context: ssl.SSLContext, handler: Any = echo) -> Any:
    """A server whose listening socket is wrapped, as the documentation of many programs recommends."""
    server = base(LOOPBACK, handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


def wrapping(base: Any, context: ssl.SSLContext, how: str) -> Any:
    """A server class whose get_request wraps the connection."""

    class Server(base):  # type: ignore[misc]
        def through_super(self) -> Any:
            request, address = super().get_request()
            return context.wrap_socket(request, server_side=True), address

        def by_hand(self) -> Any:
            request, address = self.socket.accept()
            return context.wrap_socket(request, server_side=True), address

    Server.get_request = getattr(Server, how)
    return Server


MAKERS: dict[str, Callable[[Any, ssl.SSLContext], Any]] = {
    "listener": tls_listener,
    "super": lambda base, context: wrapping(base, context, "through_super")(LOOPBACK, echo),
    "accept": lambda base, context: wrapping(base, context, "by_hand")(LOOPBACK, echo),
}


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer"])
@pytest.mark.parametrize("maker", list(MAKERS))
def test_silent_clients_hold_up_nobody(
    kind: str, maker: str, context: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """Neither those that say nothing nor one that stops in the middle of its first message."""
    server = MAKERS[maker](getattr(compat, kind), context)
    with serving(server), ExitStack() as silent:
        for _ in range(5):
            silent.enter_context(connect(server))
        silent.enter_context(connect(server)).sendall(b"\x16\x03\x01\x02")
        for _ in range(5):
            assert ask(server, trusting) == b"ABC"


@pytest.mark.parametrize("maker", list(MAKERS))
def test_shutdown_is_quick_while_clients_are_silent(maker: str, context: ssl.SSLContext) -> None:
    """And their connections are closed."""
    server = MAKERS[maker](compat.ThreadingTCPServer, context)
    with ExitStack() as silent:
        with serving(server):
            clients = [silent.enter_context(connect(server)) for _ in range(3)]
            until_accepted(server, clients, maker)
            begun = time.perf_counter()
            server.shutdown()
            assert time.perf_counter() - begun < 10  # the handshake would have 30 s
        for client in clients:
            with suppress(ConnectionResetError):  # the thread that would have accepted it came too late
                assert client.recv(1) == b""


def until_accepted(server: Any, clients: list[socket.socket], maker: str) -> None:
    """Wait until the server has taken all these connections."""

    def accepted(loop: Any) -> bool:
        taken = loop.handshakes if maker == "listener" else loop.acceptors and loop.acceptors.pool
        return bool(taken) and len(taken) == len(clients)

    wait_until(lambda: any(map(accepted, server._compat_loops)))


@pytest.mark.parametrize("maker", list(MAKERS))
def test_a_silent_client_is_cut_off_in_the_end(
    maker: str, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ssl_handshake_timeout, without a hook being called for it."""
    monkeypatch.setattr("compat.TCPServer.ssl_handshake_timeout", 0.2)
    # Without the GIL the frames of other threads must be left alone.
    monkeypatch.setattr(sys, "_current_frames", lambda: pytest.fail("it looks at other threads' frames"))
    server = MAKERS[maker](compat.ThreadingTCPServer, context)
    server.verify_request = None  # whoever calls it fails
    with serving(server), connect(server) as client:
        assert client.recv(1) == b""


@pytest.mark.parametrize("how", ["through_super", "by_hand"])
def test_only_those_whose_handshake_goes_on_are_cut_off(
    how: str, context: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """A connection that was made in time is none of them, nor is the listener."""
    server = wrapping(compat.ThreadingTCPServer, context, how)(LOOPBACK, echo_twice)
    with serving(server), ExitStack() as stack:
        client = stack.enter_context(trusting.wrap_socket(connect(server), server_hostname="localhost"))
        client.sendall(b"abc")
        assert client.recv(100) == b"ABC"
        silent = stack.enter_context(connect(server))
        until_accepted(server, [silent], how)
        for loop in server._compat_loops:
            until_cut_off(loop.acceptors, silent)
        client.sendall(b"def")
        assert client.recv(100) == b"DEF"
        assert ask(server, trusting) == b"ABC"


def until_cut_off(acceptors: Any, client: socket.socket) -> None:
    """As when the time is up; the thread may be just before its handshake."""
    wait_until(lambda: acceptors._cut_off(0.0) or select.select([client], [], [], 0.01)[0])
    assert client.recv(1) == b""


def echo_twice(request: Any, *_: Any) -> None:
    """Answers twice."""
    echo(request)
    echo(request)


@pytest.mark.filterwarnings("ignore:.* is multi-threaded:DeprecationWarning")  # this process, which forks
@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer"])
def test_hooks_see_a_connection_whose_handshake_is_done(
    kind: str, context: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """A blocking TLS socket, in the serving thread, as with the stdlib."""
    seen: queue.Queue[Any] = queue.Queue()

    class Server(getattr(compat, kind)):  # type: ignore[misc]
        def verify_request(self, request: Any, address: Any) -> bool:
            seen.put((request.version(), request.gettimeout(), request.do_handshake_on_connect))
            seen.put(threading.get_ident())
            return True

    server = tls_listener(Server, context)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    assert ask(server, trusting) == b"ABC"
    server.shutdown()
    thread.join()
    server.server_close()
    assert seen.get(timeout=10) == ("TLSv1.3", None, True)
    assert seen.get(timeout=10) == thread.ident


def test_several_threads_share_a_listener(context: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """None of them takes a connection past its handshake while another keeps the listener from making it."""
    versions: queue.Queue[str | None] = queue.Queue()

    class Server(compat.ThreadingTCPServer):
        request_queue_size = 100

        def verify_request(self, request: Any, client_address: Any) -> bool:
            versions.put(request.version())
            return True

    server = tls_listener(Server, context)
    threads = [threading.Thread(target=server.serve_forever) for _ in range(4)]
    clients = [threading.Thread(target=lambda: [ask(server, trusting) for _ in range(25)]) for _ in range(8)]
    for thread in [*threads, *clients]:
        thread.start()
    for client in clients:
        client.join()
    server.shutdown()
    for thread in threads:
        thread.join()
    server.server_close()
    assert [versions.get_nowait() for _ in range(200)] == ["TLSv1.3"] * 200


def test_a_failed_handshake_is_closed_without_hooks(context: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """As in the stdlib, where get_request raises; the next client is served."""
    server = tls_listener(compat.ThreadingTCPServer, context)
    with serving(server):
        with connect(server) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with suppress(ConnectionResetError):  # by what it has not read when it closes
                while client.recv(1000):  # an alert, and the end
                    pass
        with pytest.raises(ssl.SSLError), connect(server) as plain:
            ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")
        assert ask(server, trusting) == b"ABC"


def test_handshake_callbacks_run_outside_a_running_loop(context: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """A server-name callback is user code, and may use asyncio.run like every hook."""
    import asyncio

    names: queue.Queue[str] = queue.Queue()

    def name_callback(_: Any, name: str, __: Any) -> None:
        asyncio.run(asyncio.sleep(0))
        names.put(name)

    context.sni_callback = name_callback
    with serving(tls_listener(compat.TCPServer, context)) as server:
        assert ask(server, trusting) == b"ABC"
    assert names.get(timeout=10) == "localhost"


def test_a_get_request_that_turns_out_to_wrap_is_found_out(context: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """Even when its code does not say so: after the first connection that speaks."""

    class Server(compat.ThreadingTCPServer):
        def get_request(self) -> Any:
            return self.secured(*super().get_request())

        def secured(self, request: Any, address: Any) -> Any:
            return context.wrap_socket(request, server_side=True), address

    with serving(Server(LOOPBACK, echo)) as server:
        assert ask(server, trusting) == b"ABC"
        with connect(server), connect(server):
            assert ask(server, trusting) == b"ABC"


def test_a_listener_without_handshakes_is_left_alone(context: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """With do_handshake_on_connect=False the handler makes the handshake, in its own thread."""

    def handler(request: Any, *_: Any) -> None:
        request.do_handshake()
        echo(request)

    server = compat.ThreadingTCPServer(LOOPBACK, handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with serving(server), connect(server):
        assert ask(server, trusting) == b"ABC"


def test_handle_request_gives_a_silent_client_only_so_long(context: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """There no loop runs beside it, so the next client waits until then."""
    server = tls_listener(compat.TCPServer, context)
    server.ssl_handshake_timeout = 0.1
    with server, connect(server) as silent:
        server.handle_request()
        assert silent.recv(1) == b""
        answers: queue.Queue[bytes] = queue.Queue()
        client = threading.Thread(target=lambda: answers.put(ask(server, trusting)))
        server.ssl_handshake_timeout = 10
        client.start()
        server.handle_request()
        assert answers.get(timeout=10) == b"ABC"
        client.join()


def test_graceful_timeout_wakes_a_handler_that_reads_tls(context: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """The connection below is shut down, which the handler sees as the end of the stream or its error."""
    ended: queue.Queue[bool] = queue.Queue()

    def handler(request: Any, *_: Any) -> None:
        request.sendall(b"ready")
        try:
            ended.put(request.recv(100) == b"")
        except OSError:
            ended.put(True)

    server = tls_listener(compat.ThreadingTCPServer, context, handler)
    server.graceful_timeout = 0.05
    with connect(server) as plain, ExitStack() as stack:
        with serving(server):
            client = stack.enter_context(trusting.wrap_socket(plain, server_hostname="localhost"))
            assert client.recv(100) == b"ready"
        assert ended.get(timeout=10)
    assert server.close_report == compat.CloseReport(completed=0, interrupted=1, running=0)


def test_own_select_loops_can_serve_tls(context: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """`_handle_request_noblock()` without our loop."""
    answers: queue.Queue[bytes] = queue.Queue()
    with tls_listener(compat.ThreadingTCPServer, context) as server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        client = threading.Thread(target=lambda: answers.put(ask(server, trusting)))
        client.start()
        assert selector.select(10)
        server._handle_request_noblock()
        assert answers.get(timeout=10) == b"ABC"
        client.join()


@pytest.mark.parametrize("maker", list(MAKERS))
def test_a_serial_servers_next_client_does_not_meet_the_last_ones_error(
    maker: str, context: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """OpenSSL keeps it for the thread, and from 3.4 on tells it to whoever only has to wait."""
    seen: queue.Queue[type] = queue.Queue()
    breaks = iter([True, False])

    def handler(request: Any, *_: Any) -> None:
        if next(breaks):
            socket.socket.shutdown(request, socket.SHUT_WR)
        request.settimeout(0.01)
        try:
            request.sendall(b"ready")
            request.recv(100)
        except OSError as error:
            seen.put(type(error))

    server = MAKERS[maker](compat.TCPServer, context)
    server.RequestHandlerClass = handler
    with serving(server):
        for broken in (True, False):  # what breaks is told in several ways
            with trusting.wrap_socket(connect(server), server_hostname="localhost"):
                assert (seen.get(timeout=20) is not TimeoutError) == broken
