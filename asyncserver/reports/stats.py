"""What a server counts: ServerStats and Durations at any time, DrainReport when it has closed.

All numbers about one server, in one flat dict, are a Reading. Workers send readings to the
supervisor, which adds them up name by name.
"""

from __future__ import annotations

import asyncio
import socket
from bisect import bisect_left
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio

from .._logger import logger as _logger
from ..exceptions import IdleTimeout, InjectionError, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

__all__ = ["DrainReport", "Durations", "ServerStats"]

Reading: TypeAlias = dict[str, float]

_Source = TypeVar("_Source")
# What is run for each source, such as a connection: its handler, and layers around it.
Run: TypeAlias = "Callable[[_Source], Coroutine[Any, Any, object]]"

# What servers of connections and servers of datagrams both count; of the rest each has its own.
_OF_ALL = frozenset(("active", "completed", "failed", "cancelled", "timed_out"))

# What the end of its connection raises in a handler; uncaught it is no error of the handler's.
_ENDED = (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError)
# What a handler raises whose peer sends something wrong: too long a line, bytes behind STARTTLS.
_MISBEHAVED = (anyio.DelimiterNotFound, asyncio.LimitOverrunError, InjectionError)
# Why a handler raised, the worst first, and how that is counted.
_OUTCOMES = {
    "failed": "failed",
    "timed_out": "timed_out",
    "idle": "timed_out",
    "misbehaved": "completed",
    "ended": "completed",
}


@dataclass(frozen=True, slots=True)
class DrainReport:
    """How the handlers ended that ran, or were still delivering, when `close()` was called.

    Example::

        report = await server.close(drain_timeout=5)
        print(report.completed, report.cancelled, report.aborted)

    Attributes:
        completed: handlers that ended by themselves, and whose peers have got what they sent.
        cancelled: handlers that ended because they were cancelled at the deadline.
        aborted: handlers that had not ended a second after that, whose connections were reset; and
            those whose peers had not taken all that was sent by the deadline, or were gone before.
    """

    completed: int = 0
    cancelled: int = 0
    aborted: int = 0


@dataclass(frozen=True, slots=True)
class ServerStats:
    """Counters since the server started.

    Connections: `accepted = entering + active + refused + completed + failed + cancelled +
    timed_out`. Datagrams: what reached the host = `datagrams_received + datagrams_dropped +
    refused` (and what the kernel still holds), and `datagrams_received = active + completed +
    failed + cancelled`, `completed = datagrams_answered + datagrams_silent`.

    Example::

        stats = server.stats()
        print(stats.active, "of", stats.accepted, "connections are open")

    Attributes:
        accepted: connections taken from the kernel's queue.
        entering: connections whose PROXY header or TLS handshake is not complete: not yet
            in `Server.connections`.
        active: connections or datagrams whose handlers run.
        refused: connections closed before a handler saw them: over the limit per host, failed in
            the handshake, or without a valid PROXY header; datagrams without such a header.
        proxy_untrusted: of the refused, those that came from outside `trusted_proxies`.
        proxy_invalid: of the refused, those that ended or broke before their PROXY
            header, or sent something else.
        proxy_timed_out: of the refused, those whose PROXY header did not come in time.
        completed: handlers that ended without an error of their own, also because the
            peer broke the connection.
        failed: handlers that raised.
        cancelled: handlers that ended because they were cancelled.
        timed_out: handlers that let `IdleTimeout`, or the TimeoutError of a deadline of
            their own, end them.
        misbehaved: of the completed, those that ended because the peer sent what it should not: a
            line that is too long, plain bytes behind its request to start TLS.
        undelivered: of the connections that have ended, those whose peer had not taken all that was
            sent: it read nothing for too long, was gone, or the drain was over.
        slow_consumers: connections that were aborted because more than `max_unsent` bytes, given to
            `post()` or `broadcast()`, waited for their peers.
        accept_errors: how often accept(2) failed.
        bytes_received: payload bytes received over connections.
        bytes_sent: payload bytes sent over connections.
        datagrams_received: datagrams given to a handler.
        datagrams_sent: datagrams sent, by handlers and by `sendto()`.
        datagrams_answered: datagrams whose handler sent at least one.
        datagrams_silent: datagrams whose handler ended without sending one.
        datagrams_dropped: datagrams that no handler saw, dropped by the kernel (its buffer was
            full) or by us (on an abrupt close).
        vanished: connections broken since the peer's host answered nothing for `keepalive`.
    """

    accepted: int = 0
    active: int = 0
    refused: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = 0
    accept_errors: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    proxy_untrusted: int = 0
    proxy_invalid: int = 0
    proxy_timed_out: int = 0
    datagrams_received: int = 0
    datagrams_sent: int = 0
    datagrams_answered: int = 0
    datagrams_silent: int = 0
    datagrams_dropped: int = 0
    entering: int = 0
    misbehaved: int = 0
    undelivered: int = 0
    slow_consumers: int = 0
    vanished: int = 0


def outcome_of(exc: BaseException | None) -> str:
    """Which counter of ServerStats a handler's end belongs to, by what it raised."""
    if exc is None:
        return "completed"
    if isinstance(exc, asyncio.CancelledError):
        return "cancelled"
    if isinstance(exc, Refused):
        return "refused"
    return _OUTCOMES[_cause_of(exc)]


