"""What programs build on: the hooks, their order, their threads. One body for socketserver and compat.

The standard library is executed, not remembered: a test that fails for it would be a wrong test.
"""

import asyncio
import contextvars
import functools
import os
import queue
import signal
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

import compat

LOOPBACK = ("127.0.0.1", 0)
ORDER = [
    "get_request",
    "verify_request",
    "process_request",
    "process_request_thread",
    "finish_request",
    "shutdown_request",
    "close_request",
]


@pytest.fixture(params=[socketserver, compat], ids=["socketserver", "compat"])
def ss(request: pytest.FixtureRequest) -> Any:
    """The module under test, or the one that it has to behave like."""
    return request.param


@contextmanager
def serving(server: Any) -> Iterator[Any]:
    """Serve in a thread, and close the server afterwards."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def connect(server: Any) -> socket.socket:
    """A connection whose operations give up after ten seconds."""
    return socket.create_connection(server.server_address, timeout=10)


def ask(server: Any, data: bytes = b"") -> bytes:
    """Everything that the server answers."""
    with connect(server) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def echo(request: Any, address: object, server: object) -> None:
    """The smallest handler of a stream server."""
    request.sendall(request.recv(1024).upper())


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


def drained(log: "queue.Queue[Any]") -> list[Any]:
    """What is in a queue."""
    return [log.get(timeout=10) for _ in range(log.qsize())]


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


# Threads and contexts.


def test_get_request_may_accept_twice(ss: Any) -> None:
    """A control connection and one for data: the second `accept()` waits for it."""

    class Server(ss.TCPServer):  # type: ignore[misc]
        def get_request(self) -> Any:
            first, _ = self.socket.accept()
            first.sendall(b"and the other")
            second, address = self.socket.accept()
            first.close()
            return second, address

    with serving(Server(LOOPBACK, echo)) as server, connect(server) as control:
        assert control.recv(100) == b"and the other"
        assert ask(server, b"abc") == b"ABC"


def test_the_listener_may_be_any_object_with_accept_and_fileno(ss: Any) -> None:
    """It need not know of timeouts."""

    class Listener:
        def __init__(self, listener: socket.socket) -> None:
            self.accept, self.fileno, self.close = listener.accept, listener.fileno, listener.close

    server = ss.TCPServer(LOOPBACK, echo)
    server.socket = Listener(server.socket)
    with serving(server):
        assert ask(server, b"abc") == b"ABC"


def test_a_descriptor_that_is_not_the_listeners_is_left_as_it_is(ss: Any) -> None:
    """It may be shared with others, as standard input is."""
    reading, writing = os.pipe()
    blocking: queue.Queue[bool] = queue.Queue()

    class Server(ss.TCPServer):  # type: ignore[misc]
        def fileno(self) -> int:
            return reading

        def get_request(self) -> Any:
            blocking.put(os.get_blocking(reading))
            return os.read(reading, 1), "pipe"

        def process_request(self, request: Any, client_address: Any) -> None:
            pass

    with serving(Server(LOOPBACK, echo)):
        os.write(writing, b"x")
        assert blocking.get(timeout=10)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("kind", ["TCPServer", "UDPServer"])
def test_without_a_mix_in_everything_is_serial_in_the_serving_thread(ss: Any, kind: str) -> None:
    """And outside any running loop: handlers may use asyncio.run."""
    threads: queue.Queue[int] = queue.Queue()

    class Server(getattr(ss, kind)):  # type: ignore[misc]
        def verify_request(self, request: Any, address: Any) -> bool:
            asyncio.run(asyncio.sleep(0))
            return True

        def service_actions(self) -> None:
            asyncio.run(asyncio.sleep(0))

    def handler(*_: Any) -> None:
        asyncio.run(asyncio.sleep(0))
        threads.put(threading.get_ident())

    server = Server(LOOPBACK, handler)
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for _ in range(3):
            with socket.socket(server.address_family, server.socket_type) as client:
                client.connect(server.server_address)
                client.send(b"x")
                assert threads.get(timeout=10) == thread.ident
        server.shutdown()
        thread.join()


def test_handlers_in_threads_start_with_an_empty_context(ss: Any) -> None:
    """Neither the serving thread's context nor that of an earlier request shows."""
    variable: contextvars.ContextVar[bytes] = contextvars.ContextVar("variable", default=b"empty")

    def handler(request: Any, *_: Any) -> None:
        request.sendall(variable.get())
        variable.set(b"leaked")

    with serving(ss.ThreadingTCPServer(LOOPBACK, handler)) as server:
        assert [ask(server) for _ in range(5)] == [b"empty"] * 5


