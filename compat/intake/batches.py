"""Batches: how requests are taken without their hooks, where all of these are the standard ones.

What they do is known: `get_request()` accepts or receives, `verify_request()` says yes, and
`process_request()` of `ThreadingMixIn` adds a call to its pool. So nobody can tell the difference,
except by the time that it takes.
"""

import _socket
import os
import socket
import socketserver
import sys
from collections.abc import Callable
from typing import Any

_VERIFY = socketserver.BaseServer.verify_request


class Source:
    """Where a batch comes from.

    Attributes:
        take: Return a request and its client's address.
        looks: How many requests need a look whether one more is there. After them `take` may be
            called without, as it raises BlockingIOError.
    """

    __slots__ = ("looks", "take")

    def __init__(self, take: Callable[[], tuple[Any, Any]], looks: int) -> None:
        self.take: Callable[[], tuple[Any, Any]] = take
        self.looks: int = looks


def function_of(hook: Any) -> Any:
    """Return the function of a bound hook; None for anything else."""
    return getattr(hook, "__func__", None)


def plain_source(server: Any, descriptor: int) -> Source | None:
    """Return what does as `get_request()` and `verify_request()`; None if one has to be called."""
    sock: Any = getattr(server, "socket", None)
    make = _MAKERS.get(function_of(server.get_request))
    if (
        make is None
        or function_of(server.verify_request) is not _VERIFY
        # Not TLS, and not gevent's, which waits where it was told not to.
        or getattr(type(sock), "recvfrom", None) is not _socket.socket.recvfrom
        or sock.fileno() != descriptor
        or sock.gettimeout() is not None
    ):
        return None
    return make(server)


def _connections(server: Any) -> Source:
    listener = server.socket
    descriptor, accept = listener.fileno(), listener.accept

    def take() -> tuple[Any, Any]:
        os.set_blocking(descriptor, False)  # each time: a loop in another process may have restored it
        request: tuple[Any, Any] = accept()
        return request

    return Source(take, sys.maxsize)  # as it may be restored just now


def _datagrams(server: Any) -> Source:
    sock, size = server.socket, server.max_packet_size
    receive, flags = sock.recvfrom, socket.MSG_DONTWAIT

    def take() -> tuple[Any, Any]:
        data, client_address = receive(size, flags)
        return (data, sock), client_address

    # Where there are two there may be many, and an error at the end costs less than all the looks.
    return Source(take, 1)


_MAKERS: dict[Any, Callable[[Any], Source]] = {
    socketserver.TCPServer.get_request: _connections,
    socketserver.UDPServer.get_request: _datagrams,
}
