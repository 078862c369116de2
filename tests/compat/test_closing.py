"""Closing, and the names that a module has, under one body for socketserver and compat."""

import asyncio
import os
import queue
import signal
import socket
import socketserver
import threading
from types import ModuleType
from typing import Any

import pytest

import compat
from tests.kit.compat import LOOPBACK, ask, connect, echo, serving

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
    """Every public one, with the same value, except that the listen queue is 3.15's with every Python."""
    ours, theirs = getattr(compat, kind), getattr(socketserver, kind)
    for name in set(dir(theirs)) - {"request_queue_size"}:
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