def test_handlers_in_threads_start_without_an_event_loop(ss: Any) -> None:
    """Those that make one where there is none, and close it, would meet a closed one the next time."""

    def handle(request: Any, *_: object) -> None:
        try:
            loop = asyncio.get_event_loop()
        except RuntimeError:
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        request.sendall(b"done")

    with serving(ss.ThreadingTCPServer(LOOPBACK, handle)) as server:
        assert [ask(server) for _ in range(3)] == [b"done"] * 3


def test_live_handlers_have_unique_thread_names(ss: Any) -> None:
    """Some programs key their sessions by them."""
    together = threading.Barrier(20)

    def handler(request: Any, *_: Any) -> None:
        together.wait(10)
        request.sendall(threading.current_thread().name.encode())

    server_class = type("Server", (ss.ThreadingTCPServer,), {"request_queue_size": 50})
    with serving(server_class(LOOPBACK, handler)) as server:
        clients = [connect(server) for _ in range(20)]
        assert len({client.recv(100) for client in clients}) == 20
        for client in clients:
            client.close()


@pytest.mark.parametrize("kind", ["ThreadingTCPServer", "ThreadingUDPServer"])
def test_two_hundred_handlers_on_one_barrier_meet(ss: Any, kind: str) -> None:
    """The contract of ThreadingMixIn: no request waits for another. In every round."""
    rounds = 15 if ss is compat else 2
    for _ in range(rounds):
        met = threading.Semaphore(0)
        barrier = threading.Barrier(200, action=functools.partial(met.release, 200))
        server_class = type("Server", (getattr(ss, kind),), {"request_queue_size": 300})
        with serving(server_class(LOOPBACK, lambda *_, barrier=barrier: barrier.wait(20))) as server:
            clients = []
            for _ in range(200):
                clients.append(socket.socket(server.address_family, server.socket_type))
                clients[-1].connect(server.server_address)
                clients[-1].send(b"x")
            for _ in range(200):
                assert met.acquire(timeout=20)
            for client in clients:
                client.close()


# Exceptions.


class Faulty:
    """Handlers that note their steps, and fail at one of them."""

    def __init__(self, ss: Any, fails_in: str, error: type[BaseException] = ValueError) -> None:
        self.steps: queue.Queue[str] = queue.Queue()
        steps = self.steps

        def step(name: str) -> Callable[[Any], None]:
            def run(_: Any) -> None:
                steps.put(name)
                if name == fails_in:
                    raise error(name)

            return run

        names = ("setup", "handle", "finish")
        self.handler = type("Handler", (ss.BaseRequestHandler,), {name: step(name) for name in names})


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer"])
@pytest.mark.parametrize(
    ("fails_in", "steps"),
    [
        ("setup", ["setup"]),
        ("handle", ["setup", "handle", "finish"]),
        ("finish", ["setup", "handle", "finish"]),
    ],
)
def test_a_handler_that_fails_costs_its_own_request(ss: Any, kind: str, fails_in: str, steps: list[str]) -> None:
    """`handle_error` runs inside the except block with the request still open; the server goes on."""
    faulty = Faulty(ss, fails_in)
    errors: queue.Queue[Any] = queue.Queue()

    class Server(getattr(ss, kind)):  # type: ignore[misc]
        def handle_error(self, request: Any, address: Any) -> None:
            errors.put((sys.exc_info()[0], request.fileno() >= 0))

    with serving(Server(LOOPBACK, faulty.handler)) as server:
        for _ in range(2):
            assert ask(server) == b""
            assert errors.get(timeout=10) == (ValueError, True)
    assert drained(faulty.steps) == steps * 2


