"""DatagramServer: what comes in through datagram endpoints. Admission, and an account of every datagram."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from ._logger import logger as _logger
from ._receiver import Receiver
from ._transports import EndpointTransport
from .adapters import ProtocolHandler
from .datagram import Datagram, Endpoint
from .logs import about
from .server import Server

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from ._types import DatagramHandler, ErrorHandler
    from .binding import BoundSocket


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
        self._answers: list[tuple[Datagram, Any]] = []  # what handlers of this batch have returned
        self._receivers: dict[Endpoint, Receiver] = {}
        self._transports: dict[Endpoint, EndpointTransport] = {}
        if isinstance(handler, ProtocolHandler):
            self._endpoints = [
                Endpoint(loop, one, self._pass_on, self._tell_change, max_datagram_size) for one in bound
            ]
            self._transports = {
                one: EndpointTransport(loop, one, handler, self._close_soon, self._tell_change)
                for one in self._endpoints
            }
        else:
            self._endpoints = [
                Endpoint(loop, one, self._answer_batch, self._tell_change, max_datagram_size) for one in bound
            ]
            for one in self._endpoints:
                one.catch_up = self._send_answers
                self._receivers[one] = Receiver(self, one)
        self._intakes = self._endpoints
        self._apply_pause()

    # -- what comes in

    def _answer_batch(self, endpoint: Endpoint) -> None:
        """Run a batch of handlers; what they return is sent when all have run, so that the peer wakes up once."""
        endpoint.left = min(endpoint.left, self._max_pending - len(self._live) - len(self._finishing))
        receiver = self._receivers[endpoint]
        try:
            over = receiver.run()
        finally:
            self._send_answers()
        if not over:
            while (datagram := endpoint.take()) is not None:
                self._start(self._run, datagram)
            receiver.prepare()
        if len(self._live) + len(self._finishing) >= self._max_pending:
            self._full = True
            self._apply_pause()

    def _send_answers(self) -> None:
        answers, self._answers = self._answers, []
        sent = 0
        for datagram, result in answers:
            try:
                quick = type(result) is bytes and datagram.endpoint.try_send(result, datagram.address, datagram.control)
            except Exception:  # `_settle` meets it again, and tells
                quick = False
            if quick:
                sent += 1
            else:
                self._settle(datagram, None, result)
        if sent:  # what `_settle` does, without its detours, which would cost a tenth of the whole answer
            self._count["completed"] += sent
            self._count["datagrams_answered"] += sent
            self._tell_change()

    def _pass_on(self, endpoint: Endpoint) -> None:
        """Give a batch of datagrams to a protocol."""
        transport = self._transports[endpoint]
        while (datagram := endpoint.take()) is not None:
            self._settle(datagram, transport.received(datagram), None)

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
        else:
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
            _logger.debug("%s", error, extra=about(self, datagram))  # the sender's choice, not the handler's error
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
        for receiver in self._receivers.values():
            receiver.close()
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
                extra = about(self, outcome="failed")
                _logger.exception("%r failed in connection_lost()", transport.get_protocol(), extra=extra)
        for endpoint in self._endpoints:
            endpoint.close()

    def _measured(self) -> dict[str, int]:
        return {
            "active": super()._measured()["active"] + len(self._answers),
            "datagrams_received": sum(endpoint.received for endpoint in self._endpoints),
            "datagrams_silent": self._count["completed"] - self._count["datagrams_answered"],
            "datagrams_sent": sum(endpoint.sent for endpoint in self._endpoints),
            "datagrams_dropped": sum(endpoint.dropped for endpoint in self._endpoints),
        }
