"""Threads, contexts and exceptions of handlers, under one body for socketserver and compat."""

import asyncio
import contextvars
import functools
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import compat
from tests.kit.compat import LOOPBACK, ask, connect, drained, echo, meet, serving

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
    rounds = 8 if ss is compat else 2
    for _ in range(rounds):
        met = threading.Semaphore(0)
        barrier = threading.Barrier(200, action=functools.partial(met.release, 200))
        server_class = type("Server", (getattr(ss, kind),), {"request_queue_size": 300})
        with serving(server_class(LOOPBACK, lambda *_, barrier=barrier: barrier.wait(20))) as server:
            meet(server, met)


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


def test_clients_that_get_request_refuses_do_not_delay_the_others(ss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are; nor is anything wrong with the listener."""
    monkeypatch.setattr("compat.intake.loop.RETRY_SECONDS", 1000)  # no client would wait for that
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
    with serving(server):
        assert ask(server, b"abc") == b"ABC"
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
