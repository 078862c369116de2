"""Servers of compat in a thread, handlers for them, and clients."""

import queue
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import compat
from tests.kit import sockets

LOOPBACK = ("127.0.0.1", 0)


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
    """A connection whose operations give up after a while."""
    return sockets.connect(server.server_address)


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


def echo(request: Any, *_: object) -> None:
    """The smallest handler of a stream server."""
    request.sendall(request.recv(1024).upper())


def drained(log: "queue.Queue[Any]") -> list[Any]:
    """What is in a queue."""
    return [log.get(timeout=10) for _ in range(log.qsize())]


class Echo(compat.BaseRequestHandler):
    """Answers until the client has closed."""

    def handle(self) -> None:
        while data := self.request.recv(1024):
            self.request.sendall(data.upper())


class Upper(socketserver.StreamRequestHandler):
    """Lines in capitals, until the peer ends."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class UpperDatagram(socketserver.DatagramRequestHandler):
    """A datagram in capitals."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.read().upper())
