"""ProtocolTransport: a connection as asyncio's protocols see it.

It does what the stock loop's own transport does (asyncio/selector_events.py), on both loops, with
TLS and without: the connection below reads and writes the descriptor, see tls_connection.py. What
could not be sent at once waits here, and counts as sent when the kernel takes it.
"""

from __future__ import annotations

import asyncio
import asyncio.trsock
import socket
import ssl
from typing import TYPE_CHECKING, Any

from .._logger import logger as _logger
from ..connections.connection import CHUNK, FEW
from ..net.octets import no_octets
from .protocol_connection import RAISED
from .write_limits import HIGH_WATER_TLS, WriteLimits, water_marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .protocol_connection import ProtocolConnection

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
# Writes to a lost connection before there is a warning for each: asyncio/constants.py.
_LOST_WRITES = 5
# Bytes that asyncio's TLS transports read ahead by default. Ours only return what was set.
_READ_AHEAD = 256 * 1024


def _tls_facts(sock: socket.socket) -> dict[str, Any] | None:
    """What get_extra_info() returns about TLS; None without TLS."""
    if not isinstance(sock, ssl.SSLSocket):
        return None
    return {
        "ssl_object": sock,
        "sslcontext": sock.context,
        "cipher": sock.cipher(),
        "compression": sock.compression(),
        "peercert": sock.getpeercert(),
    }


