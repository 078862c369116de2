"""from_protocol and from_callback: existing asyncio servers as handlers.

A protocol keeps its transport, the loop's own, inside one of ours that passes everything on and counts. So limits,
TLS, statistics and the drain treat such a connection like any other, and what the protocol raises stays in it.

    listener -> ProtocolConnection.run -> the loop's transport <-> _Relay, ProtocolTransport <-> the protocol
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio

from .exceptions import IdleTimeout, Refused

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Iterable

    from ._types import Address
    from .datagram import Datagram, Endpoint

__all__ = ["ProtocolHandler", "from_callback", "from_protocol"]


class ProtocolHandler:
    """What `from_protocol` and `from_callback` return; `serve()` and `serve_datagrams()` take it as a handler."""

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        if not callable(factory):
            raise TypeError(f"from_protocol() expects a factory, such as a Protocol class; got {factory!r}")
        self._factory = factory

    def __repr__(self) -> str:
        """Tell the factory."""
        return f"from_protocol({self._factory!r})"

    def make(self, connection: ProtocolConnection | None) -> asyncio.BaseProtocol:
        """Make the protocol for a connection, or (None) for a datagram endpoint."""
        return self._factory()


class _CallbackHandler(ProtocolHandler):
    def __init__(self, callback: Callable[..., Awaitable[object] | None], limit: int) -> None:
        if not callable(callback):
            raise TypeError(f"from_callback() expects a function of (reader, writer); got {callback!r}")
        self._callback = callback
        self._limit = limit

    def __repr__(self) -> str:
        return f"from_callback({self._callback!r})"

    def make(self, connection: ProtocolConnection | None) -> asyncio.BaseProtocol:
        if connection is None:
            raise TypeError("from_callback() is for streams; for datagrams use from_protocol(MyDatagramProtocol)")
        reader = asyncio.StreamReader(limit=self._limit, loop=connection.loop)

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            result = self._callback(reader, writer)
            if asyncio.iscoroutine(result):
                connection.task = connection.loop.create_task(result)
                connection.task.add_done_callback(connection.callback_ended)

        return asyncio.StreamReaderProtocol(reader, connected, loop=connection.loop)


def from_protocol(factory: Callable[[], asyncio.BaseProtocol]) -> ProtocolHandler:
    """Use an `asyncio.Protocol`, `BufferedProtocol` or `DatagramProtocol` as a handler, unchanged.

    For `serve()` the factory is called once for each connection, for `serve_datagrams()` once for each address.
    The protocol's callbacks and its transport's methods are asyncio's. When the server drains, a connection between
    two messages gets `eof_received()`; unless that returns true, it is closed. What a callback raises closes the
    connection and is logged as any handler's error. On uvloop, `loop.start_tls()` refuses the transport: it takes
    uvloop's own only.

    Args:
        factory: called without arguments, returns the protocol.

    Raises:
        TypeError: it cannot be called.
    """
    return ProtocolHandler(factory)


def from_callback(callback: Callable[..., Awaitable[object] | None], *, limit: int = 2**16) -> ProtocolHandler:
    """Use the `(reader, writer)` callback of an `asyncio.start_server` as a handler, unchanged.

    As there, the connection stays open until the writer is closed, even when the callback has returned. When the
    server drains, a reader between two messages comes to its end.

    Args:
        callback: called with a StreamReader and a StreamWriter for each connection; a coroutine function or a
            plain one.
        limit: bytes that the reader buffers, as in `asyncio.start_server`.

    Raises:
        TypeError: it cannot be called.
    """
    return _CallbackHandler(callback, limit)


class ProtocolConnection:
    """A connection that a protocol serves; in `Server.connections` what a Stream is for other handlers.

    Attributes:
        peer_address, bytes_received, bytes_sent: as a Stream's.
    """

    __slots__ = (
        "_answered",
        "_closing",
        "_failure",
        "_lost",
        "_owed",
        "_sock",
        "_transport",
        "bytes_received",
        "bytes_sent",
        "loop",
        "peer_address",
        "protocol",
        "task",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        peer_address: Address,
        closing: asyncio.Event,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self.peer_address: Address = peer_address
        self.bytes_received: int = 0
        self.bytes_sent: int = 0
        self.protocol: asyncio.BaseProtocol | None = None
        self.task: asyncio.Task[Any] | None = None
        self._sock = sock
        self._transport: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] = loop.create_future()
        self._failure: BaseException | None = None
        self._answered = 0
        self._closing = closing
        self._owed: int | None = None  # while draining: bytes to answer before we may end it

    async def run(self, handler: ProtocolHandler, context: ssl.SSLContext | None, timeout: float) -> None:
        """Serve the connection until it is lost; raises what the protocol raised."""
        try:
            self.protocol = handler.make(self)
            await self._connect(context, timeout)
            await asyncio.wait([self._lost])
            if self.task is not None:
                await asyncio.wait([self.task])
        finally:
            await self._give_up()
        if self._failure is not None:
            raise self._failure

    async def _connect(self, context: ssl.SSLContext | None, timeout: float) -> None:
        try:
            await self.loop.connect_accepted_socket(
                lambda: _relay(self, self.protocol),
                self._sock,
                ssl=context,
                ssl_handshake_timeout=None if context is None else timeout,
            )
        except OSError as exc:  # reset, or the handshake failed
            raise Refused from exc

    async def _give_up(self) -> None:
        """When the handler's task is cancelled, so is the callback's; then the connection goes."""
        if self.task is not None and not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])
        self.abort()

    def callback_ended(self, task: asyncio.Task[Any]) -> None:
        """A `(reader, writer)` callback has ended; without an error the connection may well go on."""
        if not task.cancelled() and (exc := task.exception()) is not None:
            self.fail(exc)

    def fail(self, exc: BaseException) -> None:
        """End the connection because of what its protocol raised."""
        if self._failure is None:
            self._failure = exc
        if self._transport is not None:
            self._transport.close()

    # -- between the transport and the protocol

    def made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        if self._closing.is_set():
            self._begin_drain()
            if transport.get_extra_info("sslcontext") is not None:
                self._owed = 1  # who came through a handshake while we drain has its question still before it

    def lost(self) -> None:
        if not self._lost.done():
            self._lost.set_result(None)

    def count_received(self, nbytes: int) -> None:
        self.bytes_received += nbytes
        if self._owed is not None:
            self._owed = min(self._owed - nbytes, self._unread())

    def count_sent(self, nbytes: int) -> None:
        self.bytes_sent += nbytes
        self._answered = self.bytes_received
        if self._owed is not None:
            self.loop.call_soon(self._end_between_messages)

    # -- for the server

    def _begin_drain(self) -> None:
        if self._transport is None or self._owed is not None:
            return  # not there yet: made() will come by here
        self._owed = self._unread()
        self.loop.call_soon(self._end_between_messages)

    def _end_between_messages(self) -> None:
        transport = self._transport
        between = self._answered == self.bytes_received and (self._owed or 0) <= 0
        if not between or transport is None or transport.is_closing():
            return
        ended = getattr(self.protocol, "eof_received", lambda: False)
        try:
            keep_open = ended()
        except Exception as exc:
            self.fail(exc)
            return
        if not keep_open:
            transport.close()

    def _unread(self) -> int:
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return 0
        size = bytearray(4)
        fcntl.ioctl(sock.fileno(), termios.FIONREAD, size)
        return int.from_bytes(size, sys.byteorder)

    def _expire(self) -> None:
        if self._failure is not None:  # told before, and still not gone
            self.abort()
            return
        self.fail(IdleTimeout(f"nothing received from or sent to {self.peer_address!r} for the idle timeout"))

    def abort(self) -> None:
        """Close at once, without sending what is buffered."""
        if self._transport is None:
            self._sock.close()
        elif not self._lost.done():
            self._transport.abort()

    def _close_if_quiet(self) -> bool:
        return True  # run() has seen to it

    async def aclose(self) -> None:
        """Never needed: run() ends when the connection has."""


def _relay(connection: ProtocolConnection, protocol: Any) -> asyncio.BaseProtocol:
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
        self._connection.made(transport)
        self._call("connection_made", ProtocolTransport(self._connection, transport))

    def eof_received(self) -> bool:
        return bool(self._call("eof_received"))

    def pause_writing(self) -> None:
        self._call("pause_writing")

    def resume_writing(self) -> None:
        self._call("resume_writing")

    def connection_lost(self, exc: Exception | None) -> None:
        self._call("connection_lost", exc)
        self._connection.lost()


class _Relay(_RelayBase, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self._connection.count_received(len(data))
        self._call("data_received", data)


class _BufferedRelay(_RelayBase, asyncio.BufferedProtocol):
    def get_buffer(self, sizehint: int) -> Any:
        buffer = self._call("get_buffer", sizehint)
        return bytearray(1) if buffer is None else buffer  # it raised: the connection closes, bytes no longer matter

    def buffer_updated(self, nbytes: int) -> None:
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
        self._transport.set_protocol(_relay(self._connection, protocol))

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._connection.protocol is not None
        return self._connection.protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return self._connection.peer_address
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
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
    ) -> None:
        super().__init__()
        self._loop = loop
        self._endpoint = endpoint
        self._close = close
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
            self._protocol.pause_writing()
            self._sending = self._loop.create_task(self._send_rest())

    def _try_send(self, data: bytes | bytearray | memoryview, address: Address) -> bool:
        datagram = self._answering
        control = datagram.control if datagram is not None and datagram.address == address else None
        try:
            return self._endpoint.try_send(data, address, control)
        except (OSError, anyio.BrokenResourceError) as exc:
            self._protocol.error_received(exc if isinstance(exc, OSError) else exc.__cause__)
            return True

    async def _send_rest(self) -> None:
        while self._unsent:
            data, address = self._unsent.popleft()
            try:
                await self._endpoint.send(data, address, None)
            except (OSError, anyio.BrokenResourceError) as exc:
                self._protocol.error_received(exc if isinstance(exc, OSError) else exc.__cause__)
        self._sending = None
        self._protocol.resume_writing()

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
