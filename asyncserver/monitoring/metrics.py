"""Metrics: the servers' counters for Prometheus. Needs prometheus-client, the extra `metrics`.

METRICS lists them all; a test compares it with the table in docs/metrics.md. The numbers come as
readings (reports/stats.py), one for each server and worker, so one process and many share this
code.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .._logger import logger as _logger
from ..reports.stats import Durations, add

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ..reports.stats import Reading
    from ..servers.server import Server

__all__ = ["ServerCollector"]

# Seconds that a collector in another thread waits for the server's loop. Prometheus waits 10.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: without the prefix `asyncserver_` and without a counter's suffix `_total`.
        kind: "counter", "gauge" or "histogram".
        help: what it counts.
        keys: the keys of its numbers in a reading, by the value that `label` has for each.
        label: the label that distinguishes several keys.
        of_program: whether it belongs to the whole program, not to a server.
    """

    name: str
    kind: str
    help: str
    keys: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    of_program: bool = False


_OUTCOMES = ("completed", "failed", "cancelled", "timed_out")
_PROXY = ("untrusted", "invalid", "timed_out")

METRICS: tuple[Metric, ...] = (
    Metric("connections_accepted", "counter", "Connections taken from the kernel's queue.", {"": "accepted"}),
    Metric("connections_refused", "counter", "Connections closed before a handler saw them.", {"": "refused"}),
    Metric("connections_entering", "gauge", "Connections whose PROXY header or TLS handshake is not complete.",
           {"": "entering"}),
    Metric("proxy_refused", "counter", "Of the refused, those without a valid PROXY header from a trusted proxy.",
           {reason: f"proxy_{reason}" for reason in _PROXY}, "reason"),
    Metric("accept_errors", "counter", "How often accept(2) failed.", {"": "accept_errors"}),
    Metric("handlers_active", "gauge", "Connections or datagrams whose handlers run.", {"": "active"}),
    Metric("handlers_ended", "counter", "Handlers that have ended.", {one: one for one in _OUTCOMES}, "outcome"),
    Metric("peers_misbehaved", "counter", "Of the completed, handlers ended by a peer that sent what it should not.",
           {"": "misbehaved"}),
    Metric("connections_undelivered", "counter", "Connections closed before their peer had taken all that was sent.",
           {"": "undelivered"}),
    Metric("slow_consumers", "counter", "Connections aborted because too much waited for their peer.",
           {"": "slow_consumers"}),
    Metric("peers_vanished", "counter", "Connections broken because their peer's host answered nothing for keepalive.",
           {"": "vanished"}),
    Metric("handler_duration_seconds", "histogram", "How long handlers took that have ended."),
    Metric("received_bytes", "counter", "Payload received over connections.", {"": "bytes_received"}),
    Metric("sent_bytes", "counter", "Payload sent over connections.", {"": "bytes_sent"}),
    Metric("datagrams_received", "counter", "Datagrams given to a handler.", {"": "datagrams_received"}),
    Metric("datagrams_dropped", "counter", "Datagrams that no handler saw, dropped by the kernel or by us.",
           {"": "datagrams_dropped"}),
    Metric("datagrams_answered", "counter", "Datagrams whose handler sent at least one.", {"": "datagrams_answered"}),
    Metric("datagrams_silent", "counter", "Datagrams whose handler sent none.", {"": "datagrams_silent"}),
    Metric("datagrams_sent", "counter", "Datagrams sent, by handlers and calls of `sendto()` in the program.",
           {"": "datagrams_sent"}),
    Metric("pool_threads", "gauge", "Threads of a hosted handler's pool, idle ones included.", {"": "pool_threads"}),
    Metric("pool_waiting", "gauge", "Handlers that wait for a thread.", {"": "pool_waiting"}),
    Metric("pool_starved", "gauge", "Pools whose last thread the system refused to start.", {"": "pool_starved"}),
    Metric("ready", "gauge", "Whether every server takes new work: 1, else 0.", {"": "ready"}, of_program=True),
    Metric("workers", "gauge", "Processes that serve, without those that are stuck.", {"": "workers"}, of_program=True),
    Metric("worker_deaths", "counter", "Workers that ended unasked.", {"": "worker_deaths"}, of_program=True),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A reading with its labels: server, or server and worker; none if it is the program's."""

    reading: Reading
    labels: tuple[str, ...] = ()


class ServerCollector:
    """A Prometheus collector of servers that run in this process.

    `run(..., metrics=...)` and `--metrics` need none. A program with an endpoint of its own::

        collector = asyncserver.ServerCollector(server)
        prometheus_client.REGISTRY.register(collector)

    It can be collected in any thread: it fetches the numbers from the server's loop, and leaves out
    servers if their loop does not answer within 5 seconds. They measure the durations of handlers
    from now on.

    Args:
        servers: running servers; the label of each is its URL, "tcp://127.0.0.1:8080".

    Raises:
        ModuleNotFoundError: prometheus-client is not installed.
    """

    def __init__(self, *servers: Server) -> None:
        require_prometheus()
        self._servers: dict[str, Server] = {}
        for server in servers:
            self.add(server)

    def add(self, server: Server, name: str | None = None) -> None:
        """Collect from one more server.

        Args:
            server: a running server.
            name: its label; None for its URL.

        Raises:
            ValueError: another server has that label.
        """
        name = server.label if name is None else name
        if self._servers.get(name, server) is not server:
            raise ValueError(f"another server has the label {name!r} already; give each a name: add(server, name)")
        self._servers[name] = server
        server.measure_durations()

    def collect(self) -> Iterator[Any]:
        """Make the metric families; called by prometheus-client."""
        rows = []
        for name, server in list(self._servers.items()):
            try:
                rows.append(Row(_read_safely(server), (name,)))
            except Exception:
                _logger.exception("no metrics of %r", server)
        return families(rows)

    def describe(self) -> Iterator[Any]:
        """Make the families without numbers: registering must not wait for a loop."""
        return families([])


def _read_safely(server: Server) -> Reading:
    """Take a reading in the thread of the server's loop."""
    if asyncio._get_running_loop() is server.loop or server.closed:
        return server.reading()
    result: concurrent.futures.Future[Reading] = concurrent.futures.Future()

    def fetch() -> None:
        try:
            result.set_result(server.reading())
        except Exception as exc:
            result.set_exception(exc)

    server.loop.call_soon_threadsafe(fetch)
    return result.result(_PATIENCE)


def require_prometheus() -> None:
    """Raise ModuleNotFoundError with advice if prometheus-client is missing."""
    try:
        import prometheus_client  # noqa: F401, PLC0415 - an optional extra
    except ModuleNotFoundError as exc:
        advice = "metrics need prometheus-client: pip install prometheus-client, or '.[metrics]' in the clone"
        raise ModuleNotFoundError(advice, name=exc.name) from exc


def families(rows: Iterable[Row], by: Sequence[str] = ("server",)) -> Iterator[Any]:
    """Make prometheus-client's metric families.

    Args:
        rows: readings; one without labels is the program's.
        by: the names of the rows' labels.
    """
    from prometheus_client import core  # noqa: PLC0415 - an optional extra

    kinds: dict[str, Any] = {
        "counter": core.CounterMetricFamily,
        "gauge": core.GaugeMetricFamily,
        "histogram": core.HistogramMetricFamily,
    }
    rows = list(rows)
    for metric in METRICS:
        names = [] if metric.of_program else [*by]
        family = kinds[metric.kind](
            f"asyncserver_{metric.name}", metric.help, labels=[*names, *([metric.label] if metric.label else [])]
        )
        for row in rows:
            if bool(row.labels) == metric.of_program:
                continue
            if metric.kind == "histogram":
                _add_histogram(family, row)
            else:
                _add_numbers(family, metric, row)
        yield family


def _add_numbers(family: Any, metric: Metric, row: Row) -> None:
    for value, key in metric.keys.items():
        if key in row.reading:
            family.add_metric([*row.labels, *([value] if metric.label else [])], row.reading[key])


def _add_histogram(family: Any, row: Row) -> None:
    if "duration_sum" in row.reading:
        bounds = [*map(str, Durations.bounds), "+Inf"]
        counts = itertools.accumulate(row.reading[f"duration_{number}"] for number in range(len(bounds)))
        family.add_metric([*row.labels], [*zip(bounds, counts, strict=True)], row.reading["duration_sum"])


def summed(rows: Iterable[Row]) -> list[Row]:
    """Add up the readings that have the same first label."""
    totals: dict[tuple[str, ...], Reading] = {}
    for row in rows:
        add([totals.setdefault(row.labels[:1], {})], [row.reading])
    return [Row(reading, labels) for labels, reading in totals.items()]


def exposition(collected: Iterable[Any], accept: str) -> tuple[str, bytes]:
    """Encode metric families in a format that a scraper accepts; returns content type and text."""
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - an optional extra

    try:
        encode, content_type = choose_encoder(accept)
    except Exception:  # a version that is not a number: the peer's fault, not worth a log line
        encode, content_type = choose_encoder("")
    registry: Any = SimpleNamespace(collect=lambda: collected)  # all that the encoder asks for
    return content_type, encode(registry)


def other_families() -> Iterator[Any]:
    """Metrics registered by the program and the client library, up to a collector that raises."""
    from prometheus_client import REGISTRY  # noqa: PLC0415 - an optional extra

    try:
        for family in REGISTRY.collect():
            if not family.name.startswith("asyncserver_"):  # the program's own ServerCollector
                yield family
    except Exception:
        _logger.exception("a collector of the program has failed: metrics after it are missing")
