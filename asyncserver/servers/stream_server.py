"""StreamServer: connections from its listeners: limits, PROXY, TLS, idle timeout, and their end."""

from __future__ import annotations

import asyncio
import ssl as ssl_
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import anyio

from .._logger import Seldom
from .._logger import logger as _logger
from ..exceptions import HeaderError, Refused
from ..listening.listener import Listener
from ..net.addresses import format_address, host_group, task_name
from ..net.octets import octets
from ..net.poller import Poller
from ..net.probes import probes_come_in_time
from ..net.tasks import name_task, require_loop
from ..reports.logs import about, raised_at, with_lines
from ..reports.stats import outcome_of, timed
from ..streams.sending import PostLimit, post_to_all
from ..streams.stream import Stream
from .handler_kinds import is_protocol_handler
from .handlers import HandlerServer
from .keepalive import KeepAlive

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine

    from .._types import ErrorHandler, StreamHandler
    from ..adapters.protocol_connection import ProtocolConnection
    from ..adapters.protocols import ProtocolHandler
    from ..listening.binding import BoundSocket
    from ..net.addresses import Address
    from ..proxy.proxy_protocol import ProxyHeader, TrustedProxies
    from ..reports.stats import Run
    from ..tls.contexts import TLSContext

# Looks at all connections per idle_timeout: one is closed at most an eighth of it late.
_IDLE_LOOKS = 16

_SLOW = "aborted the connection of %r: more than max_unsent bytes waited for it"
_VANISHED = "broke the connection of %r: its host answers nothing (keepalive)"

#: A connection, as its handler gets it.
Connected: TypeAlias = "Stream | ProtocolConnection"


