"""Stream: one connection's bytes, an anyio ByteStream.

Theory of operation:

* No bytes are held in between. `receive()` waits until the loop says readable, then takes bytes out
  of the kernel itself, one `recv` per wake-up so that no connection can starve the others; `send()`
  returns when the kernel has every byte. While a handler does not read, the kernel's buffer fills,
  and TCP slows the peer down: flow control needs no code here. Only `receive_exactly` and
  `receive_until` keep what they have read beyond their answer, in one buffer.
* The descriptor is watched from the first wait on. When it turns readable and no task waits, the
  watch ends; an unwatched stream tries `recv` first, and watches again when that would block.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import types
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import ByteStream

from ..exceptions import InjectionError
from ..net.waiter import busy
from ..tls.typed_attributes import socket_attributes
from .connection import CHUNK
from .lingering import close_politely
from .loan import Loan
from .octets import check_delimiter, check_number, octets
from .posting import PostingConnection
from .states import NOT_SENDING, at_end, behind_posts, refuse_after_eof, refuse_busy, refuse_closed, refuse_torn

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from ..net.waiter import Waiter

__all__ = ["Stream"]

# Operations in a row that need not wait, until the stream lets others run. At about 5 us each,
# another connection waits a third of a millisecond for them.
_SPIN_LIMIT = 64

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError)


class Stream(PostingConnection, ByteStream):
    """One connection, as its handler sees it. Its server closes it when the handler ends.

    One task may receive while another sends. Two that receive at once, or two that send,
    get `BusyResourceError`, and nothing is lost. Cancelling a receive loses nothing
    either. Cancelling `send` may leave a part of its data sent, and how much is not
    known: the peer can no longer see where a message begins.

    Attributes:
        proxy_header: what the proxy in front has said, with `proxy_protocol=True`; then
            `peer_address` is the client's.
        peer_address: (host, port), of IPv6 (host, port, flowinfo, scope); of a Unix peer
            its path, mostly "".
        bytes_received: payload bytes received so far.
        bytes_sent: payload bytes sent so far.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """Show the peer and the state."""
        return f"<Stream {self.peer_address!r} {'closed' if self._fd < 0 else 'open'}>"

    # -- receiving

    async def receive(self, max_bytes: int = CHUNK) -> bytes:
        """Receive what there is, at least one byte.

        Args:
            max_bytes: how many bytes to take at most; at least 1.

        Raises:
            anyio.EndOfStream: the peer has ended its side, or the server drains and no
                message is under way.
            anyio.BrokenResourceError: the connection broke; under TLS also an end without
                close_notify (RFC 8446, 6.1), since data may be missing. `__cause__` is
                the system's error.
            anyio.ClosedResourceError: the stream has been closed on this side.
            anyio.BusyResourceError: another task is receiving.
            IdleTimeout: nothing went either way for the server's `idle_timeout`. The
                stream can still be used.
        """
        try:
            if max_bytes < 1:
                raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
            return await self._chunk(max_bytes, anyio.EndOfStream)
        except TypeError:
            check_number(max_bytes, "receive")
            raise

    async def receive_exactly(self, nbytes: int) -> bytes:
        """Receive exactly `nbytes` bytes. Cancelled, it keeps what has arrived for the next call.

        Args:
            nbytes: how many bytes.

        Raises:
            anyio.IncompleteRead: the stream ended before. What has arrived stays to be received.
            Exception: as `receive()`, except EndOfStream.
        """
        try:
            if nbytes < 0:
                raise ValueError(f"nbytes must not be negative, got {nbytes}")
            if self._spun():
                await asyncio.sleep(0)  # before anything is taken: here the task may be cancelled
            while len(buffer := self._buffered()) < nbytes:
                await self._fill()
            return self._cut(buffer, nbytes)
        except TypeError:
            check_number(nbytes, "receive_exactly")
            raise

    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        """Receive up to a delimiter, and return what came before it. Cancelled, it loses nothing.

        Args:
            delimiter: the bytes to look for; taken from the stream, not returned.
            max_bytes: how many bytes to search for the whole delimiter.

        Raises:
            anyio.DelimiterNotFound: the first `max_bytes` bytes do not hold the
                delimiter. They stay to be received.
            anyio.IncompleteRead: the stream ended before the delimiter. What had arrived
                stays to be received.
            Exception: as `receive()`, except EndOfStream.
        """
        if type(delimiter) is not bytes or not delimiter:
            check_delimiter(delimiter)
        if self._spun():
            await asyncio.sleep(0)  # before anything is taken: here the task may be cancelled
        searched = 0
        try:
            if not self._buffer:
                data = await self._chunk(CHUNK, anyio.EndOfStream, more=True)
                end = len(data) - len(delimiter)
                if data.find(delimiter, 0, max_bytes) == end >= 0:  # mostly so: one line, and no buffer
                    self.begin_message(len(data))
                    return data[:end]
                self._buffered().extend(data)
            while (index := (buffer := self._buffered()).find(delimiter, searched, max_bytes)) < 0:
                if len(buffer) >= max_bytes:
                    raise anyio.DelimiterNotFound(max_bytes)
                searched = max(0, len(buffer) - len(delimiter) + 1)
                await self._fill()
        except anyio.EndOfStream as exc:
            raise anyio.IncompleteRead from exc
        except TypeError:
            check_number(max_bytes, "receive_until")
            raise
        data = self._cut(buffer, index)
        del buffer[: len(delimiter)]
        return data

    @types.coroutine
    def _chunk(
        self, max_bytes: int = CHUNK, end: type[BaseException] = StopAsyncIteration, *, more: bool = False
    ) -> Generator[Any, None, bytes]:
        """Take from the buffer, unless `more` is asked for, or from the kernel; raises `end`.

        The hot path, so it yields the waiter itself: a function in between would be a frame more.
        """
        if self._buffer and not more and self._spun():
            yield None
        if self._buffer and not more:
            return self._cut(self._buffered(), max_bytes)
        waiter = self._reading
        while True:
            if waiter.busy:
                raise busy("receiving from")
            if self._watching:
                waiter.busy = waiter._asyncio_future_blocking = True
                try:
                    yield waiter
                except BaseException:
                    waiter.wakeup = None  # a dead task must not be woken
                    waiter.busy = False
                    raise
                waiter.busy = False
            elif self._spun():
                yield from self._pause_reading(waiter)
            try:
                data = self._recv(max_bytes)
            except _WOULD_BLOCK:
                self._check_idle_read()
                self._watch()
                continue
            except ssl.SSLWantWriteError:
                # OpenSSL must answer (a key update) before it can read on.
                yield from self._writable().__await__()
                continue
            except OSError as exc:
                raise self._broken(exc) from exc
            if data:
                self.bytes_received += len(data)
                return data
            self._unwatch()  # at its end a descriptor stays readable
            self._recv = at_end
            raise end

    # Receive the next chunk; the iteration stops at the end of the stream.
    __anext__: Any = _chunk  # anyio says coroutine; the language asks for an awaitable

    def _spun(self) -> bool:
        """Count an operation that need not wait; true when it is time to let others run."""
        self._spins += 1
        if self._spins < _SPIN_LIMIT:
            return False
        self._spins = 0
        return True

    @staticmethod
    def _pause_reading(waiter: Waiter) -> Generator[None, None, None]:
        """Let other tasks run, but not receive: the buffer has been looked at already."""
        waiter.busy = True
        try:
            yield
        finally:
            waiter.busy = False

    def _buffered(self) -> bytearray:
        if self._reading.busy:
            raise busy("receiving from")
        if self._recv is refuse_closed:
            refuse_closed(None)
        if self._buffer is None:
            self._buffer = bytearray()
        return self._buffer

    def _cut(self, buffer: bytearray, nbytes: int) -> bytes:
        self.begin_message(len(buffer))
        with memoryview(buffer) as view:
            data = bytes(view[:nbytes])
        del buffer[:nbytes]
        return data

    async def _fill(self) -> None:
        try:
            data = await self._chunk(CHUNK, anyio.EndOfStream, more=True)
        except anyio.EndOfStream as exc:
            raise anyio.IncompleteRead from exc
        self._buffered().extend(data)

    # -- sending

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
            await self._send_rest(memoryview(item)[sent:], blocked=not sent)
        if self._answered != self.bytes_received:
            self._answered = self.bytes_received
        elif self._spun():
            # Nothing was received since the last send: perhaps this task never waits.
            await asyncio.sleep(0)

    async def _send_rest(self, rest: memoryview, *, blocked: bool) -> None:
        if self._send is behind_posts:
            assert self._outbox is not None
            await self._outbox.take_turn()
            blocked = False
        tls = isinstance(self._sock, ssl.SSLSocket)
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
        finally:
            if self._send is refuse_busy:
                self._send = after
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

    # -- ending

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
        self._release()
        return self._sock

    def _lend(self, sock: socket.socket) -> Loan:
        """Count and drain what was detached: a thread blocks in it. See loan.py."""
        self._loan = loan = Loan(self, sock, self._poller.loop)
        if self._closing.is_set():
            loan.begin_drain()
        return loan

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Start TLS on this stream, as the server side. Bound it with `asyncio.timeout()`.

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
        if isinstance(self._sock, ssl.SSLSocket):
            raise RuntimeError("start_tls(): this stream is under TLS already")  # noqa: TRY004
        if self._buffered():
            raise InjectionError("start_tls(): the peer sent plain bytes behind its request to start TLS")
        await self._flush_posts()
        if self._send in {refuse_after_eof, refuse_busy}:
            self._send(b"")
        await self._secure(context)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Anyio's typed attributes, for `extra()`: SocketAttribute, and under TLS TLSAttribute."""
        return socket_attributes(self._sock, self.peer_address)
