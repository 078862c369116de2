"""PostingConnection: a connection that takes bytes without waiting, up to a limit."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from .octets import octets
from .outbox import Outbox
from .states import behind_posts, refuse_busy, refuse_undelivered
from .tls_connection import TLSConnection

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from ..net.addresses import Address
    from ..net.poller import Poller

_NO_ROOM = (BlockingIOError, ssl.SSLWantWriteError, anyio.BusyResourceError)


@dataclass(frozen=True, slots=True)
class PostLimit:
    """How much may wait for a slow peer.

    Attributes:
        max_unsent: bytes for each connection.
        exceeded: called with the connection that is given up for it.
    """

    max_unsent: int
    exceeded: Callable[[Any], object]


class PostingConnection(TLSConnection):
    """A connection, and what `post()` changes about it once something waits."""

    __slots__ = ("_limit", "_outbox")

    bytes_received: int
    bytes_sent: int

    def __init__(
        self, poller: Poller, sock: socket.socket, peer_address: Address, closing: asyncio.Event, limit: PostLimit
    ) -> None:
        TLSConnection.__init__(self, poller, sock, peer_address, closing)
        self._limit = limit
        self._outbox: Outbox | None = None

    def post(self, data: bytes | bytearray | memoryview) -> bool:
        """Send without waiting: what the kernel has no room for now is kept, and sent in order.

        For one who has something for many, as in a chat: a slow peer delays nobody. Posts and
        `send()` keep their order: a post during another task's `send()` comes behind it. When the
        handler ends, what is kept is delivered as after a `send()`, see `aclose()`. If more than
        `max_unsent` bytes are kept (see `serve()`), the peer is too slow: the connection is
        aborted, counted in `ServerStats.slow_consumers`, and its handler gets
        `ClosedResourceError`.

        Args:
            data: any bytes-like object; a copy is kept, unless it is `bytes`.

        Returns:
            whether it is on its way. False if the connection broke or was aborted for its
            slowness: its own handler learns that, whoever posts need not care.

        Raises:
            anyio.ClosedResourceError: the stream has been closed, or `send_eof()` called.
            TypeError: it is not bytes-like.
        """
        if type(data) is not bytes:
            data = bytes(octets(data, "post"))
        if self._outbox:
            return self._keep(data)
        try:
            sent = self._send(data)
        except _NO_ROOM:
            sent = 0
        except anyio.BrokenResourceError:
            return False
        except anyio.ClosedResourceError:
            if self._send is refuse_undelivered:
                return False
            raise
        except OSError as exc:
            self._broken(exc)
            return False
        self.bytes_sent += sent
        self._answered = self.bytes_received
        return sent == len(data) or self._keep(memoryview(data)[sent:])

    def _keep(self, rest: bytes | memoryview) -> bool:
        outbox = self._outbox
        if outbox is None:
            outbox = self._outbox = Outbox(self)
        outbox.add(rest)
        self.answer()
        if self._send not in {refuse_busy, behind_posts}:
            outbox.resume()
        if outbox.size <= self._limit.max_unsent:
            return True
        self._send = refuse_undelivered
        self.abort()
        self._limit.exceeded(self)
        return False

    async def _flush_posts(self) -> None:
        """Wait until the kernel has what was posted so far."""
        while self._outbox:
            await self._outbox.take_turn()
            self._outbox.resume()

    def _on_writable(self) -> None:
        if self._outbox is not None and self._outbox.flushing:
            self._outbox.flush()
        else:
            super()._on_writable()

    # -- the end

    def _untaken(self) -> int:
        return super()._untaken() + (self._outbox.size if self._outbox else 0)

    @property
    def _is_torn(self) -> bool:
        waits_its_turn = self._outbox is not None and self._outbox.flushing
        return not waits_its_turn and super()._is_torn

    def _close_if_quiet(self) -> bool:
        waiting = self._outbox and self._sock.fileno() == self._fd
        return not waiting and super()._close_if_quiet()

    async def _close_notify(self) -> None:
        if self._outbox:
            await self._outbox.deliver()
        await super()._close_notify()

    def _broken(self, exc: OSError) -> anyio.BrokenResourceError:
        if self._outbox is not None:
            self._outbox.discard()
        return super()._broken(exc)

    def _let_go(self) -> None:
        if self._outbox:
            self._send = refuse_undelivered
        super()._let_go()

    def _release(self) -> None:
        super()._release()
        self._outbox = None
