"""/metrics, /ready and /live over HTTP; and Monitor, which serves them in a program of one process.

/live     200 if the event loop answers
/ready    200 if every server takes new work, 503 from the first signal to stop on
/metrics  the counters; with `?by=worker` those of each worker
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import anyio

from .._logger import logger as _logger
from ..net.addresses import distinct_labels, format_address, parse_address
from ..serving import serve
from . import http, metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..net.addresses import Address
    from ..servers.server import Server
    from ..serving import Serving
    from ..streams.stream import Stream
    from .metrics import Row

# Seconds for a whole exchange, after which it is cut off. Prometheus by default waits 10.
PATIENCE = 10.0
# Seconds for the scrapes that run when everything else has ended.
_DRAIN_TIMEOUT = 1.0
# Clients served at once: several Prometheus servers, probes and a live view or two. When there is
# one more, the oldest is cut off, so that a new probe is answered.
MOST_CLIENTS = 32


class Program(Protocol):
    """The source of the answers: the servers of this process, or of all workers."""

    has_other_metrics: bool  # whether to show what else is registered with prometheus-client here

    @property
    def ready(self) -> bool:
        """Whether all servers take new work."""

    def rows(self) -> list[Row]:
        """The program's own reading, and one for each server and worker, labelled with both."""


def respond(program: Program, request: http.Request) -> http.Response:
    """Answer a request. Never raises."""
    try:
        if request.path == "/metrics":
            return _metrics(program, request)
        if request.path == "/ready":
            ready = program.ready
            status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
            return http.text(status, "ready" if ready else "not ready")
        if request.path == "/live":
            return http.text(HTTPStatus.OK, "live")
    except ModuleNotFoundError as exc:
        return http.text(HTTPStatus.NOT_IMPLEMENTED, str(exc))
    except Exception:
        _logger.exception("%s could not be answered", request.path)
        return http.text(HTTPStatus.INTERNAL_SERVER_ERROR, "failed: see the log")
    return http.text(HTTPStatus.NOT_FOUND, "there are /metrics, /ready and /live")


def _metrics(program: Program, request: http.Request) -> http.Response:
    metrics.require_prometheus()
    rows, by = program.rows(), ["server", "worker"]
    if "worker" not in request.query.get("by", ()):
        rows, by = metrics.summed(rows), ["server"]
    collected = [*metrics.families(rows, by), *(metrics.other_families() if program.has_other_metrics else ())]
    content_type, body = metrics.exposition(collected, request.accept)
    return http.Response(HTTPStatus.OK, body, content_type)


def log_urls(addresses: Iterable[Address]) -> None:
    """Log where the metrics are served."""
    for address in addresses:
        _logger.info("/metrics, /ready and /live on http://%s", format_address(address))


class Monitor:
    """A Program of one process, and the handler that serves it, on the same loop.

    Attributes:
        stopping: to be set before the servers are closed, when the program is to end.
    """

    has_other_metrics = True

    def __init__(self) -> None:
        self.stopping = False
        self._servers: Sequence[Server] = ()
        self._labels: Sequence[str] = ()
        self._clients: dict[Stream, None] = {}  # the oldest first

    def serving(self, place: str) -> Serving:
        """Make the Serving that serves it at HOST:PORT."""
        host, port = _parse_place(place)
        try:
            metrics.require_prometheus()
        except ModuleNotFoundError as exc:  # at the start, not only to those who scrape
            _logger.warning("%s; until then only /ready and /live answer", exc)
        return serve(self, host, port, drain_timeout=_DRAIN_TIMEOUT)

    def watch(self, servers: Sequence[Server], *, measure: bool) -> None:
        """Report about these servers from now on; before, the program is not ready.

        With `measure` they also measure how long handlers take.
        """
        self._servers = servers
        self._labels = distinct_labels(server.label for server in servers)
        for server in servers if measure else ():
            server.measure_durations()

    @property
    def ready(self) -> bool:
        """See Program."""
        return bool(self._servers) and not self.stopping and all(server.taking for server in self._servers)

    def rows(self) -> list[Row]:
        """See Program."""
        own = metrics.Row({"ready": self.ready, "workers": 1, "worker_deaths": 0})
        served = zip(self._servers, self._labels, strict=True)
        return [own, *(metrics.Row(server.reading(), (label, "1")) for server, label in served)]

    async def __call__(self, stream: Stream) -> None:
        """Answer one request, and cut off a client that takes too long."""
        if len(self._clients) >= MOST_CLIENTS:
            oldest = next(iter(self._clients))
            del self._clients[oldest]
            oldest.abort()
        self._clients[stream] = None
        try:
            await self._answer(stream)
        finally:
            self._clients.pop(stream, None)

    async def _answer(self, stream: Stream) -> None:
        with anyio.move_on_after(PATIENCE) as scope:
            try:
                request = http.parse(await stream.receive_until(http.END_OF_HEAD, http.LONGEST_HEAD))
            except anyio.DelimiterNotFound:
                request = http.TOO_LONG
            if isinstance(request, http.Response):
                await stream.send(request.encode())
            else:
                await stream.send(respond(self, request).encode(head_only=request.head_only))
        if scope.cancelled_caught:
            stream.abort()


def _parse_place(text: str) -> tuple[str | None, int]:
    if not isinstance(text, str):
        raise TypeError(f'metrics must be "HOST:PORT", such as "127.0.0.1:9100"; got {text!r}')
    try:
        return parse_address(text)
    except ValueError:
        expected = '"HOST:PORT", such as "127.0.0.1:9100" or "[::1]:9100"'
        raise ValueError(f"metrics must be {expected}; got {text!r}") from None