class ProtocolTransport(WriteLimits):
    """A connection as its protocol sees it; loop_transports.py adds what the loop asks for."""

    _closing = False
    _paused = False
    _eof = False  # by write_eof()
    _read_waits_for_room = False  # OpenSSL must answer (a key update) before it can read on
    _lost: int = 0  # once nothing more goes either way: 1, and one more for each write since
    _much = 0  # bytes of the last read, if there are many to come
    _read_limits = (_READ_AHEAD, _READ_AHEAD // 4)
    _take: Callable[[ProtocolTransport], None]

    def __init__(self, connection: ProtocolConnection) -> None:
        self._connection = connection
        self._loop: asyncio.AbstractEventLoop = connection.loop
        self._unsent = bytearray()
        self._tls: dict[str, Any] | None = _tls_facts(connection._sock)
        if self._tls is not None:
            self._default_high = self._high_water = HIGH_WATER_TLS
            self._low_water = HIGH_WATER_TLS // 4
        self.set_protocol(connection.protocol)

    def __repr__(self) -> str:
        """Show the peer and the state."""
        state = "closed" if self._lost else "closing" if self._closing else "open"
        return f"<ProtocolTransport {self._connection.peer_address!r} {state}>"

    # -- what protocols call

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise no_octets(data, "write")
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if isinstance(data, memoryview) and data.itemsize != 1:
            data = data.cast("B")
        if not data:
            return
        if self._lost:
            self._warn_of_lost_writes()
        elif self._unsent:
            self._unsent += data
            self._connection.has_written()
            self._pause_if_full()
        else:
            self._write_now(data)

    def _write_now(self, data: bytes | bytearray | memoryview) -> None:
        connection = self._connection
        try:
            sent = connection._send(data)
        except _WOULD_BLOCK:
            sent = 0
        except OSError as exc:
            self._break(exc)
            return
        connection.bytes_sent += sent
        if sent != len(data):
            self._unsent += memoryview(data)[sent:]
            # TLS takes one record at a time: go on with the others.
            if sent and self._tls is not None and not self._flush():
                return
            if self._unsent:
                connection.watch_writing()
        connection.has_written()
        self._pause_if_full()

    def _warn_of_lost_writes(self) -> None:
        if self._lost >= _LOST_WRITES:
            _logger.warning("a protocol writes to the lost connection of %r", self._connection.peer_address)
        self._lost += 1

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        if self._eof:
            raise RuntimeError("Cannot call writelines() after write_eof()")
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if self._tls is not None:
            raise NotImplementedError("write_eof() under TLS: asyncio has none, see can_write_eof()")
        if self._closing or self._eof:
            return
        self._eof = True
        if not self._unsent:
            self._end_writing()
        self._connection.has_flushed()

    def can_write_eof(self) -> bool:
        return self._tls is None

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def pause_reading(self) -> None:
        if self.is_reading():
            self._paused = True
            self._connection._unwatch()

    def resume_reading(self) -> None:
        if self._paused and not self._closing:
            self._paused = False
            self._connection.watch_reading()

    def is_reading(self) -> bool:
        return not (self._paused or self._closing)

    def set_read_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._read_limits = water_marks(high, low, _READ_AHEAD)

    def get_read_buffer_limits(self) -> tuple[int, int]:
        high, low = self._read_limits
        return low, high

    def get_read_buffer_size(self) -> int:
        return self._connection.pending()

    def set_protocol(self, protocol: asyncio.BaseProtocol | None) -> None:
        self._connection.protocol = protocol
        # As uvloop distinguishes them, whose own TLS layer is of neither class.
        buffered = hasattr(protocol, "get_buffer") and not isinstance(protocol, asyncio.Protocol)
        # Not a bound method of ours: that would be a cycle.
        self._take = ProtocolTransport._take_buffered if buffered else ProtocolTransport._take_data

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._connection.protocol
        return protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        connection = self._connection
        if name == "peername":
            return connection.peer_address
        if name == "proxy_header":
            return connection.proxy_header or default
        if name == "socket":
            return asyncio.trsock.TransportSocket(connection._share())
        if name == "sockname":
            return connection.sockname or default
        return default if self._tls is None else self._tls.get(name, default)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if not self._unsent:
            self._lose(None)
        else:
            self._connection._unwatch()

    def abort(self) -> None:
        self._force_close(None)

    # -- what the loop's functions call

    def _force_close(self, exc: BaseException | None) -> None:
        """Close without sending what is buffered. TLS of `loop.start_tls()` calls this, too."""
        if not self._lost:
            self._closing = True
            self._unsent.clear()
            self._lose(exc, broken=True)

    def _lose(self, exc: BaseException | None, *, broken: bool = False) -> None:
        self._lost = 1
        self._connection.lost(exc, broken=broken)

    def _break(self, exc: OSError) -> None:
        self._connection._clear_errors()
        if isinstance(exc, ssl.SSLEOFError):
            exc = ConnectionAbortedError("TLS ended without close_notify: data may be missing (RFC 8446, 6.1)")
        self._force_close(exc)

    def _tell(self, name: str, *arguments: object) -> Any:
        return self._connection.call(name, *arguments)

    # -- what the connection calls

    def _read_ready(self) -> None:
        """There is something to read, or an end, or an error."""
        connection = self._connection
        if self._paused or self._closing:
            connection._unwatch()
            return
        whole_records = connection.holds_whole_records()
        try:
            take = ProtocolTransport._discard if connection.ended else self._take
            take(self)
        except ssl.SSLWantWriteError:
            self._read_waits_for_room = True
            connection.watch_writing()
        except _WOULD_BLOCK:
            if self._tls is not None:
                connection.found_no_payload(whole=whole_records)
        except OSError as exc:
            self._break(exc)

    def _take_data(self) -> None:
        connection = self._connection
        data = connection._read_much(self._much) if self._much else connection._read(CHUNK)
        if data:
            size = len(data)  # under TLS a record
            self._much = size if size >= (FEW if self._much else CHUNK) else 0
            connection.has_received(len(data))
            try:
                connection.protocol.data_received(data)
            except RAISED as exc:
                connection.fail(exc)
        else:
            connection.peer_ended()

    def _take_buffered(self) -> None:
        connection = self._connection
        try:
            buffer = connection.protocol.get_buffer(CHUNK)
            if not len(buffer):
                raise RuntimeError(f"{connection.protocol!r}.get_buffer() returned an empty buffer")
        except RAISED as exc:
            connection.fail(exc)
            return
        try:
            nbytes = connection._sock.recv_into(buffer)
        except ssl.SSLZeroReturnError:  # both sides have sent close_notify
            nbytes = 0
        except (TypeError, ValueError, BufferError) as exc:  # not contiguous, or read-only
            connection.fail(exc)
            return
        if not nbytes:
            connection.peer_ended()
            return
        connection.has_received(nbytes)
        self._tell("buffer_updated", nbytes)
        if connection.pending():  # in OpenSSL, where no poll sees it
            connection.soon(self._read_ready)

    def _discard(self) -> None:
        """After the drain's eof_received(): throw away what still arrives."""
        if not self._connection._read(CHUNK):
            self._connection._unwatch()

    def _write_ready(self) -> None:
        if self._lost:
            return
        if self._read_waits_for_room:
            self._read_waits_for_room = False
            self._read_ready()
        if not self._flush():
            return
        self._resume_if_low()  # the protocol may write more, or close
        if not (self._unsent or self._read_waits_for_room):
            self._flushed()

    def _flushed(self) -> None:
        if self._lost:
            return
        self._connection.unwatch_writing()
        if self._closing:
            self._lose(None)
            return
        if self._eof:
            self._end_writing()
        self._connection.has_flushed()

    def _flush(self) -> bool:
        """Give the kernel what it takes of the buffer; false if the connection broke."""
        unsent, connection = self._unsent, self._connection
        try:
            while unsent:
                with memoryview(unsent) as view:
                    sent = connection._send(view)
                connection.bytes_sent += sent
                del unsent[:sent]
        except _WOULD_BLOCK:
            pass
        except OSError as exc:
            self._break(exc)
            return False
        return True

    def _end_writing(self) -> None:
        try:
            self._connection._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self._break(exc)
