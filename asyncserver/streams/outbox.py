"""Outbox: what `post()` has taken and the kernel has not, in order with what `send()` sends.

Theory of operation. Who may write is told by the state in the stream's `_send`:

    empty      `_send` is the connection's own: nobody looks at the outbox
    flushing   `behind_posts`: parts wait, the poller watches for room, `flush()` writes
    a send     `refuse_busy`: what is posted meanwhile waits behind it, until `resume()`

A `send()` that finds the outbox flushing takes a place in it, `_TURN`. The flush stops there and
hands over: the send then writes by itself, as if there were no outbox, and `resume()` goes on with
what stands behind it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from ..connections.states import NOT_SENDING, behind_posts, refuse_after_eof, refuse_busy
from ..net.poller import WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..net.waiter import Waiter

# Small parts are written together, up to so many bytes; of a TLS connection one record at a time.
_TOGETHER = 65536
# Writes until other connections have their turn, or other tasks.
_WRITES = 16

# Bytes that a part takes besides its own: a bytes object, and its place in the queue.
_OVERHEAD = 48

_TURN = b""  # holds the place of a send; parts are never empty

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantWriteError)


class Posting(Protocol):
    """A Stream, as it is used here."""

    _events: int
    _fd: int
    _send: Callable[[Any], int]
    bytes_sent: int

    @property
    def _is_broken(self) -> bool: ...

    def _broken(self, exc: OSError) -> object: ...

    def _check_idle_write(self) -> None: ...

    def _sender(self) -> Waiter: ...

    def _set_events(self, events: int) -> None: ...

    async def _writable(self) -> None: ...


class Outbox:
    """The parts that wait to be written to one connection."""

    __slots__ = ("_connection", "_head", "_parts", "_write", "flushing", "size")

    def __init__(self, connection: Posting) -> None:
        self._connection = connection
        self._write: Callable[[memoryview], int] = connection._send
        self._parts: deque[bytes | memoryview] = deque()
        self._head = memoryview(b"")  # what is being written: OpenSSL wants the same bytes again
        self.size: int = 0  # the bytes that wait
        self.flushing: bool = False  # it writes as soon as the peer has room

    def __bool__(self) -> bool:
        """Whether anything waits, or a send has its turn."""
        return bool(self._parts or self._head)

    @property
    def held(self) -> int:
        """The memory that waits, in bytes: many small parts take more than they hold."""
        return self.size + _OVERHEAD * len(self._parts)

    def add(self, part: bytes | memoryview) -> None:
        """Let these bytes wait behind all others."""
        if part:
            self._parts.append(part)
            self.size += len(part)

    def resume(self) -> None:
        """Go on: `_send` is the connection's own again. Or give up, if it never will be."""
        connection = self._connection
        if self._parts and self._parts[0] is _TURN:
            self._parts.popleft()
        if not self:
            return
        if connection._send in NOT_SENDING or connection._send is refuse_after_eof or connection._is_broken:
            self.discard()
            return
        self._write, connection._send = connection._send, behind_posts
        self.flushing = True
        connection._set_events(connection._events | WRITE)

    def discard(self) -> None:
        """Throw away what waits."""
        self._parts.clear()
        self._head = memoryview(b"")
        self.size, self.flushing = 0, False

    def flush(self) -> None:
        """Write what the kernel takes; called when it has room, by the loop."""
        connection = self._connection
        try:
            for _ in range(_WRITES):
                if not self._begin_part():
                    self._hand_over()
                    return
                if not self._write_some():
                    return
        except OSError as exc:
            connection._broken(exc)

    async def deliver(self) -> None:
        """Write all of it, when nobody else uses the connection. Raises OSError if that broke."""
        connection = self._connection
        self.flushing = False
        if _TURN in self._parts:  # whose send has been told that the stream is closed
            self._parts.remove(_TURN)
        turn = 0
        while connection._fd >= 0 and self._begin_part():
            if not self._write_some():
                await connection._writable()
            elif not (turn := turn + 1) % _WRITES:
                await asyncio.sleep(0)

    async def take_turn(self) -> None:
        """Wait until all that was posted before is written, and have `_send` back.

        The caller has to call `resume()` when it has sent. Cancelled, it leaves its place.
        """
        connection = self._connection
        connection._send = refuse_busy
        self._parts.append(_TURN)
        try:
            while self.flushing:
                connection._check_idle_write()
                await connection._sender()
                if connection._send is not refuse_busy:
                    connection._send(b"")  # closed or broken meanwhile: it raises
            connection._send = self._write
        except BaseException:
            if _TURN in self._parts:
                self._parts.remove(_TURN)
            if connection._send is refuse_busy:
                connection._send = self._write
                self.resume()
            raise

    def _begin_part(self) -> bool:
        """Have something to write in `_head`; false if there is nothing, or a send comes first."""
        if self._head:
            return True
        together, size = [], 0
        while self._parts and self._parts[0] is not _TURN and size < _TOGETHER:
            together.append(self._parts.popleft())
            size += len(together[-1])
        self._head = memoryview(b"".join(together) if len(together) > 1 else together[0] if together else b"")
        return size > 0

    def _write_some(self) -> bool:
        """Write once; false if the peer has no room for more."""
        try:
            sent = self._write(self._head)
        except _WOULD_BLOCK:
            return False
        self._connection.bytes_sent += sent
        self.size -= sent
        self._head = self._head[sent:]
        return True

    def _hand_over(self) -> None:
        """Nothing is left, or nothing before a send."""
        connection = self._connection
        self.flushing = False
        connection._set_events(connection._events & ~WRITE)
        if self._parts:
            connection._sender().wake()
        elif connection._send is behind_posts:
            connection._send = self._write
