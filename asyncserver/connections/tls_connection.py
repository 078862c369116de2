"""TLSConnection: a connection that can go over to TLS, as the server side.

Theory of operation. The socket becomes an `ssl.SSLSocket` in non-blocking mode: OpenSSL reads and
writes the descriptor itself, and says "want read" where a socket would block. Messages go to its
`_sslobj`, to which the methods of SSLSocket only pass them on: these take as long as all else that
Python does for a small message. Four things are odd:

* OpenSSL's queue of errors belongs to the thread (tls/openssl.py): it is cleared after each system
  error, or other connections of the thread would get that error.
* No poll sees what OpenSSL has decrypted already: after a full read the next one is tried first.
* A send that would block has begun a record, which only the same bytes can finish:
  without them the stream is torn.
* To end our side alone, OpenSSL writes its alert into another socket, see `_half_close_notify`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import traceback
from typing import TYPE_CHECKING, Any

from ..net.socket_info import unread, unsent
from ..tls.openssl import clear_errors
from ..tls.records import holds_whole_records
from .connection import CHUNK
from .kept_connection import KeptConnection
from .states import at_end, behind_posts, refuse_before_first_byte, refuse_busy, refuse_torn

if TYPE_CHECKING:
    import anyio

_RECORD = 16384  # the payload of a TLS record at most (RFC 8446, 5.1)


class TLSConnection(KeptConnection):
    """A connection, and what TLS changes about it once it has started."""

    __slots__ = ()

    bytes_received: int
    bytes_sent: int

    def _unread(self) -> int:
        """Count the bytes in the kernel and in OpenSSL that were not received."""
        return super()._unread() + (self._sock.pending() if self._tls else 0)  # type: ignore[attr-defined]

    def _unsent(self) -> bool:
        """Whether the peer had no room yet for all that we have sent."""
        # A Unix peer, whose address is a text, has everything as soon as it is sent.
        return self.bytes_sent > 0 and type(self.peer_address) is not str and unsent(self._fd) > 0

    @property
    def _is_torn(self) -> bool:
        """A send is under way, or was interrupted: what follows makes no sense to the peer."""
        return self._send in {refuse_torn, refuse_busy}

    @property
    def _is_in_handshake(self) -> bool:
        """A handshake is under way, or has failed."""
        return self._recv in {refuse_torn, refuse_before_first_byte}

    def _broken(self, exc: OSError) -> anyio.BrokenResourceError:
        self._clear_errors()
        return super()._broken(exc)

    def _receive_rest(self, exc: OSError, max_bytes: int) -> bytes:
        try:
            return super()._receive_rest(exc, max_bytes)
        finally:
            self._clear_errors()

    def _clear_errors(self) -> None:
        if self._tls:
            clear_errors()

    def _close_if_quiet(self) -> bool:
        """Close now, if the peer loses nothing by it: no TLS to end, nothing unread or unsent."""
        if self._tls or self._shared:
            if self._sock.fileno() != self._fd >= 0:
                self._release()  # the handler has closed the raw socket
            elif self._tls and self._fd >= 0:
                return False
        if self._fd >= 0:
            if self._send is behind_posts:
                return False
            # Once the peer has ended, nothing is unread, and nothing can arrive and cause a reset.
            # But in a drain the end may be the server's.
            if (self._recv is not at_end or self._owed_until is not None) and (self._unread() or self._unsent()):
                return False
            self._close()
        return True

    async def _secure(self, context: ssl.SSLContext) -> None:
        """Start TLS. In a drain the peer's first words are then still to come."""
        try:
            await self._handshake(context)
        except OSError as exc:
            raise self._broken(exc) from exc
        if self._closing.is_set():
            self._await_first_words(said=self.bytes_moved)

    async def _handshake(self, context: ssl.SSLContext) -> None:
        """Do the handshake, as the server side. After an OSError it can only be closed."""
        self._unwatch()
        self._recv = self._read = self._send = refuse_torn
        self._sock.getpeername()  # raises after a reset, before wrap_socket() takes anything over
        try:
            self._sock = sock = context.wrap_socket(
                self._sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
            )
        except BaseException as exc:
            _close_taken_over(exc)
            self._close()
            raise
        self._tls = True
        try:
            await self._await_first_byte()
            self._recv = refuse_torn
            await self._shake_hands(sock)
        finally:
            self._unwatch()  # a watched stream would wait before it calls the state in `_recv`
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
            if self._recv is not refuse_torn:  # another task closes, or the peer has vanished
                self._send(b"")  # raises

    def _read_tls(self, max_bytes: int) -> bytes:
        sock: Any = self._sock
        came = self._watching or unread(self._fd)  # watched it is read only when something has come
        try:
            data: bytes = (sock._sslobj or sock).read(max_bytes)  # None: the handler has closed it
        except ssl.SSLZeroReturnError:  # both sides have sent close_notify
            return b""
        except ssl.SSLWantReadError:
            if came:
                self._came_at = self.bytes_received
            raise
        if len(data) == max_bytes:
            # The rest of a record may be in OpenSSL, where the loop cannot see it: try that first.
            self._unwatch()
        return data

    def _said_so_far(self) -> int:
        """In a drain wait as for first words, if OpenSSL may hold a part of a record."""
        return self.bytes_moved if self._came_at == self.bytes_received else 0

    def _receive_owed(self, max_bytes: int) -> bytes:
        whole = self._holds_whole_records()
        try:
            return super()._receive_owed(max_bytes)
        except ssl.SSLWantReadError:
            if whole and self._owes_no_payload():
                return b""
            raise

    def _holds_whole_records(self) -> bool:
        return self._tls and holds_whole_records(self._sock)

    def _owes_no_payload(self) -> bool:
        # What was read were TLS's own records, such as a key update (RFC 8446, 4.6.3).
        self.owe_at_most(self._unread())
        return self.may_end()

    def _send_tls(self, item: Any) -> int:
        """Send one record: given more, OpenSSL does not say how far it came when it blocks."""
        if len(item) > _RECORD:
            item = memoryview(item)[:_RECORD]
        sock: Any = self._sock
        engine = sock._sslobj
        sent: int = sock.send(item) if engine is None else engine.write(item)  # None as above
        return sent

    async def _close_notify(self) -> None:
        """Send TLS's end of stream before the socket is closed; does not wait for the peer's."""
        while isinstance(self._sock, ssl.SSLSocket):
            try:
                self._sock.unwrap()
            except ssl.SSLWantWriteError:
                await self._writable()
            except (ssl.SSLError, ValueError):  # sent, but the peer's is not here, or data crosses it
                return
            else:
                return

    async def _half_close_notify(self, sock: ssl.SSLSocket) -> None:
        """Send TLS's end of stream and leave the peer's side alone.

        `unwrap()` also looks for the peer's, and breaks the connection when it finds data. So what
        OpenSSL has decrypted is kept here first; and during the call the descriptor is another
        socket, from which nothing can be read. What was written into that is sent on.
        """
        while pending := sock.pending():
            if self._reading.busy:  # a receive that has paused and taken nothing comes first
                await asyncio.sleep(0)
                continue
            data = sock.read(pending)
            self.bytes_received += len(data)
            self._buffer = (self._buffer or bytearray()) + data
        alert = self._end_of_stream(sock)
        while alert:
            try:
                alert = alert[socket.socket.send(sock, alert) :]
            except BlockingIOError:
                await self._writable()

    def _end_of_stream(self, sock: ssl.SSLSocket) -> bytes:
        """Let OpenSSL write its end of stream to us instead of the peer; never waits."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            kept = os.dup(self._fd)
            try:
                os.dup2(ours.fileno(), self._fd, inheritable=False)
                with contextlib.suppress(ssl.SSLWantReadError):
                    sock.unwrap()
            finally:
                # epoll watches the open file, not the descriptor; `kept` has kept it open.
                os.dup2(kept, self._fd, inheritable=False)
                os.close(kept)
            theirs.setblocking(False)
            return theirs.recv(CHUNK)


def _close_taken_over(exc: BaseException) -> None:
    """Close the descriptor that a failed `wrap_socket()` has taken over.

    Up to Python 3.12 it stays open after a reset, in an SSLSocket that only the traceback knows,
    and so until the garbage collector finds it: the connection keeps its error.
    """
    for frame, _ in traceback.walk_tb(exc.__traceback__ and exc.__traceback__.tb_next):
        sock = frame.f_locals.get("self")
        if isinstance(sock, ssl.SSLSocket):
            sock.close()
