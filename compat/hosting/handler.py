"""HostedHandler: what `hosted()` makes of a handler class written for socketserver.

    listener -> TLS, PROXY, limits -> Stream -> detach() -> blocking socket in a thread -> close

The thread runs `setup`, `handle` and `finish` unchanged. What a handler raises goes to the server,
which counts, logs and reports it like any handler's error.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import select
import socket
import ssl
import time
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from asyncserver import Datagram, IdleTimeout, Server, Stream
from compat.hosting.lingering import linger
from compat.hosting.request import lent
from compat.pool.call import CallFuture
from compat.pool.executor import ThreadPool
from compat.pool.system_limit import threads_to_be_had

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["HostedHandler", "HostedServer", "hosted"]

# Seconds between looks at calls that wait for a thread: none can start, or one has been lost.
_LOOK_SECONDS = 0.05

# Seconds that a handler's `sendto` waits for room. On a network there is room within milliseconds;
# a Unix peer that does not read would block all threads.
_SEND_PATIENCE = 5.0
# Seconds between its attempts, the first and the longest. poll(2) looks at our own socket, not at
# a Unix peer's queue, and Python's own waiting would spin.
_SEND_RETRY = (0.001, 0.05)

# What the kernel says of a host that answers nothing, of itself or for ARP or a router.
_HOST_GONE = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}


class HostedServer:
    """What handlers see as `self.server`.

    Attributes of the object given as `server=` are found here; what a handler sets stays here.

    Attributes:
        server_address: the first address of the server.
        server_name: its host, and server_port its port, as http.server names them.
        socket: the first listening socket.
        RequestHandlerClass: the handler class.
    """

    def __init__(self, server: Server, handler_class: Callable[..., object], attributes: object) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._attributes = attributes
        self._closing: asyncio.Task[object] | None = None
        self._looking = False
        self.RequestHandlerClass: Callable[..., object] = handler_class  # socketserver's name
        self.server_address: Any = server.addresses[0]
        address = self.server_address
        internet = isinstance(address, tuple)
        self.server_name: str = address[0] if internet else address
        self.server_port: int = address[1] if internet else 0
        self.socket: socket.socket = server.sockets[0]

    def __getattr__(self, name: str) -> Any:
        """Look the attribute up in the object given as `server=`."""
        try:
            return getattr(vars(self)["_attributes"], name)
        except KeyError:  # while it is being copied
            raise AttributeError(name) from None
        except AttributeError:
            raise AttributeError(
                f"a hosted handler asked for self.server.{name}: give an object that has it, hosted(..., server=object)"
            ) from None

    def _look(self, pool: ThreadPool) -> None:
        """Let the pool look for calls that no thread takes, again and again while some wait."""
        self._looking = False
        pool.look()
        self._look_later(pool)

    def _look_later(self, pool: ThreadPool) -> None:
        if pool.waiting and not self._looking:
            self._looking = True
            self._loop.call_later(_LOOK_SECONDS, self._look, pool)

    def _look_soon(self, pool: ThreadPool) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._look, pool)
        except RuntimeError:  # it has been closed
            return False
        return True

    def shutdown(self) -> None:
        """Begin to close the server, and return: a handler cannot wait for its own end."""
        self._loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        self._closing = self._loop.create_task(self._server.close())


class HostedHandler:
    """What `hosted()` returns: a handler for `asyncserver.serve()` and `serve_datagrams()`.

    Attributes:
        pool: the threads that handlers run in.
    """

    def __init__(
        self,
        handler_class: Callable[..., object],
        max_threads: int | None,
        attributes: object,
        *,
        reuse_threads: bool,
        answers: bool,
    ) -> None:
        self._answers = answers
        self._handler_class = handler_class
        self._attributes = attributes
        name = getattr(handler_class, "__name__", "hosted")
        # Daemonic: a handler that was given up must not keep the interpreter from ending.
        self.pool: ThreadPool = ThreadPool(max_threads, name=name, daemon=True, reuse_threads=reuse_threads)

    def __repr__(self) -> str:
        """Show the class."""
        return f"hosted({self._handler_class!r})"

    async def __call__(self, source: Stream | Datagram) -> None:
        """For the types only; a server calls `__asyncserver_handler__()` instead."""
        raise TypeError(f"{self!r} is a handler for asyncserver.serve() and serve_datagrams()")

    def pool_stats(self) -> dict[str, int]:
        """Numbers for metrics: threads, calls without one, whether the system refuses threads."""
        pool = self.pool
        return {"threads": pool.alive, "waiting": pool.waiting, "starved": int(pool.starved)}

    def __asyncserver_handler__(self, server: Server) -> Callable[[Any], Coroutine[Any, Any, None]]:
        """Make the handler for one server, which calls this when it starts."""
        facade = HostedServer(server, self._handler_class, self._attributes)
        self.pool.on_starved = functools.partial(facade._look_soon, self.pool)
        if facade.socket.type != socket.SOCK_DGRAM:

            def serve_stream(stream: Stream) -> Coroutine[Any, Any, None]:
                return self._serve_stream(stream, facade)

            return serve_stream
        answering = {one.getsockname(): _AnsweringSocket(one) for one in server.sockets}
        for one in answering.values():
            server.add_close_callback(one.close)

        def serve_datagram(datagram: Datagram) -> Coroutine[Any, Any, None]:
            return self._serve_datagram(datagram, facade, answering[datagram.endpoint.sock.getsockname()])

        return serve_datagram

    async def _serve_stream(self, stream: Stream, facade: HostedServer) -> None:
        request = lent(stream, facade._server.idle_timeout, answers=self._answers)
        try:
            call = self.pool.submit(self._handle_stream, request, stream.peer_address, facade)
        except (RuntimeError, MemoryError):  # no thread can be started, or the pool is shut down
            request.close()
            raise
        facade._look_later(self.pool)
        ended = asyncio.wrap_future(call)
        try:
            await asyncio.wait([ended])
            request.close()  # the thread does, unless an exception from outside has come between
            ended.result()
        except asyncio.CancelledError:
            if ended.cancelled() or call.cancel():  # no thread has it, and so none will close it
                request.close()
                raise
            with contextlib.suppress(OSError):  # wakes a blocked recv; the thread closes the socket
                socket.socket.shutdown(request, socket.SHUT_RDWR)
            # Its errors on a socket that we have shut are no news. The thread may come with them in
            # the loop's last round, when nothing is called any more that could take them.
            if not ended.cancel():
                ended.exception()
            over: CallFuture[None] = CallFuture()
            call.add_done_callback(lambda _: over.set_result(None))
            await asyncio.wait([asyncio.wrap_future(over)])
            request.close()
            raise

    def _handle_stream(self, request: socket.socket, client_address: Any, facade: HostedServer) -> None:
        try:
            self._handle(request, client_address, facade)
        except (ConnectionError, ssl.SSLError) as exc:
            # Otherwise it is an error of the handler's, on another connection.
            if not (_comes_from(request, exc) if isinstance(exc, ssl.SSLError) else _peer_is_gone(request)):
                raise
            # The peer left; asyncserver does not call that an error.
            raise anyio.BrokenResourceError(f"the connection with {client_address!r} broke: {exc}") from exc
        except OSError as exc:
            timed_out = isinstance(exc, TimeoutError) and exc.errno is None
            if not (timed_out or exc.errno in _HOST_GONE) or not _comes_from(request, exc):
                raise  # the handler's other connections may time out too
            if not timed_out:
                raise anyio.BrokenResourceError(f"the connection with {client_address!r} broke: {exc}") from exc
            raise IdleTimeout(f"nothing received from or sent to {client_address!r} for the idle timeout") from exc
        finally:
            _end(request, facade._server.idle_timeout)

    async def _serve_datagram(self, datagram: Datagram, facade: HostedServer, answering: _AnsweringSocket) -> None:
        request = (datagram.data, answering)
        asked = _Asked(datagram.address, datagram.sender, datagram.control)
        call = self.pool.submit(self._handle_datagram, request, asked, facade)
        facade._look_later(self.pool)
        sent = await asyncio.wrap_future(call)
        datagram.replied = sent > 0
        datagram.endpoint.sent += sent

    def _handle_datagram(self, request: tuple[bytes, _AnsweringSocket], asked: _Asked, facade: HostedServer) -> int:
        _asked.set(asked)
        try:
            self._handle(request, asked.peer_address, facade)
        except TimeoutError as exc:
            if not _comes_from(request[1], exc):
                raise
            raise anyio.BrokenResourceError(f"the sender {asked.sender!r} does not read its answers") from exc
        return asked.answers

    def _handle(self, request: Any, client_address: Any, facade: HostedServer) -> None:
        with contextlib.suppress(SystemExit):  # in socketserver it ends the handler's thread
            self._handler_class(request, client_address, facade)


@dataclass(slots=True)
class _Asked:
    """The datagram that a handler answers: the peer, who has sent it, our address, the answers."""

    peer_address: Any = None
    sender: Any = None
    control: Any = None
    answers: int = 0


# Of the running handler. Not a `threading.local`: with values there a thread is not used again.
_asked: ContextVar[_Asked] = ContextVar("_asked")


class _AnsweringSocket(socket.socket):
    """The server's datagram socket as handlers see it.

    `sendto` waits for room, answers from the address that was asked, and is counted per handler.
    """

    def __init__(self, original: socket.socket) -> None:
        super().__init__(original.family, original.type, original.proto, fileno=os.dup(original.fileno()))
        self.setblocking(False)  # as the event loop's descriptor is

    def sendto(self, *args: Any) -> int:
        delay, longest = _SEND_RETRY
        give_up = time.monotonic() + _SEND_PATIENCE
        while True:
            try:
                sent = self._send(*args)
            except BlockingIOError as exc:
                if time.monotonic() >= give_up:
                    raise TimeoutError(f"no room to send in {_SEND_PATIENCE:g} s") from exc
                time.sleep(delay)
                delay = min(2 * delay, longest)
            else:
                _asked.get(_Asked()).answers += 1
                return sent

    def _send(self, data: Any, *args: Any) -> int:
        asked = _asked.get(_Asked())
        if asked.control is None or args[-1:] != (asked.peer_address,):
            return super().sendto(data, *args)
        flags = args[0] if len(args) > 1 else 0
        return super().sendmsg([data], asked.control, flags, asked.sender)


def _comes_from(request: socket.socket, exc: BaseException) -> bool:
    """Whether a method of the request has raised it."""
    return any(frame.f_locals.get("self") is request for frame, _ in traceback.walk_tb(exc.__traceback__))


def _peer_is_gone(request: socket.socket) -> bool:
    """Whether the connection is broken; so it may be when the handler has closed it already."""
    if request.fileno() < 0:
        return True
    state = select.poll()
    state.register(request, 0)  # errors and hang-ups are always reported
    return bool(state.poll(0))


def _end(request: socket.socket, idle_timeout: float | None) -> None:
    """Close as socketserver does, ending our side first; under TLS with a close_notify."""
    with contextlib.suppress(OSError, ValueError):  # broken, or closed by the handler itself
        if isinstance(request, ssl.SSLSocket):
            request.setblocking(False)  # send close_notify, do not wait for the peer's
            with contextlib.suppress(ssl.SSLError):
                request.unwrap()
        socket.socket.shutdown(request, socket.SHUT_WR)
        linger(request, idle_timeout)
    request.close()


def hosted(
    handler_class: Callable[..., object],
    *,
    max_threads: int | None = threads_to_be_had(),
    server: object = None,
    reuse_threads: bool = True,
    answers: bool = True,
) -> HostedHandler:
    """Make a socketserver handler class a handler for `asyncserver.serve()` or `serve_datagrams()`.

    Handlers run unchanged, each in a thread: `self.request` is a blocking socket (an
    `ssl.SSLSocket` under TLS), or (bytes, socket) for datagrams; `self.client_address` is the
    peer's, `self.server` a `HostedServer`. The server's limits hold; with `idle_timeout` each
    receive and send of the socket raises TimeoutError after it (`sendall` when none of its data has
    left for so long), and a handler that does not catch it ends as timed out. When the server
    drains, a receive between two messages finds the end of the stream, as if the client had ended
    its side: also one under way, and by the same rule as for a `Stream`. All else runs on until the
    deadline; then the socket is shut down, which wakes a blocked `recv`.

    Bytes are counted as the socket's methods receive and send them: not those that go past it, by
    its descriptor or a copy.

    Example::

        class Upper(socketserver.StreamRequestHandler):
            def handle(self):
                for line in self.rfile:
                    self.wfile.write(line.upper())

        asyncserver.run(asyncserver.serve(compat.hosted(Upper), "127.0.0.1", 8080))

    Args:
        handler_class: called with (request, client_address, server), as socketserver calls it.
        max_threads: how many handlers may run at once, None for no bound; more wait for a thread.
            The default is what the system can hold.
        server: an object whose attributes handlers find in `self.server`.
        reuse_threads: False for a new thread for each connection or datagram; otherwise a thread is
            used again where the handler has left it as new (docs/compat.md says what is looked at).
        answers: False for a class that only takes what comes over a connection, such as a receiver
            of logs: the drain then waits for no answer, and the next receive is the end of the
            stream once all that had reached this host has been received. A line of `rfile` that
            lacks its end is waited for; the rest of a message that comes by `recv()` is not.

    Raises:
        TypeError: the class cannot be called, or is an asyncio protocol.
    """
    if isinstance(handler_class, type) and issubclass(handler_class, asyncio.BaseProtocol):
        name = handler_class.__qualname__
        raise TypeError(f"hosted() got {name}, a protocol class; wrap it: asyncserver.from_protocol({name})")
    if not callable(handler_class):
        raise TypeError(f"hosted() expects a subclass of BaseRequestHandler, or the like; got {handler_class!r}")
    return HostedHandler(handler_class, max_threads, server, reuse_threads=reuse_threads, answers=answers)
