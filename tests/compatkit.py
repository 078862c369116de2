"""What the tests of compat share: socketserver and compat side by side, a server in a thread, and clients of it."""

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import compat

if TYPE_CHECKING:
    import queue

LOOPBACK = ("127.0.0.1", 0)


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
    """A connection whose operations give up after twenty seconds."""
    return socket.create_connection(server.server_address, timeout=20)


def ask(server: Any, data: bytes = b"") -> bytes:
    """Everything that the server answers."""
    with connect(server) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def meet(server: Any, met: threading.Semaphore) -> None:
    """Be two hundred clients at once, until that many handlers have told that they met."""
    clients = []
    for _ in range(200):
        clients.append(socket.socket(server.address_family, server.socket_type))
        clients[-1].connect(server.server_address)
        clients[-1].send(b"x")
    for _ in range(200):
        assert met.acquire(timeout=20)
    for client in clients:
        client.close()


def echo(request: Any, address: object, server: object) -> None:
    """The smallest handler of a stream server."""
    request.sendall(request.recv(1024).upper())


def drained(log: "queue.Queue[Any]") -> list[Any]:
    """What is in a queue."""
    return [log.get(timeout=10) for _ in range(log.qsize())]


def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody tells of, for twenty seconds at most."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Echo(compat.BaseRequestHandler):
    """Answers until the client has closed."""

    def handle(self) -> None:
        while data := self.request.recv(1024):
            self.request.sendall(data.upper())
