"""What asyncio's protocols see of a connection: a transport of ours, and relays that count."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..net.addresses import Address
    from ..streams.proxy_protocol import ProxyHeader


class Served(Protocol):
    """The connection that a transport and a protocol belong to; it counts what they move."""

    loop: asyncio.AbstractEventLoop
    protocol: asyncio.BaseProtocol | None
    peer_address: Address
    proxy_header: ProxyHeader | None

    @property
    def is_lost(self) -> bool:
        """Whether nothing is left of the connection."""

    @property
    def ended(self) -> bool:
        """Whether the protocol has been told that nothing more will come."""

    @property
    def cut_off(self) -> bool:
        """Whether the peer has ended a TLS connection without saying so."""

    def made(self, transport: ProtocolTransport) -> None:
        """Hear of the loop's transport, as ours."""

    def lost(self) -> None:
        """Hear that the loop's transport is closed."""

    def end(self) -> bool:
        """Tell the protocol that nothing more will come; true if it stays open."""

    def fail(self, exc: BaseException) -> None:
        """End the connection because of what its protocol raised."""

    def count_received(self, nbytes: int) -> None:
        """Count payload bytes that the protocol gets."""

    def count_sent(self, nbytes: int) -> None:
        """Count payload bytes that the protocol has written."""


# What is read at a time of what nobody wants any more.
_DISCARDED = 4096


def relay(connection: Served, protocol: Any) -> asyncio.BaseProtocol:
    """What stands between the loop's transport and a protocol."""
    if isinstance(protocol, asyncio.BufferedProtocol):
        return _BufferedRelay(connection, protocol)
    return _Relay(connection, protocol)


class _RelayBase(asyncio.BaseProtocol):
    """What the loop's transport calls: counts, and lets no exception of the protocol out."""

    def __init__(self, connection: Served, protocol: Any) -> None:
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

    def __init__(self, connection: Served, transport: asyncio.Transport) -> None:
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