class StreamServer(HandlerServer["Connected"]):
    """Serves connections. Its public face is `Server`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bound: list[BoundSocket],
        handler: StreamHandler | ProtocolHandler,
        *,
        ssl: ssl.SSLContext | None,
        ssl_handshake_timeout: float,
        max_connections: int | None,
        max_connections_per_host: int | None,
        idle_timeout: float | None,
        keepalive: float | None,
        proxies: TrustedProxies | None,
        proxy_timeout: float,
        max_unsent: int,
        drain_timeout: float,
        on_error: ErrorHandler | None,
    ) -> None:
        super().__init__(loop, bound, drain_timeout, on_error)
        self.idle_timeout = idle_timeout
        self._handler = self._for_this_server(handler)
        self._ssl = ssl
        self._ssl_handshake_timeout = ssl_handshake_timeout
        self._max_connections = max_connections
        self._max_per_host = max_connections_per_host
        self._per_host: Counter[str] = Counter()
        self._proxies = proxies
        self._proxy_timeout = proxy_timeout
        self._bars = proxies is not None or ssl is not None  # until connections are let in
        # Those whose PROXY header or TLS handshake is not complete: not in `connections`.
        self._entering: set[Connected] = set()
        # Those without their proxy's header: not counted for any host.
        self._unnamed: set[Connected] = set()
        self._seldom = Seldom(loop.time)
        # Whether more is kept of connections than that they are served: what `_forget()` forgets.
        watched = idle_timeout is not None or keepalive is not None
        self._remembers = self._bars or watched or max_connections_per_host is not None
        # The class of the connections is the one whose handler `_layers()` builds on.
        limit = PostLimit(max_unsent, partial(self._tell_given_up, "slow_consumers", _SLOW))
        self._run = self._layers()
        self._poller = Poller(loop)
        connect: Callable[[], Connected] = partial(Stream, self._poller, self._closing, limit)
        if is_protocol_handler(self._handler):
            connect = partial(self._handler.connection_class, self._poller, self._closing)
        self._waiting: deque[Connected] = deque()
        picks = max_connections is not None or max_connections_per_host is not None or proxies is not None
        accepted = self._admit if picks else self._serve
        self._listeners = [Listener(loop, one, connect, accepted, self._accept_failed) for one in bound]
        self._intakes = self._listeners
        self._idle_seen: dict[Connected, tuple[int, float]] = {}
        if idle_timeout is not None:
            self._look_for_idle()
        self._keepalive: KeepAlive | None = None
        if keepalive is not None:
            probes = 1 if all(probes_come_in_time(one.sock) for one in bound) else 2
            found, closed = partial(self._tell_given_up, "vanished", _VANISHED), self._closed.is_set
            self._keepalive = KeepAlive(
                loop, keepalive, probes=probes, live=self._admitted, vanished=found, closed=closed
            )

    def _layers(self) -> Run[Connected]:
        """See HandlerServer. A connection passes through them from the last one to the first."""
        # It takes what `_connect` makes.
        run: Any = self._handler.serve if is_protocol_handler(self._handler) else self._handler
        if self._ssl is not None:
            run = partial(self._run_tls, run)
        if self._proxies is not None:
            run = partial(self._run_proxied, run)
        run = with_lines(self, run)
        if self.durations is not None:
            run = timed(run, self.durations.observe)
        return cast("Run[Connected]", run)

    def _admitted(self) -> list[tuple[asyncio.Task[object], Connected]]:
        return [(task, one) for task, one in self._live.items() if one not in self._entering]

    def _running(self, live: dict[asyncio.Task[object], Connected]) -> tuple[Connected, ...]:
        """See HandlerServer. Without those that have not been let in."""
        running = super()._running(live)
        return tuple(one for one in running if one not in self._entering) if self._bars else running

    # -- what comes in

    def _admit(self, connection: Connected) -> None:
        if self._proxies is not None and connection.peer_address not in self._proxies:
            self._refuse_proxied("proxy_untrusted", connection.peer_address, "it is none of the trusted_proxies")
            self._refuse(connection)
        elif self._max_per_host is not None and self._proxies is None and not self._enter_host(connection.peer_address):
            self._refuse(connection)
        elif self._full:  # only what the kernel still held when the server began to close
            self._waiting.append(connection)
        else:
            self._serve(connection)

    def _refuse(self, connection: Connected) -> None:
        self._count["accepted"] += 1
        self._count["refused"] += 1
        connection._close()

    def _serve(self, connection: Connected) -> None:
        self._count["accepted"] += 1
        if self._drainer is not None and self._closing.is_set():
            connection._begin_drain()
        if self._bars:
            if self._proxies is not None:
                self._unnamed.add(connection)
            self._entering.add(connection)
            connection._bar()
        self._start(self._run, connection, connection._task_name())
        if self._max_connections is not None:
            self._full = self._occupied() >= self._max_connections
            if self._full:
                self._apply_pause()

    async def _run_tls(self, run: Run[Connected], connection: Connected) -> object:
        assert self._ssl is not None
        try:
            async with asyncio.timeout(self._ssl_handshake_timeout):
                await connection._secure(self._ssl)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, TimeoutError) as exc:
            extra = about(self, connection, outcome="refused")
            _logger.debug("TLS handshake with %r failed: %s", connection.peer_address, exc, extra=extra)
            raise Refused from exc
        self._let_in(connection)
        return await run(connection)

    async def _run_proxied(self, run: Run[Connected], connection: Connected) -> object:
        """Read the client's address from the proxy's header; then go on as without a proxy."""
        try:
            async with asyncio.timeout(self._proxy_timeout):
                header = await connection._take_proxy_header()
            self._name(connection, header)
            if self._closing.is_set():
                connection._begin_drain()
        except TimeoutError as exc:
            self._refuse_proxied("proxy_timed_out", connection.peer_address, "its PROXY header did not come in time")
            raise Refused from exc
        except HeaderError as exc:
            self._refuse_proxied("proxy_invalid", connection.peer_address, str(exc))
            raise Refused from exc
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            # A health check that only connects, or a proxy that has only connected by the drain.
            self._count["proxy_invalid"] += 1
            raise Refused from exc
        finally:
            if connection in self._unnamed:
                connection.abort()
        if self._ssl is None:
            self._let_in(connection)
        return await run(connection)

    def _let_in(self, connection: Connected) -> None:
        self._entering.discard(connection)
        connection._let_in()

    def _name(self, connection: Connected, header: ProxyHeader) -> None:
        connection.proxy_header = header
        if header.source is not None:
            connection.peer_address = header.source
            name_task(asyncio.current_task(), task_name(header.source))
        if self._max_per_host is not None and not self._enter_host(connection.peer_address):
            raise Refused
        self._unnamed.discard(connection)

    def _refuse_proxied(self, counter: str, address: Address, reason: str) -> None:
        """Count and log: most likely proxy and server are set up differently, and nothing works."""
        self._count[counter] += 1
        self._tell_refused("proxy", address, reason)

    def _tell_refused(self, kind: str, address: Address, reason: str) -> None:
        extra = about(self, peer=format_address(address), outcome="refused")
        _logger.log(self._seldom.level(kind), "refused a connection from %r: %s", address, reason, extra=extra)

    def _blame_peer(self, fault: str, exc: BaseException, source: Connected) -> bool:
        self._count["misbehaved"] += fault == "misbehaved"
        _logger.log(
            self._seldom.level(fault),
            "handler of %r ended by its peer: %r (%s)",
            source.peer_address,
            exc,
            raised_at(exc),
            extra=about(self, source, outcome=outcome_of(exc)),
        )
        return True

    def _tell_given_up(self, counter: str, message: str, connection: Connected) -> None:
        self._count[counter] += 1
        extra = about(self, connection, outcome=counter.removesuffix("s"))
        _logger.log(self._seldom.level(counter), message, connection.peer_address, extra=extra)

    def broadcast(self, data: bytes | bytearray | memoryview, *, but: Stream | None = None) -> int:
        """See Server."""
        require_loop(self._loop, "server.broadcast, data")
        if is_protocol_handler(self._handler):
            raise TypeError(f"broadcast() posts to streams; {self!r} serves a protocol, which writes by its transports")
        if not isinstance(but, Stream | None):
            raise TypeError(f"broadcast(): but is one Stream, which does not get it; got {but!r}")
        streams = cast("tuple[Stream, ...]", self._running(self._live))
        return post_to_all(streams, bytes(octets(data, "broadcast")), but)

    def _accept_failed(self) -> None:
        self._count["accept_errors"] += 1

    def _enter_host(self, address: Address) -> bool:
        host = host_group(address)
        if self._per_host[host] >= (self._max_per_host or 0):
            self._tell_refused("host", address, f"its host has {self._per_host[host]} (max_connections_per_host)")
            return False
        self._per_host[host] += 1
        return True

    # -- pausing and stopping

    def _stop(self) -> None:
        self._intakes = ()
        for listener in self._listeners:
            listener.close()

    def _handler_of(self, task: asyncio.Task[Any] | None) -> asyncio.Task[Any] | None:
        """See Server. A `(reader, writer)` callback runs in a task of its own."""
        for handler, connection in self._live.items():
            if not isinstance(connection, Stream) and connection.task is task:
                return handler
        return task

    def _release_sockets(self) -> None:
        self._poller.close()

    def _unfinished(self) -> bool:
        return bool(self._waiting) or not all(one.closed for one in self._listeners) or super()._unfinished()

    def _drop_waiting(self) -> None:
        for listener in self._listeners:
            listener.abandon()
        while self._waiting:
            connection = self._waiting.popleft()
            if self._max_per_host is not None and self._proxies is None:
                self._leave_host(connection.peer_address)
            self._refuse(connection)

    # -- what a connection leaves behind

    def _close_source(self, source: Connected) -> Coroutine[Any, Any, object] | None:
        return None if source._close_if_quiet() else source.aclose()

    def _abandon(self, source: Connected, closing: asyncio.Task[object]) -> bool:
        source._let_go()
        return source._undelivered

    def _release(self, source: Connected) -> None:
        count = self._count
        count["bytes_received"] += source.bytes_received
        count["bytes_sent"] += source.bytes_sent
        if source._undelivered:
            count["undelivered"] += 1
        if self._remembers:
            self._forget(source)
        if count["accept_errors"]:
            for listener in self._listeners:
                listener.retry()
        if self._full:
            self._take_waiting()
        if self._drainer is not None:
            self._tell_change()

    def _forget(self, source: Connected) -> None:
        """Forget what is kept of a connection besides that it is served."""
        if self._keepalive is not None:
            self._keepalive.forget(source)
        self._idle_seen.pop(source, None)
        if self._max_per_host is not None and source not in self._unnamed:
            self._leave_host(source.peer_address)
        self._entering.discard(source)
        self._unnamed.discard(source)

    def _take_waiting(self) -> None:
        if self._full and self._occupied() < (self._max_connections or 0):
            self._full = False
            while self._waiting and not self._full:
                self._serve(self._waiting.popleft())
            self._apply_pause()

    def _leave_host(self, address: Address) -> None:
        host = host_group(address)
        self._per_host[host] -= 1
        if not self._per_host[host]:
            del self._per_host[host]

    def _measured(self) -> dict[str, int]:
        connections = self.connections
        open_now = (*connections, *self._closing_sources.values())
        measured = super()._measured()
        return {
            "active": len(connections),
            "entering": measured["active"] - len(connections),
            "bytes_received": self._count["bytes_received"] + sum(one.bytes_received for one in open_now),
            "bytes_sent": self._count["bytes_sent"] + sum(one.bytes_sent for one in open_now),
        }

    # -- idle connections

    def _look_for_idle(self) -> None:
        """Expire connections that moved no byte. One look at all costs less than a timer each."""
        assert self.idle_timeout is not None
        now = self._loop.time()
        for connection in (*self._live.values(), *self._closing_sources.values()):
            if connection in self._entering or connection._is_in_handshake:
                self._idle_seen.pop(connection, None)  # it has another time limit
                continue
            moved = connection.bytes_moved
            seen, since = self._idle_seen.get(connection, (-1, now))
            if seen != moved:
                self._idle_seen[connection] = moved, now
            elif now - since >= self.idle_timeout:
                self._idle_seen[connection] = moved, now
                connection._expire()
        if not self._closed.is_set():
            self._loop.call_later(self.idle_timeout / _IDLE_LOOKS, self._look_for_idle)

    # -- TLS

    @property
    def can_reload_tls(self) -> bool:
        """See Server."""
        return hasattr(self._ssl, "reload")  # a TLSContext, of a module that others need not import

    def reload_tls(self, context: ssl.SSLContext | None = None) -> None:
        """See Server."""
        self._require_open("reload_tls")
        if self._ssl is None:
            super().reload_tls()  # raises
        if context is None:
            if not self.can_reload_tls:
                raise RuntimeError(
                    "reload_tls() can read files again only for a context made by asyncserver.tls_context(); "
                    "give the new context: reload_tls(context)"
                )
            context = cast("TLSContext", self._ssl).reload()
        elif getattr(context, "protocol", None) in {None, ssl_.PROTOCOL_TLS_CLIENT}:
            raise TypeError(f"reload_tls() needs an ssl.SSLContext for the server side, got {context!r}")
        self._ssl = context
