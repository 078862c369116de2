"""ProtocolEndpoint: an endpoint with a DatagramProtocol, and the transport of that protocol."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio

from .._logger import logger as _logger
from ..datagrams.asked import AskedAddresses
from ..datagrams.batch_reader import BatchReader, Handling
from ..net.octets import no_octets
from .write_limits import WriteLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..datagrams.datagram import Datagram, Endpoint
    from ..kernel.packet_info import Control
    from ..listening.binding import BoundSocket
    from ..net.addresses import Address
    from .protocols import ProtocolHandler


class ProtocolEndpoint(BatchReader):
    """Gives each datagram to a protocol that `handler` makes; it may `close()` the server."""

    def __init__(
        self,
        server: Handling,
        bound: BoundSocket,
        max_datagram_size: int,
        handler: ProtocolHandler,
        close: Callable[[], object],
    ) -> None:
        super().__init__(server, bound, max_datagram_size)
        self._transport = EndpointTransport(self._loop, self, handler, close, server._tell_change)

    def _serve_batch(self) -> None:
        while (datagram := self._take()) is not None:
            self._server._settle(datagram, self._transport.received(datagram), None)

    @property
    def unfinished(self) -> bool:
        """See BatchReader."""
        return super().unfinished or self._transport._sending is not None

    def close(self) -> None:
        """See Endpoint; calls connection_lost() first."""
        try:
            self._transport.lost()
        except Exception:
            extra = {"server": self._server.label, "outcome": "failed"}
            _logger.exception("%r failed in connection_lost()", self._transport.get_protocol(), extra=extra)
        super().close()


class EndpointTransport(WriteLimits, asyncio.DatagramTransport):
    """The transport of a DatagramProtocol, over an endpoint, also of Unix sockets and on uvloop."""

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
        self._asked = AskedAddresses()
        self._unsent: deque[tuple[bytes, Address, Control | None]] = deque()
        self._unsent_bytes = 0
        self._sending: asyncio.Task[None] | None = None  # while datagrams wait for room
        self._protocol: Any = handler.make(None)
        self._protocol.connection_made(self)

    def received(self, datagram: Datagram) -> BaseException | None:
        """Give a datagram to the protocol; returns what it raised."""
        sent = self._endpoint.sent + len(self._unsent)
        token = self._asked.enter(datagram) if datagram.control is not None else None
        try:
            self._protocol.datagram_received(datagram.data, datagram.address)
        except Exception as exc:
            return exc
        finally:
            if token is not None:
                self._asked.leave(token)
            datagram.replied = self._endpoint.sent + len(self._unsent) > sent
        return None

    def lost(self) -> None:
        """The server has closed."""
        self._closing = True
        if self._sending is not None:
            self._sending.cancel()
        self._protocol.connection_lost(None)

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise no_octets(data, "sendto")
        if addr is None:
            raise ValueError("sendto() needs the address to send to: a server's socket is not connected")
        control = self._asked.find(addr)
        if not self._unsent and self._try_send(data, addr, control):
            return
        self._unsent.append((bytes(data), addr, control))
        self._unsent_bytes += len(data)
        self._pause_if_full()
        if self._sending is None:
            self._sending = self._loop.create_task(self._send_rest())

    def _try_send(self, data: bytes | bytearray | memoryview, address: Address, control: Control | None) -> bool:
        try:
            return self._endpoint.try_send(data, address, control)
        except (OSError, anyio.BrokenResourceError) as exc:
            self._tell_error(exc)
            return True

    def _tell_error(self, exc: BaseException) -> None:
        self._tell("error_received", exc if isinstance(exc, OSError) else exc.__cause__)

    async def _send_rest(self) -> None:
        try:
            while self._unsent:
                # Until it is sent, later datagrams have to wait behind it.
                data, address, control = self._unsent[0]
                try:
                    await self._endpoint.send(data, address, control)
                except (OSError, anyio.BrokenResourceError) as exc:
                    self._tell_error(exc)
                self._unsent.popleft()
                self._unsent_bytes -= len(data)
                self._resume_if_low()
        finally:
            self._sending = None
            self._sent()

    def _tell(self, name: str, *arguments: object) -> None:
        """Call the protocol where no caller gets what it may raise: log that."""
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
        return self._unsent_bytes

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

    abort = close
