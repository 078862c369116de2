"""TLSConnection: a connection that can go over to TLS, as the server side.

Theory of operation. The socket becomes an `ssl.SSLSocket` in non-blocking mode: OpenSSL reads and writes
the descriptor itself, and "want read" is one more way to say "would block". Four things are odd:

* OpenSSL's queue of errors belongs to the thread (openssl.py): it is cleared wherever a system error
  has been met, or other connections of the thread would be told of it.
* What OpenSSL has decrypted already is seen by no poll: after a full read the next one is tried first.
* A send that would block has begun a record, which only the same bytes can finish: the stream is torn if
  they do not come.
* To end our side alone, OpenSSL writes its alert into another socket, see `_half_close_notify`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

from ..net.socket_info import unsent
from ..tls.openssl import clear_errors
from .connection import CHUNK, Connection
from .states import at_end, refuse_closed, refuse_torn

if TYPE_CHECKING:
    import anyio

_RECORD = 16384  # the payload of a TLS record at most (RFC 8446, 5.1)


class TLSConnection(Connection):
    """A connection, and what TLS changes about it once it is under it."""

    __slots__ = ()

    bytes_received: int
    bytes_sent: int

    def _unread(self) -> int:
        """Bytes in the kernel, and in OpenSSL, that nobody has received."""
        return super()._unread() + (self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0)

    def _unsent(self) -> bool:
        """Whether the peer had no room yet for all that we have sent."""
        # A Unix peer, whose address is a text, has everything as soon as it is sent.
        return self.bytes_sent > 0 and type(self.peer_address) is not str and unsent(self._fd) > 0

    def _broken(self, exc: OSError) -> anyio.BrokenResourceError:
        self._clear_errors()
        return super()._broken(exc)

    def _receive_rest(self, exc: OSError, max_bytes: int) -> bytes:
        try:
            return super()._receive_rest(exc, max_bytes)
        finally:
            self._clear_errors()

    def _clear_errors(self) -> None:
        if isinstance(self._sock, ssl.SSLSocket):
            clear_errors()

    def _close_if_quiet(self) -> bool:
        """Close now, if that cannot cost the peer anything: no TLS to end, nothing unread or unsent."""
        if self._sock.fileno() != self._fd >= 0:
            self._release()  # closed behind our back, by way of the raw socket
        if self._fd >= 0:
            # At its end nothing can be unread, or come to take what is unsent away, unless the drain said that it is.
            quiet = self._recv is at_end and not self._closing.is_set()
            if isinstance(self._sock, ssl.SSLSocket) or not (quiet or not (self._unread() or self._unsent())):
                return False
            self._close()
        return True

    async def _secure(self, context: ssl.SSLContext) -> None:
        """Go over to TLS; who comes through the handshake while we drain has its first words still before it."""
        try:
            await self._handshake(context)
        except OSError as exc:
            raise self._broken(exc) from exc
        if self._closing.is_set():
            self._await_first_words(said=self.bytes_moved)

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
            await self._await_first_byte()
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

    def _receive_owed(self, max_bytes: int) -> bytes:
        whole = isinstance(self._sock, ssl.SSLSocket) and self._holds_whole_records()
        try:
            return super()._receive_owed(max_bytes)
        except ssl.SSLWantReadError:
            if whole and self._owes_no_payload():
                return b""
            raise

    def _holds_whole_records(self) -> bool:
        """Whether what the kernel holds ends where a TLS record does, so that OpenSSL will keep no part of one."""
        end, ahead = 0, b"?"
        with contextlib.suppress(OSError):
            ahead = socket.socket.recv(self._sock, CHUNK, socket.MSG_PEEK)
        while end + 5 <= len(ahead):  # a record's type, two bytes of version, two of length
            end += 5 + int.from_bytes(ahead[end + 3 : end + 5])
        return end == len(ahead)

    def _owes_no_payload(self) -> bool:
        self.owe_at_most(self._unread())  # what was read were TLS's own records: a key update (RFC 8446, 4.6.3)
        return self.may_end()

    def _send_tls(self, item: Any) -> int:
        """Send a record: given more, OpenSSL goes on until the kernel is full, and does not tell how far it came."""
        return self._sock.send(item if len(item) <= _RECORD else memoryview(item)[:_RECORD])

    async def _close_notify(self) -> None:
        """Send TLS's end of stream, if any, before the socket is closed; does not wait for the peer's."""
        while isinstance(self._sock, ssl.SSLSocket):
            try:
                self._sock.unwrap()
            except ssl.SSLWantWriteError:
                await self._writable()
            except ssl.SSLWantReadError:
                return  # sent, and the peer's is not here yet
            except (ssl.SSLError, ValueError):
                return  # for example: its data crosses our close_notify
            else:
                return

    async def _half_close_notify(self, sock: ssl.SSLSocket) -> None:
        """Send TLS's end of stream and leave the peer's side alone.

        Python's `unwrap()` goes on to look for the peer's close_notify, and OpenSSL gives the connection up when it
        finds data there instead. So what it has decrypted already is kept here first; and for the time of the call
        the descriptor is a socket that nothing comes out of, and what was written into that is sent on.
        """
        while pending := sock.pending():
            if self._reading.busy:  # at a pause, with nothing taken: it comes first
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
        """Have OpenSSL write its end of stream to us instead of the peer; never waits."""
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
            return theirs.recv(CHUNK)
