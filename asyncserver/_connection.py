"""Connection: a connected, non-blocking socket, plain or TLS, and the tasks that wait for it.

What a Stream stands on: the descriptor's watches, the waiters, the TLS handshake, and the ways to end.

States are functions. `_recv` and `_send` are what the next call does: use the socket, report the end, or refuse with
the reason. The hot path looks at nothing else, and a state that is swapped in cannot be forgotten by a check.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import socket
import ssl
import struct
import sys
import termios
from typing import TYPE_CHECKING, Any, NoReturn

import anyio

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

# Seconds that a peer may take for its first bytes: they follow its connection (or the header that a proxy puts before
# them) at once, or after one retransmission, which takes the round trip and 200 ms on Linux.
_FIRST_WORDS = 0.5
_SILENT_FOR = slice(52, 56)  # tcpi_last_data_recv in struct tcp_info, linux/tcp.h: ms since the last data or the start

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


def at_end(_: int) -> bytes:
    """Be a stream whose peer has ended."""
    return b""


def first_words_due(sock: socket.socket, waited: float) -> float:
    """Seconds in which the first bytes of a peer that has said nothing yet may still be on their way.

    Args:
        sock: its connection.
        waited: seconds that it has been waited for already; the kernel knows better, if it is TCP.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SILENT_FOR.stop)
    except OSError:  # a Unix socket
        return max(0.0, _FIRST_WORDS - waited)
    return max(0.0, _FIRST_WORDS - int.from_bytes(info[_SILENT_FOR], sys.byteorder) / 1000)


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
        size = bytearray(4)
        fcntl.ioctl(self._fd, termios.FIONREAD, size)
        pending = self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0
        return int.from_bytes(size, sys.byteorder) + pending

    def _broken(self, exc: OSError) -> anyio.BrokenResourceError:
        """Be broken from now on. The kernel tells an error once and then reports an end, as if all had come."""
        self._unwatch()
        self._send = functools.partial(self._refuse_broken, exc)
        self._recv = functools.partial(self._receive_rest, exc)
        self._wake_all()  # a task that waits in the other direction would wait for ever
        return self._brokenness(exc)

    def _brokenness(self, exc: OSError) -> anyio.BrokenResourceError:
        return anyio.BrokenResourceError(f"the connection with {self.peer_address!r} broke: {exc}")

    def _refuse_broken(self, exc: OSError, _: object) -> NoReturn:
        raise self._brokenness(exc) from exc

    def _receive_rest(self, exc: OSError, max_bytes: int) -> bytes:
        """Receive what had arrived before the connection broke."""
        with contextlib.suppress(OSError):
            if data := self._read(max_bytes):
                return data
        raise self._brokenness(exc) from exc

    # -- before all else

    async def _take_proxy_header(self) -> ProxyHeader:
        """Take a PROXY protocol header off the socket and leave in the kernel what comes behind it.

        Raises:
            HeaderError: something else came.
            anyio.EndOfStream: nothing more came.
            anyio.BrokenResourceError: the connection broke.
        """
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
        try:
            self._sock = sock = context.wrap_socket(
                self._sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
            )
        except BaseException:  # it has closed the descriptor that it took over
            self._close()
            raise
        try:
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

    async def _finish(self, *, notify: bool) -> None:
        """Bring the last bytes across, as far as the peer cooperates."""
        sock = self._sock
        if notify and isinstance(sock, ssl.SSLSocket):
            with contextlib.suppress(ssl.SSLError, ValueError):  # for example: its data crosses our close_notify
                await self._close_notify(sock)
        if self._fd >= 0 and self._unread():
            sock.shutdown(socket.SHUT_WR)
            await self._discard(sock)

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
