"""Requests: the sockets that hosted handlers see: blocking, counted, and ended by a drain.

What receives or sends is a method in Python. It tells the stream's loan how many bytes there were,
and when the handler waits for some; and it shows in tracebacks. Under TLS a handler waits below
OpenSSL, for the first byte in the kernel: an end that OpenSSL sees without a close_notify would be
an error, of which it tells the client (RFC 8446, 6.1).
"""

from __future__ import annotations

import functools
import io
import math
import select
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncserver import Stream

__all__ = ["Request", "lent"]

# Bytes that a slow reader must take per idle timeout: one TLS record (RFC 8446, 5.1).
_PIECE = 16384


class Request:
    """What a handler's socket has beside a socket's own."""

    idle_timeout: float | None = None  # the server's, unless the handler gives it one of its own
    loan: Any  # the stream's

    def _send_pieces(self: Any, data: Any, flags: int) -> None:
        """Send all under the server's idle timeout: a peer that takes some is not idle."""
        sent, view = 0, memoryview(data)
        while sent < view.nbytes:
            sent += self.send(view.cast("B")[sent : sent + _PIECE], flags)

    def makefile(self: Any, mode: str = "r", buffering: int | None = None, **options: Any) -> Any:
        """Make a file object. One that reads bytes says how many wait in its buffer."""
        if mode != "rb" or buffering == 0:
            return super().makefile(mode, buffering, **options)  # type: ignore[misc] # a socket's
        raw = super().makefile(mode, 0)  # type: ignore[misc]
        raw.__class__ = _RawReader
        return _Reader(raw, io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering)


class _RawReader(socket.SocketIO):
    """What fills the buffer."""

    _sock: Any

    def readinto(self, buffer: Any) -> int | None:
        nbytes = super().readinto(buffer)
        self._sock.loan.buffered += nbytes or 0
        return nbytes


class _Reader(io.BufferedReader):
    """A buffer from which the handler takes."""

    def __init__(self, raw: Any, size: int) -> None:
        super().__init__(raw, size)
        self._loan = raw._sock.loan

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self._loan.buffered -= len(line)
        return line


def _taking(name: str, count: Callable[[Any], int]) -> Callable[..., Any]:
    original = getattr(io.BufferedReader, name)

    @functools.wraps(original)
    def method(self: _Reader, *args: Any) -> Any:
        taken = original(self, *args)
        if taken:
            self._loan.buffered -= count(taken)
        return taken

    return method


_TAKING: dict[str, Callable[[Any], int]] = {"read": len, "read1": len, "readinto": int, "readinto1": int}
for _name, _count in _TAKING.items():
    setattr(_Reader, _name, _taking(_name, _count))

_PEEK = int(socket.MSG_PEEK)  # the enum's own `&` takes as long as a system call
_recv = socket.socket.recv
_recv_into = socket.socket.recv_into
_sendall = socket.socket.sendall


