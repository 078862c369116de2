"""ProtocolConnection: a connection that a protocol serves.

It has the same base as a Stream: socket, poller, TLS, PROXY header and ways to close. Where a
Stream wakes a task, it calls its transport, which calls the protocol.

    poller -> _on_readable -> ProtocolTransport._read_ready -> the protocol
           -> ProtocolTransport.write -> the kernel
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from typing import TYPE_CHECKING, Any, Protocol

from ..connections.lingering import close_politely
from ..connections.states import refuse_closed
from ..connections.tls_connection import TLSConnection
from ..exceptions import IdleTimeout
from ..net.poller import WRITE
from ..net.socket_info import sent_ago

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..net.poller import Poller
    from .callback_protocol import CallbackProtocol

# What ends only the connection whose protocol raises it. CancelledError comes from a future that it
# looked at; let out, it would keep the other connections of the poller's batch from their turn.
RAISED = (Exception, asyncio.CancelledError)
# Seconds without progress until the last answer of a failed protocol is given up.
_CLOSE_TIMEOUT = 2.0
# Seconds between two writes of one answer, in a drain: enough for a query of a database. A
# protocol that needs longer returns true from eof_received().
_PAUSE = 1.0

# What asyncio's streams raise at the end of a connection.
_ENDED = (asyncio.IncompleteReadError, ConnectionError)


class Transport(Protocol):
    """A ProtocolTransport, as its connection uses it."""

    def is_reading(self) -> bool:
        """Whether the protocol takes data."""

    def get_write_buffer_size(self) -> int:
        """Count the bytes that wait to be sent."""

    def close(self) -> None:
        """Close as soon as these are sent."""

    def abort(self) -> None:
        """Close at once."""

    def _break(self, exc: OSError) -> None:
        """Close at once, because of an error."""

    def _read_ready(self) -> None: ...

    def _write_ready(self) -> None: ...


class ProtocolConnection(TLSConnection):
    """A connection that a protocol serves; in `Server.connections` it stands for a Stream."""

    __slots__ = (
        "_broken_by",
        "_broken_off",
        "_ended",
        "_ending",
        "_failure",
        "_lost",
        "_quiet_at",
        "_sockname",
        "callback",
        "context",
        "loop",
        "protocol",
        "task",
        "transport",
    )

    bytes_received: int
    bytes_sent: int

    def __init__(self, poller: Poller, closing: asyncio.Event) -> None:
        TLSConnection.__init__(self, poller, closing)
        self.loop: asyncio.AbstractEventLoop = poller.loop
        self.protocol: Any = None  # an asyncio.BaseProtocol, of whatever kind
        self.transport: Transport | None = None
        self.task: asyncio.Task[Any] | None = None  # of a (reader, writer) callback
        self.callback: CallbackProtocol | None = None  # when a (reader, writer) callback is served
        self._broken_off = False
        self._broken_by: BaseException | None = None
        self._lost: asyncio.Future[None] = self.loop.create_future()
        self._failure: BaseException | None = None
        self._ended: bool | None = None  # after eof_received(): whether the protocol stays open
        self._ending = False  # _end_between_messages() is on its way
        self._sockname: Any = None  # once it is closed
        self._quiet_at = -1  # bytes_sent at the drain's last look; only for Unix sockets

    async def run(
        self,
        make: Callable[[ProtocolConnection], asyncio.BaseProtocol],
        make_transport: Callable[[ProtocolConnection], Transport],
    ) -> None:
        """Make the protocol and serve until the connection is lost; raises what that raised."""
        self.context: contextvars.Context = contextvars.copy_context()
        try:
            self.protocol = make(self)
            self.soon(self._made, make_transport)
            await asyncio.wait([self._lost])
            if self.task is not None and not self.task.done():
                if not self._close_if_quiet():
                    await self.aclose()
                await asyncio.wait([self.task])
        except BaseException:  # the handler's task is cancelled
            if self.task is not None and not self.task.done():
                self.task.cancel()
                await asyncio.wait([self.task])
            self.abort()
            self._close()
            raise
        try:
            if self._failure is not None:
                raise self._failure
        finally:
            self._failure = self._broken_by = None  # their tracebacks hold this frame: a cycle

    async def aclose(self) -> None:
        """See Stream: what was sent reaches the peer."""
        await close_politely(self)

    def callback_ended(self, task: asyncio.Task[Any]) -> None:
        """A `(reader, writer)` callback has ended; without an error the connection may go on."""
        if task.cancelled() or (task.exception() is None and self._ended and self.draining):
            self._close_softly()
        elif (exc := task.exception()) is not None:
            self.fail(exc)

    def fail(self, exc: BaseException) -> None:
        """End the connection, since its protocol raised; that the peer left is no failure."""
        if self._failure is None:
            self._failure = self._without_the_end(exc)
        self._close_softly()

    def _close_softly(self) -> None:
        """Close: under TLS of `loop.start_tls()` its transport, so that a close_notify is sent."""
        if self.transport is None:
            return
        over: Any = getattr(self.protocol, "_app_transport", None)  # the stock loop's TLS only
        if self.callback is not None:
            self.callback.close()
        elif over is not None:
            over.close()
        else:
            self.transport.close()
        self._insist()

    def _without_the_end(self, exc: BaseException) -> BaseException | None:
        if isinstance(exc, BaseExceptionGroup):
            return exc.split(lambda one: self._tells_the_end(one))[1]  # noqa: PLW0108 - before 3.13
        return None if self._tells_the_end(exc) else exc

    def _tells_the_end(self, exc: BaseException) -> bool:
        """Whether an error, or each of a group, says that the connection has ended, and it has."""
        if isinstance(exc, BaseExceptionGroup):
            return all(map(self._tells_the_end, exc.exceptions))
        if exc is self._broken_by:
            return True
        over = self.ended or self._broken_off or self._lost.done()
        # ConnectionRefusedError is about another connection.
        return over and isinstance(exc, _ENDED) and not isinstance(exc, ConnectionRefusedError)

    def _insist(self, moved: int = -1) -> None:
        """Abort when the peer of a failed protocol stops reading; a peer that reads gets it all."""
        if self.bytes_moved == moved:
            self.abort()
        elif not self._lost.done():
            self.loop.call_later(_CLOSE_TIMEOUT, self._insist, self.bytes_moved)

    # -- between the transport and the protocol

    def soon(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call in the loop's next round, in the connection's context, as a loop calls protocols."""
        self.loop.call_soon(callback, *arguments, context=self.context)

    def call(self, name: str, *arguments: object) -> Any:
        """Call the protocol; what it raises ends the connection."""
        try:
            return getattr(self.protocol, name)(*arguments)
        except RAISED as exc:
            self.fail(exc)
            return None

    def _made(self, make_transport: Callable[[ProtocolConnection], Transport]) -> None:
        if self._fd < 0:
            return
        self.transport = make_transport(self)
        if self._closing.is_set():
            self._await_first_words(said=self.bytes_moved)
        self.call("connection_made", self.transport)
        if self.transport.is_reading():
            self.watch_reading()

    def _on_readable(self) -> None:
        transport = self.transport
        if transport is None or self._lost.done():
            super()._on_readable()
        else:
            self.context.run(transport._read_ready)

    def _on_writable(self) -> None:
        transport = self.transport
        if transport is None or self._lost.done():
            super()._on_writable()
        else:
            self.context.run(transport._write_ready)

    def watch_reading(self) -> None:
        """Call the transport when there is something to read, or already has been."""
        if not self.ended or self.draining:
            self._watch()
            if self.pending():
                self.loop.call_soon(self._on_readable)  # which enters our context itself
            if self.draining:
                self._look_for_the_end()

    def watch_writing(self) -> None:
        """Call the transport when there is room."""
        self._set_events(self._events | WRITE)

    def unwatch_writing(self) -> None:
        """Stop that."""
        self._set_events(self._events & ~WRITE)

    def pending(self) -> int:
        """Count the bytes that OpenSSL has decrypted, which no poll reports."""
        return self._sock.pending() if self._tls else 0  # type: ignore[attr-defined]

    def lost(self, exc: BaseException | None, *, broken: bool = False) -> None:
        """Call connection_lost() soon, and close the connection: at once if it is broken."""
        self._broken_off, self._broken_by = broken, exc
        self._watching = False
        self._set_events(0)
        self.soon(self._tell_lost, exc)

    def _tell_lost(self, exc: BaseException | None) -> None:
        self.call("connection_lost", exc)
        self._lost.set_result(None)
        self.protocol = self.transport = None  # they hold this object: a cycle
        if self._broken_off:  # not left to run(), which may wait for a callback that does not end
            self._close()

    @property
    def sockname(self) -> Any:
        """The address on this side, also when the connection is closed, as asyncio keeps it."""
        return self._sockname if self._fd < 0 else self._sock.getsockname()

    def _release(self) -> None:
        with contextlib.suppress(OSError):  # its program has closed the raw socket
            self._sockname = self._sock.getsockname()
        super()._release()

    @property
    def ended(self) -> bool:
        """Whether eof_received() has been called."""
        return self._ended is not None

    def peer_ended(self) -> None:
        """The peer has ended its side."""
        self._unwatch()
        if not self.ended and not self._end() and self.transport is not None:
            self.transport.close()

    def _end(self) -> bool:
        """Call eof_received(), once, for the peer's end or the drain; true if it stays open."""
        self._ended = False
        self._ended = bool(self.call("eof_received"))
        return self._ended

    # -- bytes both ways

    def has_received(self, nbytes: int) -> None:
        """Count the bytes that the protocol gets."""
        self.bytes_received += nbytes
        if self._owed_until is not None:
            self.owe_at_most(self._unread())

    def has_written(self) -> None:
        """The protocol has written something."""
        self._answered = self.bytes_received
        self.has_flushed()

    def has_flushed(self) -> None:
        """The kernel has all that was written."""
        if self._owed_until is not None:
            self._look_for_the_end()

    def holds_whole_records(self) -> bool:
        """To be asked before a read: whether the drain goes on if it finds no payload."""
        return self._owed_until is not None and self._holds_whole_records()

    def found_no_payload(self, *, whole: bool) -> None:
        """Bytes were in the kernel, but only TLS's own, or a part of a record."""
        self._came_at = self.bytes_received
        if whole and self._owes_no_payload():
            self._look_for_the_end()

    # -- for the server

    def _begin_drain(self) -> None:
        if self.transport is not None or self._recv != self._read:
            super()._begin_drain()  # otherwise _made() begins it

    def _look_for_the_end(self) -> None:
        self._recv = self._receive_owed  # never called; it marks that the drain has begun here
        if not self._ending and self.transport is not None:
            self._ending = True
            self.soon(self._end_between_messages)

    def _end_between_messages(self) -> None:
        self._ending = False
        transport = self.transport
        unconsumed = 0 if self.callback is None else self.callback.unconsumed()
        self._message_sent, self._message_at = self.bytes_sent, self.bytes_received - unconsumed
        if transport is None or self.ended or not self.may_end():
            return
        if not transport.is_reading() or transport.get_write_buffer_size():
            return  # about to go on: a protocol that pauses is not done
        if self.callback is not None:
            self._ended = True
            self.callback.eof_received()  # at its reader's end it ends the connection
            if self.task is not None and self.task.done():
                self._close_softly()
            self._end_tls()
        elif (pause := self._pause()) > 0:
            self._ending = True
            self.loop.call_later(pause, self._end_between_messages, context=self.context)
        elif hasattr(self.protocol, "_app_transport"):
            self._close_softly()
        elif not self._end():
            transport.close()

    def _end_tls(self, moved: int = -1) -> None:
        """End the TLS of `loop.start_tls()` where the callback has, and the peer is silent."""
        transport, silent = self.transport, moved == self.bytes_moved
        if transport is None or self.callback is None:
            return
        if silent and self.callback.waits_for_tls(transport) and not transport.get_write_buffer_size():
            transport.close()
        else:
            self.loop.call_later(_PAUSE, self._end_tls, self.bytes_moved)

    def _pause(self) -> float:
        """Return the seconds in which a protocol may still go on with the answer it has begun."""
        if not self.bytes_sent:
            return 0.0
        ago = sent_ago(self._sock)
        if ago is None:  # a Unix socket has no such time
            known, self._quiet_at = self._quiet_at, self.bytes_sent
            return 0.0 if known == self.bytes_sent else _PAUSE
        return _PAUSE - ago

    def _expire(self) -> None:
        if self.transport is None:
            if self._recv is refuse_closed:
                self._close_if_stalled()
            return  # a handshake has a time limit of its own
        if self._failure is not None:  # ended before, and still not closed
            self.abort()
            return
        self.fail(IdleTimeout(f"nothing received from or sent to {self.peer_address!r} for the idle timeout"))

    def _vanish(self, exc: OSError) -> Callable[[], bool]:
        """See Stream."""
        knows = self.callback is None or self.callback.is_waited_for()
        self._reset_on_close()
        self._break_off(exc)
        return lambda: knows

    def _break_off(self, exc: OSError) -> None:
        if self.transport is not None:
            self.transport._break(exc)

    def abort(self) -> None:
        """Close at once, without sending what is buffered."""
        if self.transport is not None:
            self.transport.abort()
        elif not self._lost.done():
            super().abort()
