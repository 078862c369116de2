"""HTTPServer: HTTP on the supervisor's selector, without loop or threads: it can still fork.

    accepted -> head read -> answered, perhaps after the workers were asked -> sent -> closed

All of that within PATIENCE: a slower client is cut off. When there are too many clients, the oldest
is cut off, so that a new probe is answered.
"""

from __future__ import annotations

import contextlib
import functools
import selectors
import time
from typing import TYPE_CHECKING

from ..monitoring import http
from ..monitoring.monitor import MOST_CLIENTS, PATIENCE
from .slot import NEVER

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from ..listening.binding import BoundSocket

# Seconds without accepting after it has failed, most likely for lack of descriptors.
_PAUSE = 1.0


class _Exchange:
    """One connection: a request and its response."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = bytearray()
        self.to_send = memoryview(b"")
        self.end_at = time.monotonic() + PATIENCE


class HTTPServer:
    """The listening sockets and all connections.

    Args:
        selector: its owner calls the data of each ready key, without arguments.
        bound: sockets to listen on. Closed by `close()`.
        answer: called with a request and a function to be called with the response, now or later.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        bound: Sequence[BoundSocket],
        answer: Callable[[http.Request, Callable[[http.Response], object]], object],
    ) -> None:
        self._selector = selector
        self._bound = bound
        self._answer = answer
        self._exchanges: dict[_Exchange, None] = {}  # the oldest first
        self._resume_at = NEVER
        self._listen()

    @property
    def due(self) -> float:
        """When to call `expire()`."""
        return min((self._resume_at, *(exchange.end_at for exchange in self._exchanges)))

    def expire(self, now: float) -> None:
        """Cut off clients that are too slow."""
        if self._resume_at <= now:
            self._resume_at = NEVER
            self._listen()
        for exchange in [one for one in self._exchanges if one.end_at <= now]:
            self._drop(exchange)

    def close(self) -> None:
        """Close everything but the selector, which in a forked process is the supervisor's."""
        for exchange in self._exchanges:
            exchange.sock.close()
        for bound in self._bound:
            bound.close()

    def _listen(self) -> None:
        for bound in self._bound:
            self._selector.register(bound.sock, selectors.EVENT_READ, functools.partial(self._on_client, bound.sock))

    def _on_client(self, listener: socket.socket) -> None:
        if self._resume_at < NEVER:  # accepting on another listener failed in this turn
            return
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            for bound in self._bound:
                self._selector.unregister(bound.sock)
            self._resume_at = time.monotonic() + _PAUSE
            return
        sock.setblocking(False)
        if len(self._exchanges) >= MOST_CLIENTS:
            self._drop(next(iter(self._exchanges)))
        exchange = _Exchange(sock)
        self._exchanges[exchange] = None
        self._selector.register(sock, selectors.EVENT_READ, functools.partial(self._on_readable, exchange))

    def _on_readable(self, exchange: _Exchange) -> None:
        if exchange not in self._exchanges:  # dropped in this turn
            return
        try:
            data = exchange.sock.recv(http.LONGEST_HEAD)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        exchange.received += data
        if not data:
            self._drop(exchange)
        elif http.END_OF_HEAD in exchange.received:
            self._selector.unregister(exchange.sock)  # until there is something to send
            self._on_head(exchange, exchange.received.partition(http.END_OF_HEAD)[0])
        elif len(exchange.received) >= http.LONGEST_HEAD:
            self._selector.unregister(exchange.sock)
            self._send(exchange, http.TOO_LONG.encode())

    def _on_head(self, exchange: _Exchange, head: bytearray) -> None:
        request = http.parse(bytes(head))
        if isinstance(request, http.Response):
            self._send(exchange, request.encode())
            return
        head_only = request.head_only

        def answered(response: http.Response) -> None:
            if exchange in self._exchanges:
                self._send(exchange, response.encode(head_only=head_only))

        self._answer(request, answered)

    def _send(self, exchange: _Exchange, data: bytes) -> None:
        exchange.to_send = memoryview(data)
        self._selector.register(exchange.sock, selectors.EVENT_WRITE, functools.partial(self._on_writable, exchange))

    def _on_writable(self, exchange: _Exchange) -> None:
        if exchange not in self._exchanges:
            return
        try:
            exchange.to_send = exchange.to_send[exchange.sock.send(exchange.to_send) :]
        except BlockingIOError:
            return
        except OSError:
            exchange.to_send = exchange.to_send[:0]
        if not exchange.to_send:
            self._drop(exchange)

    def _drop(self, exchange: _Exchange) -> None:
        del self._exchanges[exchange]
        with contextlib.suppress(KeyError):  # not registered while it waits for its answer
            self._selector.unregister(exchange.sock)
        exchange.sock.close()