def test_the_default_report_goes_to_standard_error(ss: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """With the client's address and the traceback."""
    with serving(ss.ThreadingTCPServer(LOOPBACK, Faulty(ss, "handle").handler)) as server:
        assert ask(server) == b""
    told = capsys.readouterr().err
    assert "Exception occurred during processing of request from ('127.0.0.1'" in told
    assert "ValueError: handle" in told


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_is_no_exception_comes_out_of_a_plain_server(ss: Any, error: type[BaseException]) -> None:
    """After the request has been shut down."""
    with ss.TCPServer(LOOPBACK, Faulty(ss, "handle", error).handler) as server, connect(server) as client:
        with pytest.raises(error):
            server.serve_forever()
        assert client.recv(1) == b""


def test_system_exit_in_a_thread_goes_to_the_threads_hook(ss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends neither the server nor, when reused, the thread."""
    seen: queue.Queue[threading.ExceptHookArgs] = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", seen.put)
    with serving(ss.ThreadingTCPServer(LOOPBACK, Faulty(ss, "handle", SystemExit).handler)) as server:
        for _ in range(2):
            assert ask(server) == b""
            assert seen.get(timeout=10).exc_type is SystemExit


@pytest.mark.parametrize("hook", ["get_request", "verify_request"])
def test_an_exception_before_processing_comes_out(ss: Any, hook: str) -> None:
    """The stdlib surrounds only `process_request`; the server can serve again afterwards."""

    class Server(ss.TCPServer):  # type: ignore[misc]
        pass

    def fail(self: Any, request: Any = None, _: Any = None) -> Any:
        if request is not None:
            request.close()
        raise ZeroDivisionError(hook)

    setattr(Server, hook, fail)
    with Server(LOOPBACK, echo) as server:
        with connect(server), pytest.raises(ZeroDivisionError):
            server.serve_forever()
        delattr(Server, hook)
        with serving(server):
            assert ask(server, b"abc") == b"ABC"


def test_an_oserror_of_get_request_is_passed_over(ss: Any) -> None:
    """The client may have gone away between the wake-up and the accept."""

    class Server(ss.ThreadingTCPServer):  # type: ignore[misc]
        failures = 3

        def get_request(self) -> Any:
            if self.failures:
                self.failures -= 1
                raise ConnectionAbortedError
            return super().get_request()

    with serving(Server(LOOPBACK, echo)) as server:
        assert ask(server, b"abc") == b"ABC"
        assert server.failures == 0


def test_clients_that_get_request_refuses_do_not_delay_the_others(ss: Any) -> None:
    """However many there are; nor is anything wrong with the listener."""
    refused = 40

    class Server(ss.TCPServer):  # type: ignore[misc]
        request_queue_size = 2 * refused
        count = 0

        def get_request(self) -> Any:
            request, address = super().get_request()
            self.count += 1
            if self.count <= refused:
                request.close()
                raise OSError("not on the list")
            return request, address

    server = Server(LOOPBACK, echo)
    clients = [connect(server) for _ in range(refused)]
    begun = time.monotonic()
    with serving(server):
        assert ask(server, b"abc") == b"ABC"
    assert time.monotonic() - begun < 1  # 1.5 s with the pause that the lack of descriptors deserves
    for client in clients:
        client.close()


def test_an_exception_of_process_request_is_an_error_of_the_request(ss: Any) -> None:
    """As when no thread can be started: reported, shut down, the server goes on."""
    errors: queue.Queue[Any] = queue.Queue()

    class Server(ss.TCPServer):  # type: ignore[misc]
        def process_request(self, request: Any, address: Any) -> None:
            raise RuntimeError("can't start new thread")

        def handle_error(self, request: Any, address: Any) -> None:
            errors.put(sys.exc_info()[0])

    with serving(Server(LOOPBACK, echo)) as server:
        assert ask(server) == b""
        assert errors.get(timeout=10) is RuntimeError


# Serving, and no longer serving.


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


# Closing.


@pytest.mark.parametrize(
    ("daemon", "block", "waits"),
    [(False, True, True), (False, False, False), (True, True, False), (True, False, False)],
)
def test_server_close_waits_as_told(ss: Any, daemon: bool, block: bool, waits: bool) -> None:
    """For the non-daemonic threads, when `block_on_close` says so; attributes may be set after __init__."""
    begun, gate = threading.Event(), threading.Event()
    daemonic: queue.Queue[bool] = queue.Queue()

    def handler(*_: Any) -> None:
        daemonic.put(threading.current_thread().daemon)
        begun.set()
        gate.wait(20)

    server = ss.ThreadingTCPServer(LOOPBACK, handler)
    server.daemon_threads, server.block_on_close = daemon, block
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    with connect(server):
        assert begun.wait(10)
        server.shutdown()
        thread.join()
        closing = threading.Thread(target=server.server_close)
        closing.start()
        closing.join(0.2 if waits else 10)
        assert closing.is_alive() == waits
        assert server.socket.fileno() == -1
        gate.set()
        closing.join(10)
        assert not closing.is_alive()
    assert daemonic.get() == daemon


def test_server_close_in_a_handler_is_an_error_and_no_deadlock(ss: Any) -> None:
    """A thread cannot wait for itself."""
    errors: queue.Queue[str] = queue.Queue()

    def handler(_: Any, __: Any, server: Any) -> None:
        try:
            server.server_close()
        except RuntimeError as error:
            errors.put(str(error))

    with serving(ss.ThreadingTCPServer(LOOPBACK, handler)) as server, connect(server):
        assert errors.get(timeout=10) == "cannot join current thread"


def test_the_list_of_threads_does_not_grow_with_finished_requests(ss: Any) -> None:
    """`_threads` is sized, as the stdlib's own test knows."""
    with serving(ss.ThreadingTCPServer(LOOPBACK, echo)) as server:
        for _ in range(60):
            assert ask(server, b"abc") == b"ABC"
        assert len(server._threads) < 20


def test_closing_twice_is_harmless(ss: Any) -> None:
    """Also inside a with statement."""
    with ss.ThreadingTCPServer(LOOPBACK, echo) as server:
        server.server_close()
    server.server_close()


def test_a_bind_that_fails_closes_the_socket(ss: Any) -> None:
    """And the error comes out of the constructor."""
    with ss.TCPServer(LOOPBACK, echo) as server, pytest.raises(OSError, match="Address already in use"):
        ss.TCPServer(server.server_address, echo)


def test_signal_handlers_run_while_it_waits_and_outside_a_loop(ss: Any) -> None:
    """So they may `asyncio.run` a clean-up; and the program's wake-up descriptor hears of the signal too."""
    results: list[int] = []
    server = ss.TCPServer(LOOPBACK, echo)

    def clean_up(*_: object) -> None:
        results.append(asyncio.run(asyncio.sleep(0, 7)))
        server._BaseServer__shutdown_request = True

    reading, writing = socket.socketpair()
    writing.setblocking(False)
    reading.settimeout(10)
    previous = signal.signal(signal.SIGUSR1, clean_up)
    signal.set_wakeup_fd(writing.fileno())
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        timer.start()
        server.serve_forever(0.02)
        assert signal.set_wakeup_fd(-1) == writing.fileno()
        assert reading.recv(10) == bytes([signal.SIGUSR1])
    finally:
        signal.signal(signal.SIGUSR1, previous)
        timer.join()
        server.server_close()
        reading.close()
        writing.close()
    assert results == [7]


# Names.


def test_every_name_is_there() -> None:
    """Of this interpreter's socketserver, and the classes are subclasses of their namesakes."""
    for name in socketserver.__all__:
        assert issubclass(getattr(compat, name), getattr(socketserver, name))
        assert name in compat.__all__
    assert {"ForkingUnixStreamServer", "ForkingUnixDatagramServer"} <= set(compat.__all__)
    assert compat.__all__ == sorted(compat.__all__)
    assert all(hasattr(compat, name) for name in compat.__all__)


def test_importing_everything_brings_no_other_names(ss: Any) -> None:
    """Programs do `from socketserver import *` after they have defined names of their own."""
    extra = {"ForkingUnixStreamServer", "ForkingUnixDatagramServer"}  # Python 3.11 has no such names
    assert set(ss.__all__) - extra == set(socketserver.__all__) - extra


def test_other_names_of_the_original_are_found() -> None:
    """Programs reach for private names and for the modules that socketserver imports."""
    module: Any = compat
    assert module._SocketWriter is vars(socketserver)["_SocketWriter"]
    assert isinstance(module.selectors, ModuleType)
    with pytest.raises(AttributeError, match="neither module 'compat' nor 'socketserver'"):
        _ = module.no_such_name


def test_a_class_attribute_of_one_class_does_not_show_in_its_siblings(ss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """People set `TCPServer.allow_reuse_address = True` and expect UDPServer to be left alone."""
    monkeypatch.setattr(ss.TCPServer, "allow_reuse_address", True)
    monkeypatch.setattr(ss.UDPServer, "max_packet_size", 1)
    assert ss.ThreadingTCPServer.allow_reuse_address is True
    assert ss.UDPServer.allow_reuse_address is False
    assert ss.ThreadingUDPServer.max_packet_size == 1


def test_a_patched_base_constructor_is_called(ss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing tools wrap `BaseServer.__init__`."""
    built: list[str] = []
    original = ss.BaseServer.__init__

    def init(self: Any, *args: Any) -> None:
        built.append(type(self).__name__)
        original(self, *args)

    monkeypatch.setattr(ss.BaseServer, "__init__", init)
    ss.ThreadingUDPServer(LOOPBACK, echo).server_close()
    assert built == ["ThreadingUDPServer"]


@pytest.mark.parametrize("kind", ["TCPServer", "UDPServer", "ForkingTCPServer", "ThreadingUDPServer"])
def test_attributes_are_the_stdlibs(kind: str) -> None:
    """Every public one, with the same value."""
    ours, theirs = getattr(compat, kind), getattr(socketserver, kind)
    for name in dir(theirs):
        if not name.startswith("_") and not callable(getattr(theirs, name)):
            assert getattr(ours, name) == getattr(theirs, name), name


def test_mix_ins_also_fit_the_other_modules_servers() -> None:
    """A program that is only half migrated works."""
    half: Any = type("Half", (compat.ThreadingMixIn, socketserver.TCPServer), {})
    other: Any = type("Other", (socketserver.ThreadingMixIn, compat.TCPServer), {})
    for server_class in (half, other):
        with serving(server_class(LOOPBACK, echo)) as server:
            assert ask(server, b"abc") == b"ABC"


def test_subclasses_without_a_socket_can_finish_a_request(ss: Any) -> None:
    """As wsgiref's own tests do."""

    class Socketless(ss.TCPServer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.RequestHandlerClass = lambda request, address, server: request.append((address, server))

    server = Socketless()
    request: list[Any] = []
    server.finish_request(request, "somewhere")
    assert request == [("somewhere", server)]