def fault_of_peer(exc: BaseException) -> str:
    """What a peer did that made a handler raise: "misbehaved", "timed_out" (too slow), or "".

    "" also for a peer that only left, or was ended by the server's own idle timeout.
    """
    cause = _cause_of(exc)
    return cause if cause in {"misbehaved", "timed_out"} else ""


def _cause_of(exc: BaseException) -> str:
    if isinstance(exc, BaseExceptionGroup):  # of a task group in the handler
        causes = {_cause_of(one) for one in exc.exceptions}
        return next(one for one in _OUTCOMES if one in causes)
    if isinstance(exc, _ENDED):
        return "ended"
    if isinstance(exc, IdleTimeout):
        return "idle"
    # The second is what StreamReader.readline() raises.
    if isinstance(exc, _MISBEHAVED) or (
        type(exc) is ValueError and isinstance(exc.__context__, asyncio.LimitOverrunError)
    ):
        return "misbehaved"
    # asyncio.timeout(), wait_for() and fail_after() raise it bare; sockets and libraries say more.
    return "timed_out" if type(exc) is TimeoutError and not exc.args else "failed"


class Durations:
    """How long handlers took, as a histogram.

    It covers what has ended: of connections the time from their acceptance, with the TLS handshake
    and the PROXY header, to the end of the handler. Refused connections are left out, and so are
    datagrams of protocols (`from_protocol`), which have no handler that could last.

    Example::

        if server.durations is not None:  # somebody asks for metrics
            print(dict(zip(server.durations.bounds, server.durations.counts)))

    Attributes:
        bounds: the buckets' upper bounds, in seconds; one more bucket holds what took longer.
        counts: handlers in each bucket.
        total: seconds of all of them together.
    """

    # From an answer that never waits to a connection that lasts for hours, about three to a decade.
    bounds: tuple[float, ...] = (
        *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
        *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0),
    )

    def __init__(self) -> None:
        self.counts: list[int] = [0] * (len(self.bounds) + 1)
        self.total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count a handler that took so long."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class Account:
    """What one server has counted: connections, or with sockets of kind SOCK_DGRAM datagrams."""

    def __init__(self, kind: int) -> None:
        self.durations: Durations | None = None
        self._count = dict.fromkeys(ServerStats.__slots__, 0)
        self._kind = kind
        self._pool_stats: Callable[[], Mapping[str, int]] | None = None
        self._drained: DrainReport | None = None

    def stats(self) -> ServerStats:
        """Count what has happened so far."""
        return ServerStats(**{**self._count, **self._measured()})

    def _measured(self) -> dict[str, int]:
        """Counters that are read from elsewhere."""
        return {}

    def _counters(self) -> Reading:
        """Those of `stats()` that a server of its kind has."""
        stats, datagrams = self.stats(), self._kind == socket.SOCK_DGRAM
        return {
            name: getattr(stats, name)
            for name in ServerStats.__slots__
            if name in _OF_ALL or name.startswith("datagrams_") == datagrams
        }

    def reading(self) -> Reading:
        """Return all of it; without a pool's numbers if `pool_stats()` raises, which is logged."""
        reading = self._counters()
        if self.durations is not None:
            reading |= {f"duration_{number}": count for number, count in enumerate(self.durations.counts)}
            reading["duration_sum"] = self.durations.total
        if self._drained is not None:
            reading |= {f"drain_{name}": getattr(self._drained, name) for name in DrainReport.__slots__}
        if self._pool_stats is not None:
            try:
                reading |= {f"pool_{name}": int(value) for name, value in self._pool_stats().items()}
            except Exception:
                _logger.exception("%r cannot tell about its threads", self)
        return reading


def timed(run: Run[_Source], observe: Callable[[float], object]) -> Run[_Source]:
    """Measure what runs for each source: `observe()` gets its seconds, unless it is refused."""

    async def run_timed(source: _Source) -> object:
        begun = perf_counter()
        try:
            result = await run(source)
        except Refused:
            raise
        except BaseException:
            observe(perf_counter() - begun)
            raise
        observe(perf_counter() - begun)
        return result

    return run_timed


def retired(reading: Reading, *, drain: bool = False) -> Reading:
    """What to keep of the reading of a process that has ended: counters, not its last state.

    Args:
        reading: its last one.
        drain: whether to keep how its drain went, too.
    """
    state = ("pool_",) if drain else ("pool_", "drain_")
    return {
        name: value
        for name, value in reading.items()
        if name not in {"active", "entering"} and not name.startswith(state)
    }


def split_drain(reading: Reading) -> tuple[DrainReport, Reading]:
    """How the drain went, and the other numbers of a reading."""
    report = DrainReport(*(int(reading.get(f"drain_{name}", 0)) for name in DrainReport.__slots__))
    return report, {name: value for name, value in reading.items() if not name.startswith("drain_")}


def add(totals: list[Reading], readings: Iterable[Reading]) -> None:
    """Add readings, one for each server, to others."""
    for total, reading in zip(totals, readings, strict=False):
        for name, value in reading.items():
            total[name] = total.get(name, 0) + value


def stats_of(reading: Reading) -> ServerStats:
    """The ServerStats in a reading."""
    return ServerStats(**{name: int(reading.get(name, 0)) for name in ServerStats.__slots__})
