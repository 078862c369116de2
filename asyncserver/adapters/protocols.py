"""from_protocol and from_callback: existing asyncio servers as handlers.

A protocol gets a transport (transports.py) over a connection like that of a Stream. So limits, TLS,
statistics and the drain treat it like any other, and its errors end only this connection.

    listener -> ProtocolConnection.run <-> ProtocolTransport <-> the protocol
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..net.addresses import task_name
from ..net.tasks import name_task
from .callback_protocol import CallbackProtocol
from .checks import check_callback, check_factory
from .loop_transports import transport_for
from .protocol_connection import ProtocolConnection
from .silent_connection import SilentConnection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = ["ProtocolHandler", "from_callback", "from_protocol"]


class ProtocolHandler:
    """What `from_protocol` and `from_callback` return, and a server takes as its handler.

    Example::

        handler = asyncserver.from_protocol(asyncio.Protocol)
        asyncserver.run(asyncserver.serve(handler, "127.0.0.1", 8080))
    """

    __asyncserver_protocols__ = True  # a server knows it by this, without this module

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol], *, answers: bool = True) -> None:
        check_factory(factory)
        self._factory = factory
        self.connection_class: type[ProtocolConnection] = ProtocolConnection if answers else SilentConnection

    def __repr__(self) -> str:
        """Show the factory."""
        return f"from_protocol({self._factory!r})"

    def make(self, connection: ProtocolConnection | None) -> asyncio.BaseProtocol:
        """Make the protocol for a connection, or (None) for a datagram endpoint."""
        return self._factory()

    def serve(self, connection: ProtocolConnection) -> Coroutine[Any, Any, None]:
        """Serve a connection, until it is lost."""
        return connection.run(self.make, transport_for)


class _CallbackHandler(ProtocolHandler):
    def __init__(self, callback: Callable[..., Awaitable[object] | None], limit: int, *, answers: bool) -> None:
        check_callback(callback)
        self._callback = callback
        self._limit = limit
        self.connection_class = ProtocolConnection if answers else SilentConnection

    def __repr__(self) -> str:
        return f"from_callback({self._callback!r})"

    def make(self, connection: ProtocolConnection | None) -> asyncio.BaseProtocol:
        if connection is None:
            raise TypeError("from_callback() is for streams; for datagrams use from_protocol(MyDatagramProtocol)")
        reader = asyncio.StreamReader(limit=self._limit, loop=connection.loop)

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                result = self._callback(reader, writer)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:  # from Python 3.14.10 on asyncio keeps it
                connection.fail(exc)
                return
            if asyncio.iscoroutine(result):
                connection.task = connection.loop.create_task(result)
                name_task(connection.task, task_name(connection.peer_address))
                connection.task.add_done_callback(connection.callback_ended)

        protocol = CallbackProtocol(reader, connected, loop=connection.loop)
        connection.callback = protocol
        return protocol


def from_protocol(factory: Callable[[], asyncio.BaseProtocol], *, answers: bool = True) -> ProtocolHandler:
    """Use an `asyncio.Protocol`, `BufferedProtocol` or `DatagramProtocol` as a handler, unchanged.

    For `serve()` the factory is called once per connection, for `serve_datagrams()` once
    per address. Callbacks and the transport's methods are asyncio's; `loop.start_tls()`
    takes the transport, and `loop.sendfile()`, which uvloop lacks, reads and writes the
    file, so not with `fallback=False`. Under TLS too, a protocol may return true from
    `eof_received()` and still answer.

    When the server drains, a connection between two messages gets `eof_received()`, and is closed
    unless that returns true. It is not between two messages while reading is paused, while what was
    written has not left, or within a second after a write. Half a message kept since before the
    last answer is not seen. TLS of `loop.start_tls()` ends too, on uvloop without a close_notify.

    A peer that ends TLS without close_notify may have been cut off: `eof_received()` is not called,
    and `connection_lost()` gets a ConnectionAbortedError. What a callback raises closes the
    connection and is logged as any handler's error.

    Example::

        class Upper(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport

            def data_received(self, data):
                self.transport.write(data.upper())

        asyncserver.run(asyncserver.serve(asyncserver.from_protocol(Upper), "127.0.0.1", 8080))

    Args:
        factory: called without arguments, returns the protocol.
        answers: False for one that only takes what comes, such as a receiver of logs: a drain gives
            it what had reached this host, and closes. The rest of half a message is not waited for.

    Raises:
        TypeError: it cannot be called so, or is a class of another kind.
    """
    return ProtocolHandler(factory, answers=answers)


def from_callback(
    callback: Callable[..., Awaitable[object] | None], *, limit: int = 2**16, answers: bool = True
) -> ProtocolHandler:
    """Use the `(reader, writer)` callback of an `asyncio.start_server` as a handler, unchanged.

    As there, the connection stays open until the writer is closed, even when the callback has
    returned; from Python 3.13 on, asyncio closes an unreferenced writer, and warns. When the server
    drains, a reader between two messages comes to its end, and the callback ends the connection: it
    may write on. A peer that ends TLS without close_notify may have been cut off: the reader raises
    ConnectionAbortedError. After the end of the connection IncompleteReadError and ConnectionError,
    but not ConnectionRefusedError, are no errors of the callback, also inside exception groups.

    Example::

        async def upper(reader, writer):
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
            writer.close()

        asyncserver.run(asyncserver.serve(asyncserver.from_callback(upper), "127.0.0.1", 8080))

    Args:
        callback: called with a StreamReader and a StreamWriter for each connection; async or plain.
        limit: bytes that the reader buffers, as in `asyncio.start_server`.
        answers: False for one that only takes what comes, such as a receiver of logs: in a drain
            its reader ends when it has read what had reached this host, and the rest of its line.

    Raises:
        TypeError: it cannot be called so, or is a class of another kind.
    """
    return _CallbackHandler(callback, limit, answers=answers)
