"""Connection: a connected, non-blocking socket, plain or TLS, and the tasks that wait for it.

What a Stream stands on: the descriptor's watches, the waiters, the TLS handshake, and the ways to end.

States are functions. `_recv` and `_send` are what the next call does: use the socket, report the end, or refuse with
the reason. The hot path looks at nothing else, and a state that is swapped in cannot be forgotten by a check.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Any, NoReturn

import anyio

from ._kernel import first_words_due, unread
from ._openssl import clear_errors
from ._poller import READ, WRITE
from ._waiter import Waiter
from .proxy_protocol import HeaderParser

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._poller import Poller
    from ._types import Address
    from .proxy_protocol import ProxyHeader

CHUNK = 65536  # what one receive takes at most unless told otherwise; anyio's default, and a pipe's capacity
_RECORD = 16384  # the payload of a TLS record at most (RFC 8446, 5.1)

# Chunks that are thrown away at most where nobody is waited for.
_LEFTOVERS = 16

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # socket(7): SO_LINGER with no time discards what is unsent and resets


def refuse_closed(_: object) -> NoReturn:
    """Be a stream closed on this side."""
    raise anyio.ClosedResourceError("this stream has been closed")


def refuse_after_eof(_: object) -> NoReturn:
    """Be a stream whose sending side has been ended."""
    raise anyio.ClosedResourceError("send_eof() has been called on this stream: nothing more can be sent")


def refuse_busy(_: object) -> NoReturn:
    """Be a stream on which a send is under way."""
    raise anyio.BusyResourceError("sending to")


def refuse_torn(_: object) -> NoReturn:
    """Be a TLS stream that stopped in the middle of a record or of its handshake."""
    raise anyio.BrokenResourceError("TLS was interrupted in the middle of a record: this stream can only be closed")


def refuse_unheard(_: object) -> NoReturn:
    """Be a stream whose peer has yet to begin with its handshake, or with its PROXY header."""
    refuse_torn(None)


def at_end(_: int) -> bytes:
    """Be a stream whose peer has ended."""
    return b""


class Connection:
    """A connected socket and who waits for it."""

    __slots__ = (
        "_events",
        "_fd",
        "_poller",
        "_read",
        "_reading",
        "_recv",
        "_send",
        "_sock",
        "_watching",
        "_writing",
        "peer_address",
    )

    def __init__(self, poller: Poller, sock: socket.socket, peer_address: Address) -> None:
        self._poller = poller
        self._sock = sock
        self._fd = sock.fileno()
        self.peer_address: Address = peer_address
        self._recv: Callable[[int], bytes] = sock.recv
        # What really reads, where _recv may be a state in front of it.
        self._read: Callable[[int], bytes] = self._recv
        self._send: Callable[[Any], int] = sock.send
        self._reading = Waiter(poller.loop, "receiving from")
        self._writing: Waiter | None = None
        self._events = 0  # what the poller watches for,
        self._watching = False  # and whether that includes READ

    # -- waiting

    def _watch(self) -> None:
        if not self._watching:
            self._set_events(self._events | READ)
            self._watching = True

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._set_events(self._events & ~READ)

    def _set_events(self, events: int) -> None:
        if events != self._events:
            self._poller.watch(self, self._fd, self._events, events)
            self._events = events

    def _on_readable(self) -> None:
        waiter = self._reading
        wakeup = waiter._wakeup
        if wakeup is None:
            self._unwatch()  # nobody waits: a level-triggered loop would call again and again
        else:  # Waiter.wake(), inlined
            waiter._wakeup = None
            waiter._context.run(wakeup, waiter)
            del wakeup  # holds the task; an error's traceback holds this frame (f_back), and the task the error

    def _on_writable(self) -> None:
        if self._writing is not None:
            self._writing.wake()

    async def _readable(self) -> None:
        """Wait until the socket may have bytes, or somebody calls `wake_soon()`."""
        self._watch()
        await self._reading

    async def _writable(self) -> None:
        """Wait until the socket takes bytes, or somebody calls `wake_soon()`."""
        if self._writing is None:
            self._writing = Waiter(self._poller.loop, "sending to")
        if self._writing.busy:
            raise anyio.BusyResourceError("sending to")
        self._set_events(self._events | WRITE)
        try:
            await self._writing
        finally:
            if self._fd >= 0:
                self._set_events(self._events & ~WRITE)

    def _wake_all(self) -> None:
        self._reading.wake_soon()
        if self._writing is not None:
            self._writing.wake_soon()

    def _unread(self) -> int:
        """Bytes in the kernel, and in OpenSSL, that nobody has received."""
        return unread(self._fd) + (self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0)

    def _broken(self, exc: OSError) -> anyio.BrokenResourceError:
        """Be broken from now on. The kernel tells an error once and then reports an end, as if all had come."""
        self._clear_errors()
        self._unwatch()
        self._send = functools.partial(self._refuse_broken, exc)
        self._recv = functools.partial(self._receive_rest, exc)
        self._wake_all()  # a task that waits in the other direction would wait for ever
        return self._brokenness(exc)

    def _clear_errors(self) -> None:
        """See that no other connection is told what happened to this one."""
        if isinstance(self._sock, ssl.SSLSocket):
            clear_errors()

    def _brokenness(self, exc: OSError) -> anyio.BrokenResourceError:
        return anyio.BrokenResourceError(f"the connection with {self.peer_address!r} broke: {exc}")

    def _refuse_broken(self, exc: OSError, _: object) -> NoReturn:
        raise self._brokenness(exc) from exc

    def _receive_rest(self, exc: OSError, max_bytes: int) -> bytes:
        """Receive what had arrived before the connection broke."""
        try:
            data = self._read(max_bytes)
        except (OSError, ValueError):  # ValueError: TLS came to its end, and then the rest broke
            self._clear_errors()
        else:
            if data:
                return data
        raise self._brokenness(exc) from exc

    # -- before all else

    async def _hear(self) -> None:
        """Wait until the peer, who has to speak first, has said something or has ended; leaves it in the kernel.

        Raises:
            anyio.ClosedResourceError: closed meanwhile, for example by a server that drains.
            anyio.BrokenResourceError: the connection broke.
        """
        if self._recv is not refuse_closed:
            self._recv = refuse_unheard
        while self._recv is refuse_unheard:
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
        refuse_closed(None)

    def _end_if_unheard_soon(self) -> None:
        """The server drains: a peer that has yet to say its first byte is between two messages, but may be about to."""
        self._poller.loop.call_later(first_words_due(self._sock, 0.0), self._end_if_unheard)

    def _end_if_unheard(self) -> None:
        if self._recv is refuse_unheard and not self._unread():
            self._close()

    async def _take_proxy_header(self) -> ProxyHeader:
        """Take a PROXY protocol header off the socket and leave in the kernel what comes behind it.

        Raises:
            HeaderError: something else came.
            anyio.EndOfStream: nothing more came.
            anyio.ClosedResourceError: the server drains, and nothing came at all.
            anyio.BrokenResourceError: the connection broke.
        """
        await self._hear()
        parser, sock = HeaderParser(), self._sock
        while parser.header is None:
            try:
                ahead = sock.recv(parser.wanted, socket.MSG_PEEK)
                if not ahead:
                    raise anyio.EndOfStream
                # All that was looked at, unless the header ends in it: what is left lying would be reported again.
                data = sock.recv(parser.belonging(ahead))
            except BlockingIOError:
                await self._readable()
            except OSError as exc:
                raise self._broken(exc) from exc
            else:
                parser.feed(data)
        return parser.header

    # -- TLS

    async def _handshake(self, context: ssl.SSLContext) -> None:
        """Become the server side of a TLS connection. Fails with OSError, and is then good for closing only."""
        self._unwatch()
        self._recv = self._send = refuse_torn
        self._sock.getpeername()  # fails after a reset; up to Python 3.12 wrap_socket() then leaves the descriptor open
        try:
            self._sock = sock = context.wrap_socket(
                self._sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
            )
        except BaseException:  # it has closed the descriptor that it took over
            self._close()
            raise
        try:
            await self._hear()
            self._recv = refuse_torn
            await self._shake_hands(sock)
        finally:
            self._unwatch()  # what is watched is waited for before anybody asks for the state
        self._recv = self._read = self._read_tls
        self._send = self._send_tls

    async def _shake_hands(self, sock: ssl.SSLSocket) -> None:
        while True:
            try:
                sock.do_handshake()
            except ssl.SSLWantReadError:
                await self._readable()
            except ssl.SSLWantWriteError:
                await self._writable()
            else:
                return
            if self._recv is refuse_closed:  # by another task, which may still wait for the peer
                refuse_closed(None)

    def _read_tls(self, max_bytes: int) -> bytes:
        sock = self._sock
        try:
            data: bytes = sock.read(max_bytes)  # type: ignore[attr-defined] # an SSLSocket; the hot path asks nothing
        except ssl.SSLZeroReturnError:  # both sides have sent close_notify
            return b""
        if len(data) == max_bytes:
            self._unwatch()  # the rest of a record is in OpenSSL, where the loop cannot see it: try that first
        return data

    def _send_tls(self, item: Any) -> int:
        """Send a record: given more, OpenSSL goes on until the kernel is full, and does not tell how far it came."""
        return self._sock.send(item if len(item) <= _RECORD else memoryview(item)[:_RECORD])

    async def _close_notify(self, sock: ssl.SSLSocket) -> None:
        """Send TLS's end of stream, before the socket is closed; does not wait for the peer's."""
        while True:
            try:
                sock.unwrap()
            except ssl.SSLWantWriteError:
                await self._writable()
            except ssl.SSLWantReadError:
                return  # sent, and the peer's is not here yet
            else:
                return

    async def _half_close_notify(self, sock: ssl.SSLSocket) -> None:
        """Send TLS's end of stream and leave the peer's side alone.

        Python's `unwrap()` goes on to look for the peer's close_notify, and OpenSSL gives the connection up when it
        finds data there instead. So for the time of the call the descriptor is a socket that nothing comes out of,
        and what was written into it is sent on.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            kept = os.dup(self._fd)
            try:
                os.dup2(ours.fileno(), self._fd, inheritable=False)
                with contextlib.suppress(ssl.SSLWantReadError):
                    sock.unwrap()
            finally:
                # epoll watches what the descriptor stood for, and that lives on in `kept`.
                os.dup2(kept, self._fd, inheritable=False)
                os.close(kept)
            theirs.setblocking(False)
            alert = theirs.recv(CHUNK)
        while alert:
            try:
                alert = alert[socket.socket.send(sock, alert) :]
            except BlockingIOError:
                await self._writable()

    # -- ending

    async def _finish(self, *, notify: bool, broken: bool) -> None:
        """Bring the last bytes across, as far as the peer cooperates.

        A broken connection has only an alert of TLS to bring across. Its peer may go on sending without end, and is
        not waited for.
        """
        sock = self._sock
        if notify and isinstance(sock, ssl.SSLSocket):
            with contextlib.suppress(ssl.SSLError, ValueError):  # for example: its data crosses our close_notify
                await self._close_notify(sock)
        if self._fd >= 0 and self._unread():
            sock.shutdown(socket.SHUT_WR)
            if broken:
                self._discard_leftovers(sock)
            else:
                await self._discard(sock)

    @staticmethod
    def _discard_leftovers(sock: socket.socket) -> None:
        """Throw away what is there: a close on top of it would reset, and the alert could be lost."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_LEFTOVERS):
                if not socket.socket.recv(sock, CHUNK):
                    return

    async def _discard(self, sock: socket.socket) -> None:
        """Throw away what arrives until the peer ends."""
        while True:
            try:
                if not socket.socket.recv(sock, CHUNK):  # below TLS, if any
                    return
            except BlockingIOError:
                await self._readable()

    def abort(self) -> None:
        """Close at once: what the kernel has not sent yet is thrown away and the peer gets a reset. Never waits."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # some kinds of socket know no lingering
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            self._release()
            self._sock.close()

    def _release(self) -> None:
        """Stop using the descriptor, and wake whoever waits for it."""
        self._watching = False
        self._set_events(0)
        self._fd = -1
        self._recv = self._read = self._send = refuse_closed
        self._wake_all()
