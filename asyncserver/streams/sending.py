"""Sending: how a stream's bytes go out: `send()`, which waits, and `post()`, which does not."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import TYPE_CHECKING, Any

import anyio

from ..connections.states import (
    NOT_SENDING,
    behind_posts,
    refuse_after_eof,
    refuse_busy,
    refuse_torn,
    refuse_undelivered,
)
from ..connections.tls_connection import TLSConnection
from ..net.octets import octets
from ..net.poller import WRITE
from ..speedups.extension import accelerate
from .outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..connections.departure import News
    from ..net.poller import Poller

# What a post waits for: room, or the end of another task's send.
_NO_ROOM = (BlockingIOError, ssl.SSLWantWriteError, anyio.BusyResourceError)


class PostLimit:
    """How much may wait for a slow peer: bytes, and what is called with one that is given up."""

    __slots__ = ("exceeded", "max_unsent")

    def __init__(self, max_unsent: int, exceeded: Callable[[Any], object]) -> None:
        self.max_unsent: int = max_unsent
        self.exceeded: Callable[[Any], object] = exceeded


class Sending(TLSConnection):
    """The sending side of a Stream. What posting keeps is in an outbox, see outbox.py."""

    __slots__ = ("_limit", "_outbox")

    bytes_sent: int  # again, for pyright
    _news: News | None = None  # once its peer has vanished

    def __init__(self, poller: Poller, closing: asyncio.Event, limit: PostLimit) -> None:
        TLSConnection.__init__(self, poller, closing)
        self._limit = limit
        self._outbox: Outbox | None = None

    @accelerate
    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all the bytes; returns when the kernel has them: a slow peer slows the handler.

        Args:
            item: any bytes-like object.

        Raises:
            anyio.BrokenResourceError: the connection broke; `__cause__` is the system's error.
            anyio.ClosedResourceError: the stream has been closed, or `send_eof()` called.
            anyio.BusyResourceError: another task is sending.
            IdleTimeout: the peer took nothing, and sent nothing, for the server's `idle_timeout`.
        """
        if type(item) is not bytes:
            item = octets(item, "send")
        try:
            sent = self._send(item)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        except OSError as exc:
            raise self._broken(exc) from exc
        self.bytes_sent += sent
        if sent != len(item):
            await self._send_rest(item, sent)
        elif self._answered != self.bytes_received:
            self._answered = self.bytes_received
        elif self._spun():
            # Nothing was received since the last send: perhaps this task never waits.
            await asyncio.sleep(0)

    async def _send_rest(self, item: bytes | bytearray | memoryview, sent: int) -> None:
        rest, blocked = memoryview(item)[sent:], not sent
        if self._send is behind_posts:
            assert self._outbox is not None
            await self._outbox.take_turn()
            blocked = False
        tls = self._tls
        write, self._send = self._send, refuse_busy
        # What the next send() calls: OpenSSL insists on finishing the record it has begun.
        after = refuse_torn if tls and blocked else write
        # A plain socket took all it had room for; OpenSSL gets one record at a time.
        blocked = blocked or not tls
        try:
            while rest:
                if blocked:
                    self._check_idle_write()
                    await self._writable()
                    # Before write(): the kernel may take a little although the peer took nothing.
                    self._check_idle_write()
                elif self._spun():
                    await asyncio.sleep(0)
                if self._send is not refuse_busy:  # closed meanwhile
                    self._send(rest)
                try:
                    sent = write(rest)
                except (BlockingIOError, ssl.SSLWantWriteError):
                    blocked, after = True, refuse_torn if tls else write
                    continue
                except OSError as exc:
                    raise self._broken(exc) from exc
                self.bytes_sent += sent
                rest = rest[sent:]
                blocked, after = not tls, write
            self.answer()
        finally:
            if self._send is refuse_busy:
                self._send = after
                if self.draining:
                    self._notice_answers()
            if self._outbox is not None:
                self._outbox.resume()

    async def send_eof(self) -> None:
        """End our side; the peer's stays open. Under TLS this sends a close_notify.

        Raises:
            anyio.BusyResourceError: a send is under way.
            anyio.BrokenResourceError: the connection is broken.
            anyio.ClosedResourceError: the stream has been closed.
            OSError: under TLS, no descriptors are left for it (errno EMFILE, ENFILE);
                nothing was sent.
        """
        if self._send is refuse_after_eof:
            return
        await self._flush_posts()
        if self._send in NOT_SENDING or self._is_broken:
            self._send(b"")
        send, self._send = self._send, refuse_after_eof
        try:
            if isinstance(self._sock, ssl.SSLSocket):
                await self._half_close_notify(self._sock)
            else:
                self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            if exc.errno in {errno.EMFILE, errno.ENFILE}:
                # The process's error, not the connection's; nothing has been sent.
                self._send = send
                raise
            raise self._broken(exc) from exc
        self.answer()

    @accelerate
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
            slowness: its own handler learns that, whoever posts need not care. Also during
            `start_tls()`, where it would go out unprotected.

        Raises:
            anyio.ClosedResourceError: the stream has been closed, or `send_eof()` called.
            TypeError: it is not bytes-like.
        """
        if type(data) is not bytes:
            data = bytes(octets(data, "post"))
        try:
            sent = self._send(data)
        except _NO_ROOM:
            sent = 0
        except anyio.BrokenResourceError:
            if self._news is not None:
                self._news.went_astray()
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
        return sent == len(data) or self._keep(data, sent)

    def _keep(self, data: bytes, sent: int) -> bool:
        """Keep what the kernel has not taken of a post; false if that is too much."""
        outbox = self._outbox
        if outbox is None:
            outbox = self._outbox = Outbox(self)
        outbox.add(memoryview(data)[sent:] if sent else data)  # views need 320 bytes
        self.settle(len(self._buffer or b""))
        if self.draining:
            self._notice_answers()
        if self._send not in {refuse_busy, behind_posts}:
            outbox.resume()
        if outbox.held <= self._limit.max_unsent:
            return True
        self._send = refuse_undelivered
        self.abort()
        self._limit.exceeded(self)
        return False

    async def _flush_posts(self) -> None:
        """Wait until the kernel has what was posted so far."""
        while self._outbox:
            if self._send is not behind_posts:
                self._send(b"")  # another task sends, or it closes: it raises
            await self._outbox.take_turn()
            self._outbox.resume()

    def _on_writable(self) -> None:
        if self._outbox is not None and self._outbox.flushing:
            self._outbox.flush()
        else:
            super()._on_writable()

    # -- the end

    def _look_for_the_end(self) -> None:
        super()._look_for_the_end()
        self._notice_answers()

    def _notice_answers(self) -> None:
        """In a drain: a receive, in another task, may wait only because an answer was owed."""
        self._reading.wake_soon()
        plain = self._sock.send  # first: made here, the socket changes what `_send` is
        if self._send in (plain, self._send_tls):
            self._send = self._send_owed

    def _send_owed(self, item: Any) -> int:
        """State: the server drains. Send, then let a receive look whether this was the answer."""
        sent = self._send_tls(item) if self._tls else self._sock.send(item)
        self._reading.wake_soon()
        return sent

    def _untaken(self) -> int:
        return super()._untaken() + (self._outbox.size if self._outbox else 0)

    @property
    def _is_torn(self) -> bool:
        waits_its_turn = self._outbox is not None and self._outbox.flushing
        return not waits_its_turn and super()._is_torn

    async def _close_notify(self) -> None:
        if self._outbox:
            await self._outbox.deliver()
        await super()._close_notify()

    def _broken(self, exc: OSError) -> anyio.BrokenResourceError:
        if self._outbox is not None:
            self._outbox.discard()
            self._set_events(self._events & ~WRITE)  # nobody waits for room any more
        return super()._broken(exc)

    def _let_go(self) -> None:
        if self._outbox:
            self._send = refuse_undelivered
        super()._let_go()
        self._outbox = None

    def abort(self) -> None:
        """Close at once: what is unsent is thrown away and the peer gets a reset. Never waits."""
        super().abort()
        self._outbox = None


@accelerate
def post_to_all(streams: tuple[Sending, ...], data: bytes, but: Sending | None) -> int:
    """Post to all of them but one; returns to how many it is on its way."""
    posted = 0
    for stream in streams:
        if stream is but:
            continue
        try:
            posted += stream.post(data)
        except anyio.ClosedResourceError:  # its handler has closed it, and has not returned yet
            continue
    return posted
