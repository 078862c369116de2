"""from_protocol and from_callback: existing asyncio servers as handlers.

A protocol keeps its transport, the loop's own, inside one of ours that passes everything on and counts. So limits,
TLS, statistics and the drain treat such a connection like any other, and what the protocol raises stays in it.

    listener -> ProtocolConnection.run -> the loop's transport <-> _Relay, ProtocolTransport <-> the protocol
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

import anyio

from ..exceptions import IdleTimeout, Refused
from ..net.addresses import task_name
from ..net.socket_info import first_words_due, unread
from ..net.tasks import name_task
from ..streams.connection import Connection
from ..streams.dialogue import Dialogue
from .checks import check_callback, check_factory
from .transports import relay

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator

    from ..net.addresses import Address
    from ..net.poller import Poller
    from ..streams.proxy_protocol import ProxyHeader
    from .transports import ProtocolTransport

__all__ = ["ProtocolHandler", "from_callback", "from_protocol"]

# Seconds that the loop's transport waits for the peer's close_notify; asyncio's default of 30 would hold the drain.
_SHUTDOWN_TIMEOUT = 2.0
# Seconds that what a failed protocol has written may take to leave.
_CLOSE_TIMEOUT = 2.0
# Seconds for a handshake that begins when its time is over: asyncio wants some.
_LEAST_TIMEOUT = 0.001


class ProtocolHandler:
    """What `from_protocol` and `from_callback` return; `serve()` and `serve_datagrams()` take it as a handler."""

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        check_factory(factory)
        self._factory = factory

    def __repr__(self) -> str:
        """Tell the factory."""
        return f"from_protocol({self._factory!r})"

    def make(self, connection: ProtocolConnection | None) -> asyncio.BaseProtocol:
        """Make the protocol for a connection, or (None) for a datagram endpoint."""
        return self._factory()


class _CallbackHandler(ProtocolHandler):
    def __init__(self, callback: Callable[..., Awaitable[object] | None], limit: int) -> None:
        check_callback(callback)
        self._callback = callback
        self._limit = limit

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
            except BaseException as exc:  # from Python 3.14.10 on asyncio would keep it to itself
                connection.fail(exc)
                return
            if asyncio.iscoroutine(result):
                connection.task = connection.loop.create_task(result)
                name_task(connection.task, task_name(connection.peer_address))
                connection.task.add_done_callback(connection.callback_ended)

        return _CallbackProtocol(reader, connected, loop=connection.loop)


class _CallbackProtocol(asyncio.StreamReaderProtocol):
    def unconsumed(self) -> int:
        """Bytes that the callback has yet to take from its reader."""
        reader: Any = self._stream_reader  # type: ignore[attr-defined] # asyncio tells it in no other way
        return 0 if reader is None else len(reader._buffer)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # A reset has been told to the reader. Nobody need ask for it here; unasked, the garbage collector may log it.
        closed: asyncio.Future[None] = self._closed  # type: ignore[attr-defined]
        if not closed.cancelled():
            closed.exception()


def from_protocol(factory: Callable[[], asyncio.BaseProtocol]) -> ProtocolHandler:
    """Use an `asyncio.Protocol`, `BufferedProtocol` or `DatagramProtocol` as a handler, unchanged.

    For `serve()` the factory is called once for each connection, for `serve_datagrams()` once for each address.
    The protocol's callbacks and its transport's methods are asyncio's. When the server drains, a connection between
    two messages gets `eof_received()`; unless that returns true, it is closed. Half a message that the protocol keeps
    since before its last answer is not seen, and does not count. A peer that ends TLS without close_notify may have
    been cut off: `eof_received()` is not called, and `connection_lost()` gets a ConnectionAbortedError. What a callback
    raises closes the connection and is logged as any handler's error. On uvloop, `loop.start_tls()` refuses the
    transport: it takes uvloop's own only.

    Args:
        factory: called without arguments, returns the protocol.

    Raises:
        TypeError: it cannot be called so, or is a class of another kind.
    """
    return ProtocolHandler(factory)


def from_callback(callback: Callable[..., Awaitable[object] | None], *, limit: int = 2**16) -> ProtocolHandler:
    """Use the `(reader, writer)` callback of an `asyncio.start_server` as a handler, unchanged.

    As there, the connection stays open until the writer is closed, even when the callback has
    returned; from Python 3.13 on, asyncio closes a writer that nobody holds any more, and warns.
    When the server drains, a reader between two messages comes to its end. A peer that ends TLS
    without close_notify may have been cut off: the reader raises ConnectionAbortedError.

    Args:
        callback: called with a StreamReader and a StreamWriter for each connection; a coroutine function or a
            plain one.
        limit: bytes that the reader buffers, as in `asyncio.start_server`.

    Raises:
        TypeError: it cannot be called so, or is a class of another kind.
    """
    return _CallbackHandler(callback, limit)


class ProtocolConnection(Dialogue):
    """A connection that a protocol serves; in `Server.connections` what a Stream is for other handlers.

    Attributes:
        peer_address, bytes_received, bytes_sent, proxy_header: as a Stream's.
    """

    __slots__ = (
        "_closing",
        "_ended",
        "_failure",
        "_lost",
        "_plain",
        "_poller",
        "_sock",
        "_transport",
        "loop",
        "peer_address",
        "protocol",
        "proxy_header",
        "task",
    )

    bytes_received: int
    bytes_sent: int
    _undelivered = False  # nobody knows

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        peer_address: Address,
        closing: asyncio.Event,
    ) -> None:
        Dialogue.__init__(self)
        self.loop: asyncio.AbstractEventLoop = poller.loop
        self.peer_address: Address = peer_address
        self.protocol: asyncio.BaseProtocol | None = None
        self.task: asyncio.Task[Any] | None = None
        self.proxy_header: ProxyHeader | None = None
        self._poller = poller
        self._plain: Connection | None = None  # the socket, before the loop's transport gets it
        self._sock = sock
        self._transport: ProtocolTransport | None = None
        self._lost: asyncio.Future[None] = self.loop.create_future()
        self._failure: BaseException | None = None
        self._closing = closing
        self._ended: bool | None = None  # once eof_received() was called: whether the protocol stays open

    async def _take_proxy_header(self) -> ProxyHeader:
        with self._before_transport() as plain:
            return await plain._take_proxy_header()

    @contextlib.contextmanager
    def _before_transport(self) -> Iterator[Connection]:
        """The socket, before the loop's transport gets it, for what the peer has to say first."""
        self._plain = plain = Connection(self._poller, self._sock, self.peer_address, self._closing)
        yield plain
        plain._unwatch()
        self._plain = None

    async def _await_first_byte(self, timeout: float) -> float:
        """Wait for the peer's first byte, so that a drain can tell whom to wait for; returns the time that is left."""
        begun = self.loop.time()
        with self._before_transport() as plain:
            try:
                async with asyncio.timeout(timeout):
                    await plain._await_first_byte()
            except (TimeoutError, anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
                plain._close()
                raise Refused from exc
        return max(_LEAST_TIMEOUT, timeout - (self.loop.time() - begun))

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
        try:
            if self._failure is not None:
                raise self._failure
        finally:
            self._failure = None  # its traceback holds this frame, and so us: a cycle

    async def _connect(self, context: ssl.SSLContext | None, timeout: float) -> None:
        if context is not None:
            timeout = await self._await_first_byte(timeout)
        try:
            await self.loop.connect_accepted_socket(
                lambda: relay(self, self.protocol),
                self._sock,
                ssl=context,
                ssl_handshake_timeout=None if context is None else timeout,
                ssl_shutdown_timeout=None if context is None else _SHUTDOWN_TIMEOUT,
            )
        except OSError as exc:  # reset, or the handshake failed
            raise Refused from exc

    async def _give_up(self) -> None:
        """When the handler's task is cancelled, so is the callback's; then the connection goes."""
        if self.task is not None and not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])
        self.abort()
        self.lost()  # which uvloop does not tell when we are cancelled before it has told of the connection

    def callback_ended(self, task: asyncio.Task[Any]) -> None:
        """A `(reader, writer)` callback has ended; without an error the connection may well go on."""
        if task.cancelled():
            if self._transport is not None:
                self._transport.close()
        elif (exc := task.exception()) is not None and not (isinstance(exc, ConnectionError) and self._lost.done()):
            self.fail(exc)  # otherwise the peer has left, and its reader or writer said so

    def fail(self, exc: BaseException) -> None:
        """End the connection because of what its protocol raised."""
        if self._failure is None:
            self._failure = exc
        if self._transport is not None:
            self._transport.close()
            self.loop.call_later(_CLOSE_TIMEOUT, self.abort)  # a peer that does not read would keep it

    # -- between the transport and the protocol

    def made(self, transport: ProtocolTransport) -> None:
        self._transport = transport
        if self._closing.is_set():
            self._begin_drain()
            if transport.get_extra_info("sslcontext") is not None or self.proxy_header is not None:
                # Who came through a handshake or a header while we drain has its question still before it.
                self.owe(max(1, self._unread()))

    def lost(self) -> None:
        if not self._lost.done():
            self._lost.set_result(None)

    @property
    def is_lost(self) -> bool:
        """Whether nothing is left of the connection."""
        return self._lost.done()

    @property
    def ended(self) -> bool:
        """Whether the protocol has been told that nothing more will come."""
        return self._ended is not None

    @property
    def cut_off(self) -> bool:
        """Whether the peer has ended a TLS connection without saying so: what came may not be all."""
        transport = self._transport
        if transport is None or transport.closed_here or self.ended:
            return False
        tls = transport.get_extra_info("ssl_object")
        try:
            return tls is not None and bool(tls.read(1))
        except ssl.SSLZeroReturnError:
            return False
        except ssl.SSLError:  # it wants more, and there will be none
            return True

    def end(self) -> bool:
        """Tell the protocol so, once, whether it is the peer's end or the drain; true if it stays open."""
        if self._ended is None:
            self._ended = False
            try:
                self._ended = bool(getattr(self.protocol, "eof_received", bool)())
            except Exception as exc:
                self.fail(exc)
        return self._ended

    def count_received(self, nbytes: int) -> None:
        self.bytes_received += nbytes
        if self.draining:
            self.owe_at_most(self._unread())

    def count_sent(self, nbytes: int) -> None:
        self.bytes_sent += nbytes
        self.answer()
        if self.draining:
            self.loop.call_soon(self._end_between_messages)

    # -- for the server

    @property
    def _admitted(self) -> bool:
        return self._transport is not None

    def _bar(self) -> None:
        """Nothing can be sent before there is a transport, and that comes after the handshake."""

    _let_in = _bar

    def _begin_drain(self) -> None:
        if self._transport is None or self.draining:
            if self._plain is not None:
                self._plain._end_if_unheard_soon()
            return  # not there yet: made() will come by here
        self._await_first_words()

    def _await_first_words(self, waited: float = 0.0) -> None:
        """Owe what is here; if nothing has ever come, what may be on its way, for as long as that can take."""
        if waited and self.bytes_moved:
            return
        due = first_words_due(self._sock, waited) if self._sock.fileno() >= 0 else 0.0
        if self.begin_drain(self._unread(), due):
            self.loop.call_later(due, self._await_first_words, waited + due)
        self.loop.call_soon(self._end_between_messages)

    def _end_between_messages(self) -> None:
        transport = self._transport
        self._message_start = self.bytes_sent, self.bytes_received - self._unconsumed()
        if not self.may_end() or self.ended or transport is None or transport.is_closing():
            return
        if not self.end():
            transport.close()

    def _unconsumed(self) -> int:
        """What a `(reader, writer)` callback has before it. Of other protocols nobody knows."""
        return self.protocol.unconsumed() if isinstance(self.protocol, _CallbackProtocol) else 0

    def _unread(self) -> int:
        fd = self._sock.fileno()  # not the transport's: a closed one of asyncio's TLS has forgotten even that
        return unread(fd) if fd >= 0 else 0

    def _expire(self) -> None:
        if self._transport is None:
            return  # the handshake has a time of its own, and its socket is the loop's
        if self._failure is not None:  # told before, and still not gone
            self.abort()
            return
        self.fail(IdleTimeout(f"nothing received from or sent to {self.peer_address!r} for the idle timeout"))

    def abort(self) -> None:
        """Close at once, without sending what is buffered."""
        if self._plain is not None:
            self._plain.abort()
        elif self._transport is None:
            self._sock.close()
        elif not self._lost.done():
            self._transport.abort()

    def _close_if_quiet(self) -> bool:
        return True  # run() has seen to it

    _let_go = abort

    async def aclose(self) -> None:
        """Never needed: run() ends when the connection has."""
