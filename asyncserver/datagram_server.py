"""DatagramServer: what comes in through datagram endpoints. Admission, and an account of every datagram."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio

from ._transports import EndpointTransport
from .adapters import ProtocolHandler
from .datagram import Datagram, Endpoint
from .server import Server

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from ._types import DatagramHandler, ErrorHandler
    from .binding import BoundSocket

_logger = logging.getLogger("asyncserver")


class DatagramServer(Server):
    """Serves datagrams. Its public face is `Server`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bound: list[BoundSocket],
        handler: DatagramHandler | ProtocolHandler,
        *,
        max_datagram_size: int,
        max_pending: int,
        drain_timeout: float,
        on_error: ErrorHandler | None,
    ) -> None:
        super().__init__(loop, bound, drain_timeout, on_error)
        self._run = self._for_this_server(handler)
        self._max_pending = max_pending
        self._endpoints = [Endpoint(loop, one, self._received, self._tell_change, max_datagram_size) for one in bound]
        self._transports: dict[Endpoint, EndpointTransport] = {}
        if isinstance(handler, ProtocolHandler):
            self._transports = {
                one: EndpointTransport(loop, one, handler, self._close_soon, self._tell_change)
                for one in self._endpoints
            }
        self._intakes = self._endpoints
        self._apply_pause()

    # -- what comes in

    def _received(self, datagram: Datagram) -> None:
        self._count["datagrams_received"] += 1
        if self._transports:
            self._settle(datagram, self._transports[datagram.endpoint].received(datagram), None)
            return
        pending = self._start(self._run, datagram) or datagram.unsent is not None
        if pending and len(self._live) + len(self._finishing) >= self._max_pending:
            self._full = True
            self._apply_pause()

    def _close_soon(self) -> None:
        """A protocol has closed its transport."""
        self._closer = self._loop.create_task(self.close())

    def _settle(self, source: Any, exc: BaseException | None, result: Any) -> None:
        if exc is None and result is not None:
            exc = self._answer(source, result)
        if exc is None and source.replied:
            self._count["datagrams_answered"] += 1
        if exc is not None or source.unsent is not None:
            super()._settle(source, exc, None)
        else:  # nearly always; the detours would cost a sixth of the whole answer
            self._count["completed"] += 1
            self._gone(source)

    def _answer(self, datagram: Datagram, result: Any) -> BaseException | None:
        """Send what the handler returned; returns what is wrong with it."""
        if type(result) is not bytes and not isinstance(result, bytes | bytearray | memoryview):
            return TypeError(f"a datagram handler returns the answer as bytes, or None; got {result!r}")
        try:
            if not datagram.endpoint.try_send(result, datagram.address, datagram.control):
                datagram.unsent = bytes(result)
        except anyio.BrokenResourceError as error:
            _logger.debug("%s", error)  # the sender's choice, not the handler's error
            return None
        except OSError as error:
            return error
        datagram.replied = True
        return None

    def _finish(self, source: Any) -> Coroutine[Any, Any, object] | None:
        if source.unsent is None:
            return None
        sending: Coroutine[Any, Any, object] = source.endpoint.send(source.unsent, source.address, source.control)
        return sending

    def _released(self, source: Any) -> None:
        if self._full:
            self._full = len(self._live) + len(self._finishing) >= self._max_pending
            if not self._full:
                self._apply_pause()

    # -- pausing and stopping

    def _stop(self) -> None:
        self._paused = False
        for endpoint in self._endpoints:
            endpoint.drain()
        self._apply_pause()

    def _unfinished(self) -> bool:
        waiting = any(one.draining for one in self._endpoints) or any(one.sending for one in self._transports.values())
        return waiting or super()._unfinished()

    def _drop_waiting(self) -> None:
        self._paused = True  # also when a handler that ends makes room
        self._apply_pause()

    def _release_sockets(self) -> None:
        for transport in self._transports.values():
            try:
                transport.lost()
            except Exception:
                _logger.exception("%r failed in connection_lost()", transport.get_protocol())
        for endpoint in self._endpoints:
            endpoint.close()

    def _measured(self) -> dict[str, int]:
        return {
            "datagrams_silent": self._count["completed"] - self._count["datagrams_answered"],
            "datagrams_sent": sum(endpoint.sent for endpoint in self._endpoints),
            "datagrams_dropped": sum(endpoint.dropped for endpoint in self._endpoints),
        }
