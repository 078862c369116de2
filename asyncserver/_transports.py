"""What asyncio's protocols see of a connection or an endpoint: transports of ours, and relays that count."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio

from ._logger import logger as _logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .adapters import ProtocolConnection, ProtocolHandler
    from .addresses import Address
    from .datagram import Datagram, Endpoint

# What is read at a time of what nobody wants any more.
_DISCARDED = 4096


def relay(connection: ProtocolConnection, protocol: Any) -> asyncio.BaseProtocol:
    """What stands between the loop's transport and a protocol."""
    if isinstance(protocol, asyncio.BufferedProtocol):
        return _BufferedRelay(connection, protocol)
    return _Relay(connection, protocol)


class _RelayBase(asyncio.BaseProtocol):
    """What the loop's transport calls: counts, and lets no exception of the protocol out."""

    def __init__(self, connection: ProtocolConnection, protocol: Any) -> None:
        self._connection = connection
        self._protocol = protocol

    def _call(self, name: str, *arguments: object) -> Any:
        try:
            return getattr(self._protocol, name)(*arguments)
        except Exception as exc:
            self._connection.fail(exc)
            return None

    def connection_made(self, transport: Any) -> None:
        counted = ProtocolTransport(self._connection, transport)
        self._connection.made(counted)
        self._call("connection_made", counted)

    def eof_received(self) -> bool:
        if self._connection.cut_off:
            return False  # asyncio tells it as an end; connection_lost() will tell what it is
        return self._connection.end()

    def pause_writing(self) -> None:
        self._call("pause_writing")

    def resume_writing(self) -> None:
        self._call("resume_writing")

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self._connection.cut_off:
            exc = ConnectionAbortedError("TLS ended without close_notify: data may be missing (RFC 8446, 6.1)")
        self._call("connection_lost", exc)
        self._connection.lost()


class _Relay(_RelayBase, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        if not self._connection.ended:  # otherwise by the drain: what the peer still says is nobody's
            self._connection.count_received(len(data))
            self._call("data_received", data)


class _BufferedRelay(_RelayBase, asyncio.BufferedProtocol):
    _failed = False

    def get_buffer(self, sizehint: int) -> Any:
        if self._connection.ended:
            return bytearray(_DISCARDED)
        try:
            return self._protocol.get_buffer(sizehint)
        except Exception as exc:
            # Not now: uvloop crashes when its transport is closed while it asks for a buffer. So it gets one.
            self._connection.loop.call_soon(self._connection.fail, exc)
            self._failed = True
            return bytearray(1)

    def buffer_updated(self, nbytes: int) -> None:
        if self._failed or self._connection.ended:
            return
        self._connection.count_received(nbytes)
        self._call("buffer_updated", nbytes)


class ProtocolTransport(asyncio.Transport):
    """The loop's transport, counted. All that it does not count it passes on."""

    # What asyncio asks before it lets `loop.start_tls()` use a transport.
    _start_tls_compatible = True

    def __init__(self, connection: ProtocolConnection, transport: asyncio.Transport) -> None:
        super().__init__()
        self._connection = connection
        self._transport = transport
        self.closed_here: bool = False

    def __repr__(self) -> str:
        """Tell the loop's transport."""
        return f"<ProtocolTransport {self._transport!r}>"

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(data)
        self._connection.count_sent(len(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        lines = list(list_of_data)
        self._transport.writelines(lines)
        self._connection.count_sent(sum(map(len, lines)))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._connection.protocol = protocol
        self._transport.set_protocol(relay(self._connection, protocol))

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._connection.protocol is not None
        return self._connection.protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return self._connection.peer_address
        if name == "proxy_header":
            return self._connection.proxy_header or default
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._connection.is_lost or self._transport.is_closing()

    def close(self) -> None:
        self.closed_here = True
        self._transport.close()

    def abort(self) -> None:
        self.closed_here = True
        self._transport.abort()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def write_eof(self) -> None:
        self._transport.write_eof()
        self._connection.count_sent(0)

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._transport.get_write_buffer_limits()


class EndpointTransport(asyncio.DatagramTransport):
    """The transport of a DatagramProtocol, over an endpoint of ours: also for Unix sockets, and on uvloop too."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        endpoint: Endpoint,
        handler: ProtocolHandler,
        close: Callable[[], object],
        sent: Callable[[], object],
    ) -> None:
        super().__init__()
        self._loop = loop
        self._endpoint = endpoint
        self._close = close
        self._sent = sent
        self._closing = False
        self._answering: Datagram | None = None
        self._unsent: deque[tuple[bytes, Address]] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._protocol: Any = handler.make(None)
        self._protocol.connection_made(self)

    def received(self, datagram: Datagram) -> BaseException | None:
        """Give a datagram to the protocol; returns what it raised."""
        sent = self._endpoint.sent + len(self._unsent)
        self._answering = datagram
        try:
            self._protocol.datagram_received(datagram.data, datagram.address)
        except Exception as exc:
            return exc
        finally:
            self._answering = None
            datagram.replied = self._endpoint.sent + len(self._unsent) > sent
        return None

    def lost(self) -> None:
        """The server has closed."""
        self._closing = True
        if self._sending is not None:
            self._sending.cancel()
        self._protocol.connection_lost(None)

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        if addr is None:
            raise ValueError("sendto() needs the address to send to: a server's socket is not connected")
        if not self._unsent and self._try_send(data, addr):
            return
        self._unsent.append((bytes(data), addr))
        if self._sending is None:
            self._tell("pause_writing")
            self._sending = self._loop.create_task(self._send_rest())

    def _try_send(self, data: bytes | bytearray | memoryview, address: Address) -> bool:
        datagram = self._answering
        control = datagram.control if datagram is not None and datagram.address == address else None
        try:
            return self._endpoint.try_send(data, address, control)
        except (OSError, anyio.BrokenResourceError) as exc:
            self._tell("error_received", exc if isinstance(exc, OSError) else exc.__cause__)
            return True

    @property
    def sending(self) -> bool:
        """Whether datagrams wait for room in the socket."""
        return self._sending is not None

    async def _send_rest(self) -> None:
        try:
            while self._unsent:
                data, address = self._unsent.popleft()
                try:
                    await self._endpoint.send(data, address, None)
                except (OSError, anyio.BrokenResourceError) as exc:
                    self._tell("error_received", exc if isinstance(exc, OSError) else exc.__cause__)
        finally:
            self._sending = None
            self._sent()
        self._tell("resume_writing")

    def _tell(self, name: str, *arguments: object) -> None:
        """Call the protocol where nobody waits for what it may raise."""
        try:
            getattr(self._protocol, name)(*arguments)
        except Exception:
            _logger.exception("%r failed in %s()", self._protocol, name)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return self._endpoint.sock
        if name == "sockname":
            return self._endpoint.sock.getsockname()
        return default

    def get_write_buffer_size(self) -> int:
        return sum(len(data) for data, _ in self._unsent)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Close the whole server, as closing an asyncio endpoint ends it."""
        self._closing = True
        self._close()

    def abort(self) -> None:
        self.close()
