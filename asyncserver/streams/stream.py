"""Stream: one connection's bytes, an anyio ByteStream.

Theory of operation:

* No bytes are held in between. `receive()` waits until the loop says readable, then takes bytes out
  of the kernel itself, one `recv` per wake-up so that no connection can starve the others; `send()`
  returns when the kernel has every byte. While a handler does not read, the kernel's buffer fills,
  and TCP slows the peer down: flow control needs no code here. Only `receive_exactly` and
  `receive_until` keep what they have read beyond their answer, in one buffer.
* The descriptor is watched from the first wait on, or the second receive: what a client sends as
  it connects is mostly here, and what follows is not. When it turns readable and no task waits, the
  watch ends; an unwatched stream tries `recv` first, and watches again when that would block.
* What is posted and finds no room waits in an outbox, up to a limit (outbox.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyio.abc import ByteStream, SocketAttribute

from ..connections.departure import Departure, News
from ..connections.lingering import close_politely
from ..connections.loan import Loan
from ..connections.states import refuse_after_eof, refuse_busy, refuse_closed
from ..exceptions import InjectionError
from ..tls.typed_attributes import socket_attributes
from .receiving import Receiving
from .sending import Sending

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Mapping

__all__ = ["Stream"]


class Stream(Sending, Receiving, ByteStream):
    """One connection, as its handler sees it. Its server closes it when the handler ends.

    One task may receive while another sends. Two that receive at once, or two that send,
    get `BusyResourceError`, and nothing is lost. Cancelling a receive loses nothing
    either. Cancelling `send` may leave a part of its data sent, and how much is not
    known: the peer can no longer see where a message begins.

    Example::

        async def handler(stream):
            size = int.from_bytes(await stream.receive_exactly(2))
            message = await stream.receive_exactly(size)
            await stream.send(b"%d bytes, thank you" % len(message))

    Attributes:
        proxy_header: what the proxy in front has said, with `proxy_protocol=True`; then
            `peer_address` is the client's.
        peer_address: (host, port), of IPv6 (host, port, flowinfo, scope); of a Unix peer
            its path, mostly "".
        bytes_received: payload bytes received so far.
        bytes_sent: payload bytes sent so far.
    """

    __slots__ = ()

    bytes_received: int
    bytes_sent: int

    def __repr__(self) -> str:
        """Show the peer and the state."""
        return f"<Stream {self.peer_address!r} {'closed' if self._fd < 0 else 'open'}>"

    # -- ending

    async def wait_disconnected(self) -> None:
        """Wait until the peer has ended its side, or the connection is broken; takes no bytes.

        For a handler that works for long, or pushes, and wants to stop when nobody is there::

            async with asyncio.TaskGroup() as group:
                work = group.create_task(push_news(stream))
                await stream.wait_disconnected()
                work.cancel()

        Any number of tasks may wait, while others receive and send. It returns:

        * when the peer closes, ends its side, or resets; bytes that came before stay to be
          received, and do not delay it, unless another task is receiving them;
        * when a send or receive finds the connection broken;
        * with the server's `keepalive`, when the peer's host has vanished. Without it a host that
          is gone is not noticed here, as long as nothing is sent to it.

        A peer that has only ended its side (`shutdown(SHUT_WR)`) looks like one that has closed,
        until something is sent to it (RFC 9293, 3.6): the stream stays as it is, and what the
        handler still sends reaches the first, and breaks on the second. Under TLS the end of TCP
        counts: a close_notify alone (RFC 8446, 6.1) is a record like others, for `receive()`.
        A drain of the server does not end the wait; `closing` tells of it.

        Cancelled, it leaves nothing behind.

        Raises:
            anyio.ClosedResourceError: the stream has been closed on this side.
        """
        if self._departure is None:
            self._departure = Departure(self)
        await self._departure.wait()

    async def aclose(self) -> None:
        """Close both directions; tasks that wait on the stream get `ClosedResourceError`.

        What was sent still reaches the peer. Mostly the kernel does that alone, and this does not
        wait. But where the peer had no room for all bytes yet, or where bytes are unread, closing
        could make the kernel send a reset, and the peer would lose our last answer (RFC 1122,
        4.2.2.13). Then our side is ended first, and what still arrives is thrown away until the
        peer has everything. A peer that takes nothing for ten seconds is given up, in a drain at
        its deadline; a peer that goes on sending has two seconds to end, too. Under TLS a
        close_notify is sent; the peer's is not waited for. Cancelled, it closes at once and leaves
        the rest to the kernel. May be called twice.
        """
        await close_politely(self)

    def detach(self) -> socket.socket:
        """Give the socket away, non-blocking, a `ssl.SSLSocket` under TLS; the stream is closed.

        Raises:
            RuntimeError: received or posted bytes still wait in the stream.
            anyio.ClosedResourceError: the stream has been closed.
        """
        if self._recv is refuse_closed:
            refuse_closed(None)
        if self._buffer:
            raise RuntimeError(f"{len(self._buffer)} received bytes wait in {self!r}; receive them before detach()")
        if self._outbox:
            raise RuntimeError(f"{self._outbox.size} posted bytes wait in {self!r}: the peer has no room for them yet")
        sock = self._sock  # before the descriptor is forgotten
        self._release()
        return sock

    def _lend(self, sock: socket.socket, *, answers: bool) -> Loan:
        """Count and drain what was detached: a thread blocks in it. See loan.py."""
        self._loan = loan = Loan(self, sock, self._poller.loop, answers=answers)
        if self._closing.is_set():
            loan.begin_drain()
        return loan

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Start TLS on this stream, as the server side. Bound it with `asyncio.timeout()`.

        The server's `idle_timeout` rests meanwhile, and begins again after it.

        Args:
            context: a context for the server side.

        Raises:
            RuntimeError: the stream is under TLS already; or plain bytes came behind the
                request to start TLS: TLS does not protect them, to go on would be an
                injection (RFC 3207, 6; CVE-2011-0411).
            anyio.BrokenResourceError: the handshake failed; `__cause__` says why.
            Exception: as `receive()` and `send()`. After an error or a cancellation only
                `aclose()` is left.
        """
        if self._tls:
            raise RuntimeError("start_tls(): this stream is under TLS already")
        await self._flush_posts()
        if self._buffered():
            raise InjectionError("start_tls(): the peer sent plain bytes behind its request to start TLS")
        if self._send in {refuse_after_eof, refuse_busy}:
            self._send(b"")
        await self._secure(context)

    def _vanish(self, exc: OSError) -> Callable[[], bool]:
        """Break, as the peer's host is gone; returns what tells whether the handler knows it."""
        if self._loan is not None:
            return self._loan.vanish()
        self._reset_on_close()
        waits = self._reading.busy or (self._writing is not None and self._writing.busy)
        self._news = news = News(waits or bool(self._departure))
        self._broken(exc)
        self._recv, self._send = news.before(self._recv), news.before(self._send)
        return news.has_come

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Anyio's typed attributes, those of SocketAttribute, and under TLS of TLSAttribute."""
        return {**socket_attributes(self._sock, self.peer_address), SocketAttribute.raw_socket: self._share}
