"""Connection: a connected, non-blocking socket, the tasks that wait for it, and its end.

What a Stream stands on: the descriptor's watches, the waiters, the PROXY header, the drain, the
idle timeout, and the ways to close. For TLS see tls_connection.py, for what `_recv` and `_send` can
be states.py, for when a drain may end a connection dialogue.py.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
from typing import TYPE_CHECKING, NoReturn

import anyio

from ..exceptions import IdleTimeout
from ..net.poller import READ, WRITE
from ..net.socket_info import first_words_due, unacknowledged, unread
from ..net.waiter import Waiter, busy
from ..speedups.extension import accelerated
from .accepted import Accepted
from .states import refuse_before_first_byte, refuse_closed, refuse_torn, refuse_unadmitted, refuse_undelivered

if TYPE_CHECKING:
    import asyncio

    from ..net.addresses import Address
    from ..net.poller import Poller
    from ..proxy.proxy_protocol import ProxyHeader
    from .departure import Departure
    from .loan import Loan

# Bytes that one receive takes at most by default: anyio's default, and a pipe's capacity.
CHUNK = 65536

# After a receive of CHUNK the next may take much more, until fewer than FEW come.
FEW = CHUNK // 4

# SO_LINGER with no time: close() discards what is unsent and resets, socket(7).
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Connection(Accepted):
    """A connected socket of a server."""

    __slots__ = (
        "_came_at",
        "_closing",
        "_events",
        "_idle_read",
        "_idle_write",
        "_poller",
        "_spins",
        "_tls",
        "_writing",
        "proxy_header",
    )

    # Operations in a row that need not wait, until the stream lets others run. At about 5 us each,
    # another connection waits a third of a millisecond for them.
    _SPIN_LIMIT = 64

    _loan: Loan | None = None  # the server's, of a socket that was given to a thread
    _departure: Departure | None = None  # where tasks wait for the peer's end

    def __init__(self, poller: Poller, closing: asyncio.Event) -> None:
        if not accelerated:  # else the struct is made with what this sets
            Accepted.__init__(self)
        self._poller = poller
        self._reading = Waiter(poller.get_loop, "receiving from")
        self._reading.context = poller.context  # a task that pauses may never have waited
        self._writing: Waiter | None = None
        self._closing = closing
        self._tls = False  # whether it is an SSLSocket
        self._events = 0  # what the poller watches for
        self._spins = 0  # operations of a Stream in a row that need not wait
        self._came_at = -1  # `bytes_received` when something last came that held no payload yet
        self._idle_read = self._idle_write = -1  # see _expire()
        self.proxy_header: ProxyHeader | None = None

    @property
    def closing(self) -> asyncio.Event:
        """Set as soon as the server has begun to drain."""
        return self._closing

    @property
    def local_address(self) -> Address:
        """The address on this side.

        Raises:
            anyio.ClosedResourceError: the stream has been closed.
        """
        if self._fd < 0:
            refuse_closed(None)
        return self._sock.getsockname()

    @property
    def _undelivered(self) -> bool:
        """Whether it was closed before the peer had taken all that was sent."""
        return self._send is refuse_undelivered

    # -- waiting

    def _watch(self) -> None:
        if not self._watching:
            events = self._events | READ
            self._poller.watch(self, self._fd, self._events, events)  # _set_events(), inlined
            self._events = events
            self._watching = True

    def _watch_for_bytes(self) -> None:
        """Watch for a receive, unless it is to raise IdleTimeout."""
        if self._idle_read >= 0:
            mark, self._idle_read = self._idle_read, -1
            self._check_idle(mark)
        self._watch()

    def _unwatch(self) -> None:
        if self._watching:
            events = self._events & ~READ
            self._poller.watch(self, self._fd, self._events, events)  # _set_events(), inlined
            self._events = events
        self._watching = False

    def _set_events(self, events: int) -> None:
        before = self._events
        if events != before:
            self._poller.watch(self, self._fd, before, events)
            self._events = events

    def _on_readable(self) -> None:
        waiter = self._reading
        wakeup = waiter.wakeup
        if wakeup is None:
            self._unwatch()  # no task waits: a level-triggered loop would call again and again
            self._came_at = self.bytes_received
            if self._departure is not None:
                self._departure.look()
        else:  # Waiter.wake(), inlined, with a future whose result a task takes without a call
            # Or `woken`, which does nothing: a task pauses, and the peer's end is reported.
            waiter.context.run(wakeup, self._poller.awake)
            # A cycle: it holds the task, the task its error, the error's traceback this frame.
            del wakeup

    def _on_writable(self) -> None:
        if self._writing is not None:
            self._writing.wake()

    async def _readable(self) -> None:
        """Wait until the socket may have bytes, or until `wake_soon()` is called."""
        self._watch()
        await self._reading

    async def _writable(self) -> None:
        """Wait until the socket takes bytes, or until `wake_soon()` is called."""
        writing = self._sender()
        if writing.busy:
            raise busy("sending to")
        self._set_events(self._events | WRITE)
        try:
            await writing
        finally:
            if self._fd >= 0:
                self._set_events(self._events & ~WRITE)

    def _sender(self) -> Waiter:
        """Where a task waits for the socket to take bytes."""
        if self._writing is None:
            self._writing = Waiter(self._poller.get_loop, "sending to")
        return self._writing

    def _spun(self) -> bool:
        """Count an operation that need not wait; true when it is time to let others run."""
        self._spins += 1
        if self._spins < self._SPIN_LIMIT:
            return False
        self._spins = 0
        return True

    def _wake_all(self) -> None:
        self._reading.wake_soon()
        if self._writing is not None:
            self._writing.wake_soon()
        if self._departure is not None:
            self._departure.look()

    def _unread(self) -> int:
        """Count the bytes that have arrived and were not received."""
        return unread(self._fd)

    def _read_much(self, last: int) -> bytes:
        """Receive up to 256 KiB, without TLS; the last receive has taken `last`.

        By way of a buffer: malloc maps so much memory anew, until it has seen as much freed.
        """
        scratch = self._poller.scratch
        if last == len(scratch):
            return self._sock.recv(last)
        return scratch[: self._sock.recv_into(scratch)].tobytes()

    def _untaken(self) -> int:
        """Count the bytes that were sent, and that the peer's host has not acknowledged."""
        return unacknowledged(self._sock)

    def _broken(self, exc: OSError) -> anyio.BrokenResourceError:
        """Be broken, and return the error to raise; the kernel reports it once, then an end."""
        self._unwatch()
        self._send = functools.partial(self._refuse_broken, exc)
        self._recv = functools.partial(self._receive_rest, exc)
        self._wake_all()  # a task that waits in the other direction would wait for ever
        return self._brokenness(exc)

    def _brokenness(self, exc: OSError) -> anyio.BrokenResourceError:
        return anyio.BrokenResourceError(f"the connection with {self.peer_address!r} broke: {exc}")

    @property
    def _is_broken(self) -> bool:
        """State: the connection broke; `_send` and `_recv` hold its error."""
        return isinstance(self._send, functools.partial)

    def _refuse_broken(self, exc: OSError, _: object) -> NoReturn:
        raise self._brokenness(exc) from exc

    def _receive_rest(self, exc: OSError, max_bytes: int) -> bytes:
        """Receive what had arrived before the connection broke."""
        with contextlib.suppress(OSError, ValueError, anyio.BrokenResourceError):
            # ValueError: TLS has ended, and then the connection broke. The last: in its handshake.
            if data := self._read(max_bytes):
                return data
        raise self._brokenness(exc) from exc

    # -- before the first message

    def _bar(self) -> None:
        """Refuse to send until `_let_in()` or a TLS handshake, in case a program has the stream."""
        self._send = refuse_unadmitted

    def _let_in(self) -> None:
        if self._send is refuse_unadmitted:
            self._send = self._sock.send

    async def _await_first_byte(self) -> None:
        """Wait until the peer, which has to speak first, has sent a byte or has ended.

        The byte stays in the kernel. Raises ClosedResourceError if closed meanwhile, as in a drain.
        """
        if self._closing.is_set():
            self._end_if_unheard_soon()
        if self._recv is not refuse_closed:
            self._recv = refuse_before_first_byte
        while self._recv is refuse_before_first_byte:
            try:
                socket.socket.recv(self._sock, 1, socket.MSG_PEEK)  # below TLS, if any
            except BlockingIOError:
                await self._readable()
            except OSError as exc:
                raise self._broken(exc) from exc
            else:
                self._unwatch()
                self._recv = self._read
                return
        self._send(b"")  # raises: closed, or the peer's host has vanished

    def _end_if_unheard_soon(self) -> None:
        """In a drain: end if no first byte arrives soon, for then no message is under way."""
        self._poller.loop.call_later(first_words_due(self._sock, 0.0), self._end_if_unheard)

    def _end_if_unheard(self) -> None:
        if self._recv is refuse_before_first_byte and not self._unread():
            self._close()

    async def _take_proxy_header(self) -> ProxyHeader:
        """Take a PROXY protocol header off the socket and leave in the kernel what comes behind it.

        Raises as `_await_first_byte()`; HeaderError if something else came, EndOfStream if no more.
        """
        from ..proxy.proxy_protocol import HeaderParser  # noqa: PLC0415 - a tenth of the import's time

        await self._await_first_byte()
        parser, sock = HeaderParser(), self._sock
        while parser.header is None:
            try:
                ahead = sock.recv(parser.wanted, socket.MSG_PEEK)
                if not ahead:
                    raise anyio.EndOfStream
                # Take all of it, or up to the header's end: what stays is reported again.
                data = sock.recv(parser.belonging(ahead))
            except BlockingIOError:
                await self._readable()
            except OSError as exc:
                raise self._broken(exc) from exc
            else:
                parser.feed(data)
        return parser.header

    # -- for the server

    def _begin_drain(self) -> None:
        """End at the next message boundary, but answer what had reached this host by now."""
        if self._loan is not None:
            self._loan.begin_drain()
        elif self._recv is refuse_before_first_byte:
            self._end_if_unheard_soon()
        elif self._recv == self._read != refuse_torn and self._fd >= 0:  # else at its end, or in its handshake
            self._await_first_words(said=self._said_so_far())

    def _said_so_far(self) -> int:
        """Return the `bytes_moved` of a connection whose next bytes may be on their way."""
        return 0

    def _await_first_words(self, waited: float = 0.0, said: int = 0) -> None:
        """Owe what is here; if no byte has moved since `said`, wait while one may be under way."""
        if self._fd < 0 or (waited and (self.has_what_it_owes or self._recv != self._receive_owed)):
            return  # words have come, or it has ended, or is in its handshake
        due = first_words_due(self._sock, waited)
        if self.begin_drain(self._unread(), due, said):
            self._poller.loop.call_later(due, self._await_first_words, waited + due, said)
        self._look_for_the_end()

    def _look_for_the_end(self) -> None:
        """Ask before each read from now on whether the dialogue may end."""
        self._recv = self._receive_owed
        self._unwatch()
        self._reading.wake_soon()

    def _receive_owed(self, max_bytes: int) -> bytes:
        """State: the server drains. Read to a message boundary, then report the end."""
        self.begin_message(len(self._buffer or b""))
        if self.may_end():
            return b""
        data = self._read(max_bytes)
        # Under TLS bytes are more than their payload: what the kernel holds now says it better.
        self.owe_at_most(len(data) + self._unread())
        self._unwatch()  # so that the next receive calls this before it waits
        return data

    def _expire(self) -> None:
        """Make the pending or the next wait raise IdleTimeout, unless a byte moves before."""
        if self._recv is refuse_closed:
            self._close_if_stalled()
            return
        self._idle_read = self._idle_write = self.bytes_moved  # until a wait has raised it
        self._unwatch()
        self._wake_all()

    def _close_if_stalled(self) -> None:
        """Close, if the peer has taken none of its last bytes since the last look."""
        left = self._untaken()
        if left == self._idle_write:
            self._let_go()
        self._idle_write = left

    def _check_idle_write(self) -> None:
        mark, self._idle_write = self._idle_write, -1
        self._check_idle(mark)

    def _check_idle(self, mark: int) -> None:
        if mark == self.bytes_moved:
            raise IdleTimeout(f"nothing received from or sent to {self.peer_address!r} for the idle timeout")

    # -- ending

    def abort(self) -> None:
        """Close at once: what is unsent is thrown away and the peer gets a reset. Never waits."""
        if self._fd >= 0:
            self._reset_on_close()
            self._close()

    def _reset_on_close(self) -> None:
        with contextlib.suppress(OSError):  # some kinds of socket know no lingering
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    def _let_go(self) -> None:
        """Close at once: the kernel sends the last bytes, or a reset if more arrive."""
        if self._fd >= 0 and unacknowledged(self._sock):
            self._send = refuse_undelivered
        self._close()

    def _close(self) -> None:
        if (fd := self._fd) >= 0:
            self._release()
            if accelerated and self._made_sock is None:
                os.close(fd)
            else:
                self._sock.close()

    def _release(self) -> None:
        """Stop using the descriptor, and wake the tasks that wait for it."""
        self._watching = False
        if self._events:
            self._set_events(0)
        self._fd = -1
        self._recv = self._read = refuse_closed
        if self._send is not refuse_undelivered:
            self._send = refuse_closed
        if self._reading.wakeup is not None or self._writing is not None or self._departure is not None:
            self._wake_all()
