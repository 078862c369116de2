"""DatagramServer: how many datagrams are handled at a time, and how each of them ends.

    places left? -> handlers begin -> those that wait are kept -> all are settled

How they are read, and in which task a handler begins: batch_reader.py and inline_runner.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from .._logger import Seldom
from .._logger import logger as _logger
from ..adapters.protocol_endpoint import ProtocolEndpoint
from ..datagrams.inline_runner import InlineRunner
from ..datagrams.outlets import Outlets
from ..datagrams.proxied import ProxiedReader
from ..datagrams.ring_runner import make_runner
from ..net.addresses import format_address
from ..net.octets import octets
from ..net.tasks import require_loop
from ..reports.logs import about
from ..reports.stats import timed
from .handler_kinds import is_protocol_handler
from .handlers import HandlerServer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine, Sequence

    from .._types import DatagramHandler, ErrorHandler
    from ..adapters.protocols import ProtocolHandler
    from ..datagrams.batch_reader import BatchReader
    from ..datagrams.datagram import Buffer, Datagram
    from ..listening.binding import BoundSocket
    from ..net.addresses import Address
    from ..proxy.proxy_protocol import TrustedProxies
    from ..reports.stats import Reading, Run

# Why datagrams are refused behind a proxy: counters of ServerStats.
_REFUSALS = ("proxy_untrusted", "proxy_invalid")


class ProxiedRunner(ProxiedReader, InlineRunner):
    """An InlineRunner behind a proxy."""


class ProxiedProtocolEndpoint(ProxiedReader, ProtocolEndpoint):
    """A ProtocolEndpoint behind a proxy."""


class DatagramServer(HandlerServer["Datagram"]):
    """Serves datagrams. Its public face is `Server`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bound: list[BoundSocket],
        handler: DatagramHandler | ProtocolHandler,
        *,
        max_datagram_size: int,
        max_pending: int,
        proxies: TrustedProxies | None,
        drain_timeout: float,
        on_error: ErrorHandler | None,
    ) -> None:
        super().__init__(loop, bound, drain_timeout, on_error)
        self._handler = self._for_this_server(handler)
        self._run = self._layers()
        self._max_pending = max_pending
        self._proxies = proxies
        self._seldom = Seldom(loop.time)
        self._runners: list[InlineRunner] = []
        self._endpoints: Sequence[BatchReader]
        if is_protocol_handler(handler):
            serving, close = ProtocolEndpoint if proxies is None else ProxiedProtocolEndpoint, self._close_soon
            self._endpoints = [serving(self, one, max_datagram_size, handler, close) for one in bound]
        else:
            runner = make_runner if proxies is None else ProxiedRunner
            self._endpoints = self._runners = [runner(self, one, max_datagram_size) for one in bound]
        self._intakes = self._endpoints
        self._outlets = Outlets(self._endpoints)

    @property
    def connections(self) -> frozenset[Datagram]:
        """See Server."""
        return super().connections.union(one.current for one in self._runners if one.current is not None)

    async def sendto(self, data: Buffer, address: Address, local_address: Address = None) -> None:
        """See Server."""
        require_loop(self._loop, "server.sendto(...)", coroutine=True)
        if self._proxies is not None:
            raise TypeError(
                f"sendto() would pass by the proxy of {self!r}, and its clients do not know us: keep a Datagram and "
                "await its reply(), or send from a serve_datagrams() without proxy_protocol"
            )
        await self._outlets.send(octets(data, "sendto"), address, local_address)

    def _layers(self) -> Run[Datagram]:
        """See HandlerServer."""
        handler: Run[Datagram] = self._handler
        return handler if self.durations is None else timed(handler, self.durations.observe)

    def _close_soon(self) -> None:
        """A protocol has closed its transport."""
        self._closer = self._loop.create_task(self.close())

    # -- admitting

    def _refuse_proxied(self, counter: str, address: Address, reason: str) -> None:
        """See Refusing. Most likely proxy and server are set up differently, and nothing works."""
        self._count["refused"] += 1
        self._count[counter] += 1
        extra = about(self, peer=format_address(address), outcome="refused")
        _logger.log(self._seldom.level("proxy"), "refused a datagram from %r: %s", address, reason, extra=extra)

    def _places_left(self) -> int:
        """See Handling."""
        occupied = self._occupied() if self._callers else len(self._live) + len(self._closing_sources)
        return self._max_pending - occupied

    def _keep(self, task: asyncio.Task[object], source: Datagram) -> None:
        super()._keep(task, source)
        self._pause_if_full()

    def _pause_if_full(self) -> None:
        if self._places_left() <= 0:
            self._full = True
            self._apply_pause()

    def _take_waiting(self) -> None:
        if self._full and self._places_left() > 0:
            self._full = False
            self._apply_pause()

    def _release(self, source: Datagram) -> None:
        self._take_waiting()
        self._tell_change()

    # -- settling

    def _count_answered(self, number: int) -> None:
        """See Handling. As `_settle`, whose calls would cost a tenth of the whole answer."""
        self._count["completed"] += number
        self._count["datagrams_answered"] += number
        self._tell_change()

    def _settle(self, source: Datagram, exc: BaseException | None, result: object) -> None:
        if exc is None and result is not None:
            exc = self._answer(source, result)
        if exc is None and source.replied:
            self._count["datagrams_answered"] += 1
        if exc is not None or source.unsent is not None:
            super()._settle(source, exc, None)
            del exc  # its traceback holds this frame (f_back): a cycle
            self._pause_if_full()  # if the answer waits for room in the socket
        else:
            self._count["completed"] += 1
            self._release(source)

    def _answer(self, datagram: Datagram, result: object) -> BaseException | None:
        """Send what the handler returned; returns what is wrong with it."""
        if type(result) is not bytes and not isinstance(result, bytes | bytearray | memoryview):
            return TypeError(f"a datagram handler returns the answer as bytes, or None; got {result!r}")
        try:
            if not datagram.endpoint.try_send(result, datagram.address, datagram.control):
                datagram.unsent = bytes(result)
        except anyio.BrokenResourceError as error:
            # The sender chose that address: no error of the handler's.
            _logger.debug("%s", error, extra=about(self, datagram))
            return None
        except OSError as error:
            return error
        datagram.replied = True
        return None

    def _close_source(self, source: Datagram) -> Coroutine[Any, Any, object] | None:
        if source.unsent is None:
            return None
        return source.endpoint.send(source.unsent, source.address, source.control)

    def _abandon(self, source: Datagram, closing: asyncio.Task[object]) -> bool:
        closing.cancel()  # there may never be room for its answer
        return super()._abandon(source, closing)

    # -- stopping

    def _stop(self) -> None:
        self._paused = False
        for endpoint in self._endpoints:
            endpoint.drain()
        self._apply_pause()

    def _unfinished(self) -> bool:
        return any(one.unfinished for one in self._endpoints) or super()._unfinished()

    def _drop_waiting(self) -> None:
        self._paused = True  # also when a handler that ends makes room
        self._apply_pause()

    def _release_sockets(self) -> None:
        for endpoint in self._endpoints:
            endpoint.close()

    def reading(self) -> Reading:
        """See Account."""
        reading = super().reading()
        if self._proxies is not None:
            reading |= {name: self._count[name] for name in _REFUSALS}
        return reading

    def _measured(self) -> dict[str, int]:
        return {
            "active": super()._measured()["active"] + sum(one.active for one in self._runners),
            "datagrams_received": sum(endpoint.received for endpoint in self._endpoints),
            "datagrams_silent": self._count["completed"] - self._count["datagrams_answered"],
            "datagrams_sent": sum(endpoint.sent for endpoint in self._endpoints),
            "datagrams_dropped": sum(endpoint.dropped for endpoint in self._endpoints),
        }
