"""Receiving: how a stream's bytes come in."""

from __future__ import annotations

import asyncio
import socket
import ssl
import types
from functools import partial, update_wrapper
from operator import index
from typing import TYPE_CHECKING, Any

import anyio
from anyio import EndOfStream  # its own name: an attribute of a module with __getattr__ is slow

from ..connections.connection import CHUNK, FEW
from ..connections.states import at_end, refuse_closed
from ..connections.tls_connection import TLSConnection
from ..net.octets import check_delimiter, check_number
from ..net.waiter import busy, woken
from ..speedups.extension import accelerate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError)

# Bytes that an iteration asks for, as it takes any number: one more than CHUNK, to be told from
# `receive()`, and from what a peer sends in pieces of 64 KiB.
_ANY = CHUNK + 1


def _code_of(chunk: Any) -> Callable[[object], Any]:
    """Make a function of the code of `_chunk` that is called, shown and found as the one below.

    Calling `_chunk` there would be a frame more, for each message.
    """
    pure = getattr(chunk, "__wrapped__", chunk)  # of what is compiled
    made: Any = accelerate(types.FunctionType(pure.__code__, pure.__globals__, argdefs=pure.__defaults__))
    return partial(update_wrapper, made, updated=())


class Receiving(TLSConnection):
    """The receiving side of a Stream."""

    __slots__ = ()

    bytes_received: int  # again, for pyright

    @accelerate
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
            return await self._chunk(max_bytes, EndOfStream)
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

    @accelerate
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
        searched = 0
        try:
            if not self._buffer:
                index(max_bytes)  # raises before bytes are taken
                data = await self._chunk(CHUNK, EndOfStream, True)
                line, delimited, rest = data.partition(delimiter)
                if delimited and not rest and len(data) <= max_bytes:  # mostly so: one line, and no buffer
                    if self._message_sent != self.bytes_sent:  # begin_message(), inlined
                        self._message_sent, self._message_at = self.bytes_sent, self.bytes_received - len(data)
                    return line
                self._buffered().extend(data)
            elif self._spun():
                await asyncio.sleep(0)  # before anything is taken: here the task may be cancelled
            while (found := (buffer := self._buffered()).find(delimiter, searched, max_bytes)) < 0:
                if len(buffer) >= max_bytes:
                    raise anyio.DelimiterNotFound(max_bytes)
                searched = max(0, len(buffer) - len(delimiter) + 1)
                await self._fill()
        except EndOfStream as exc:
            raise anyio.IncompleteRead from exc
        except TypeError:
            check_number(max_bytes, "receive_until")
            raise
        data = self._cut(buffer, found)
        del buffer[: len(delimiter)]
        return data

    def end_message(self) -> None:
        """Say that what was received so far is a whole message, and gets no answer.

        A drain lets a connection go on until what it has received is answered. For a handler that
        answers nothing, as it collects what comes or passes it on to others, it would wait until
        its deadline. So call this after each message that is done with::

            async for reading in stream:
                logging.info("%r", reading)
                stream.end_message()

        What `receive_until()` or `receive_exactly()` has read beyond that message belongs to the
        next one. Never waits, and needs no open connection.
        """
        self.settle(len(self._buffer or b""))
        if self.draining:
            self._reading.wake_soon()  # another task may wait for what will not come

    @accelerate
    @types.coroutine
    def _chunk(
        self, max_bytes: int = _ANY, end: type[BaseException] = StopAsyncIteration, more: bool = False
    ) -> Generator[Any, None, bytes]:
        """Take from the buffer, unless `more` is asked for, or from the kernel; raises `end`.

        The hot path, so it yields the waiter itself: a function in between would be a frame more.
        """
        if self._buffer and not more:
            if self._spun():
                yield None
            if self._buffer:  # not taken by another task meanwhile
                return self._cut(self._buffered(), max_bytes)
        waiter = self._reading
        while True:
            if waiter.wakeup is not None:
                raise busy("receiving from")
            if self._watching:
                waiter._asyncio_future_blocking = True
                try:
                    yield waiter
                finally:
                    waiter.wakeup = None  # a dead task must not be woken
            elif self.bytes_received and self._watching is None:
                # The first receive took what was here; mostly a second one would be in vain.
                self._watch_for_bytes()
                continue
            elif self._spun():
                waiter.wakeup = woken  # others may run, but not receive: the buffer has been looked at
                try:
                    yield None
                finally:
                    waiter.wakeup = None
            try:
                data = self._recv(max_bytes)
            except _WOULD_BLOCK:
                self._watch_for_bytes()
                continue
            except ssl.SSLWantWriteError:
                # OpenSSL must answer (a key update) before it can read on.
                yield from self._writable().__await__()
                continue
            except OSError as exc:
                raise self._broken(exc) from exc
            if data:
                size = len(data)
                self.bytes_received += size
                return data if size < max_bytes else self._full(data, max_bytes, end)
            self._reach_end()
            raise end

    @_code_of(_chunk)
    def __anext__(self) -> Awaitable[bytes]:  # anyio says coroutine; the language asks for an awaitable
        """Receive the next bytes; the iteration stops at the end of the stream.

        As `receive()`, of up to 256 KiB at once, and StopAsyncIteration in the place of
        EndOfStream.
        """
        raise NotImplementedError  # never: the decorator puts the code of `_chunk` in the place of this

    def _reach_end(self) -> None:
        self._unwatch()  # at its end a descriptor stays readable
        self._recv = at_end

    def _full(self, data: bytes, max_bytes: int, end: type[BaseException]) -> bytes:
        """Return what was asked for of a receive that took as much; an iteration asks for more."""
        if end is StopAsyncIteration:
            if len(data) == _ANY and self._recv == self._read and type(self._sock) is socket.socket:
                self._recv = self._read = partial(self._read_bulk, 0)
        elif len(data) > max_bytes:  # `receive(_ANY)` after full ones of an iteration
            buffer = self._buffered()
            buffer.extend(data)
            return self._cut(buffer, max_bytes)
        return data

    def _read_bulk(self, last: int, max_bytes: int) -> bytes:
        """State of `_read`: an iteration has filled a receive. Until one takes only a few bytes."""
        data = self._read_much(last) if max_bytes == _ANY else self._sock.recv(max_bytes)
        if len(data) != last:
            read = self._sock.recv if len(data) < FEW else partial(self._read_bulk, len(data))
            if self._recv == self._read:
                self._recv = read
            self._read = read
        return data

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
            data = await self._chunk(CHUNK, EndOfStream, True)
        except EndOfStream as exc:
            raise anyio.IncompleteRead from exc
        self._buffered().extend(data)