class _PlainRequest(Request, socket.socket):
    """A request without TLS. Those methods that handlers call all the time are written out."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        loan = self.loan
        loan.waiting = True
        try:
            if loan.draining and loan.at_end():
                return b""
            data = _recv(self, bufsize, flags)
        finally:
            loan.waiting = False
        if not flags & _PEEK:
            loan.received(len(data))
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        loan = self.loan
        loan.waiting = True
        try:
            if loan.draining and loan.at_end():
                return 0
            nbytes = _recv_into(self, buffer, nbytes, flags)
        finally:
            loan.waiting = False
        if not flags & _PEEK:
            loan.received(nbytes)
        return nbytes

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        if self.idle_timeout is None or self.gettimeout() != self.idle_timeout:
            _sendall(self, data, flags)
            self.loan.sent(len(data) if type(data) is bytes else memoryview(data).nbytes)
        else:
            self._send_pieces(data, flags)

    def dup(self) -> Any:
        """Make a copy that is a plain socket, and not counted."""
        copy = socket.socket(self.family, self.type, self.proto, fileno=socket.dup(self.fileno()))
        copy.settimeout(self.gettimeout())
        return copy

    def _sendfile_use_sendfile(self, *args: Any) -> int:  # the stdlib's, past the other methods
        sent: int = super()._sendfile_use_sendfile(*args)  # type: ignore[misc]
        self.loan.sent(sent)
        return sent


def _receiving(name: str, end: object, count: Callable[[Any], int], flags_at: int) -> Callable[..., Any]:
    original = getattr(socket.socket, name)

    @functools.wraps(original)
    def method(self: _PlainRequest, *args: Any, **kwargs: Any) -> Any:
        loan = self.loan
        loan.waiting = True
        try:
            if loan.at_end():
                return end
            received = original(self, *args, **kwargs)
        finally:
            loan.waiting = False
        flags = args[flags_at] if len(args) > flags_at else kwargs.get("flags", 0)
        if not flags & _PEEK:
            loan.received(count(received[0]))
        return received

    return method


def _sending(name: str) -> Callable[..., Any]:
    original = getattr(socket.socket, name)

    @functools.wraps(original)
    def method(self: _PlainRequest, *args: Any) -> int:
        sent: int = original(self, *args)
        self.loan.sent(sent)
        return sent

    return method


_RECEIVING: dict[str, tuple[object, Callable[[Any], int], int]] = {
    "recvfrom": ((b"", None), len, 1),
    "recvfrom_into": ((0, None), int, 2),
    "recvmsg": ((b"", [], 0, None), len, 2),
    "recvmsg_into": ((0, [], 0, None), int, 2),
}
for _name, _told in _RECEIVING.items():
    setattr(_PlainRequest, _name, _receiving(_name, *_told))
for _name in ("send", "sendmsg", "sendto"):
    setattr(_PlainRequest, _name, _sending(_name))


class _TLSRequest(Request):
    """A request under TLS: what its class has before the SSLSocket."""

    def read(self: Any, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - as ssl has it
        """Wait for bytes, and let OpenSSL read. Whatever receives calls this."""
        loan, timeout = self.loan, self.gettimeout()
        until = time.monotonic() + (timeout or math.inf)
        while self.pending() or self._wait():
            whole = loan.holds_whole_records()
            try:
                received = self._read_what_is_here(len, buffer)
            except ssl.SSLWantReadError:
                loan.found_no_payload(whole=whole)
                if timeout == 0:
                    raise
                if time.monotonic() >= until:
                    raise TimeoutError("The read operation timed out") from None
            else:
                loan.decrypted = self.pending()
                loan.received(received if buffer is not None else received.__len__())
                return received
        return b"" if buffer is None else 0

    def _read_what_is_here(self: Any, *arguments: Any) -> Any:
        """Let OpenSSL read, but not wait: it may find no payload, or a part of a record."""
        timeout = self._timeout = self.gettimeout()
        socket.socket.settimeout(self, 0)
        try:
            return self._with_room(super().read, *arguments)  # type: ignore[misc] # an SSLSocket's
        finally:
            socket.socket.settimeout(self, timeout)
            del self._timeout

    def _with_room(self: Any, method: Callable[..., Any], *arguments: Any) -> Any:
        """Wait for room where OpenSSL needs some; also a thread that sends while another reads."""
        while True:
            try:
                return method(*arguments)
            except ssl.SSLWantWriteError:
                timeout = vars(self).get("_timeout", self.gettimeout())
                if timeout == 0:
                    raise
                room = select.poll()
                room.register(self, select.POLLOUT)
                if not room.poll(None if timeout is None else timeout * 1000):
                    raise TimeoutError("The write operation timed out") from None

    def _wait(self: Any) -> bool:
        """Wait until the kernel has a byte or an end; false if it is the drain's."""
        loan = self.loan
        loan.waiting = True
        try:
            if loan.at_end():
                return False
            ahead = self.gettimeout() == 0 or socket.socket.recv(self, 1, socket.MSG_PEEK)
        finally:
            loan.waiting = False
        return bool(ahead) or not loan.ended

    def send(self: Any, data: Any, flags: int = 0) -> int:
        """Send, and count it."""
        sent: int = self._with_room(super().send, data, flags)  # type: ignore[misc]
        self.loan.sent(sent)
        return sent

    def write(self: Any, data: Any) -> int:
        """Send, and count it."""
        sent: int = self._with_room(super().write, data)  # type: ignore[misc]
        self.loan.sent(sent)
        return sent

    def sendall(self: Any, data: Any, flags: int = 0) -> None:
        """Send all, by `send()`, which counts."""
        if self.idle_timeout is None or self.gettimeout() != self.idle_timeout:
            super().sendall(data, flags)  # type: ignore[misc]
        else:
            self._send_pieces(data, flags)


@functools.cache
def _tls_request(kind: Any) -> type[ssl.SSLSocket]:
    """Make the class for a context's kind of socket."""
    return type(kind.__name__, (_TLSRequest, kind), {})


def lent(stream: Stream, idle_timeout: float | None, *, answers: bool) -> Any:
    """Take a stream's socket as a request. The server goes on to count and drain the stream.

    Without `answers` its drain waits for none.
    """
    request: Any = stream.detach()
    if isinstance(request, ssl.SSLSocket):
        kind: Any = type(request)
        request.__class__ = _tls_request(kind)
    else:
        request = _PlainRequest(request.family, request.type, request.proto, fileno=request.detach())
    request.idle_timeout = idle_timeout
    request.settimeout(idle_timeout)  # None: blocking, as handlers expect it
    request.loan = stream._lend(request, answers=answers)
    return request
