"""The fields of log records, and a line for each connection.

Every record of the logger "asyncserver" that is about a server has the fields of
`about()`, for formatters and filters.
"""

from __future__ import annotations

import logging
import traceback
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .._logger import ContainedLogger, logger
from ..net.addresses import format_address
from .stats import outcome_of

if TYPE_CHECKING:
    from ..connections.connection import Connection
    from .stats import DrainReport, Reading, Run

# A line for each connection that has ended: at DEBUG, or at INFO if this logger has a level.
CONNECTIONS = "asyncserver.connection"
_connections = ContainedLogger(logging.getLogger(CONNECTIONS))


class Labelled(Protocol):
    """What records are about: a Server."""

    label: str


_Connection = TypeVar("_Connection", bound="Connection")


def about(server: Labelled, source: Any = None, **more: object) -> dict[str, object]:
    """Make the `extra` of a log record.

    Args:
        server: whose address becomes `server`, as in metrics: "tcp://127.0.0.1:8080".
        source: a stream or datagram, whose peer becomes `peer`, "127.0.0.1:50123"; `bytes_received`
            and `bytes_sent` are a stream's, so far.
        more: `duration` in seconds, `outcome` as a counter of ServerStats is called.
    """
    fields: dict[str, object] = {"server": server.label, **more}
    if source is not None:
        fields["peer"] = format_address(source.peer_address)
        if hasattr(source, "bytes_received"):
            fields |= {"bytes_received": source.bytes_received, "bytes_sent": source.bytes_sent}
    return fields


def closed(label: str, report: DrainReport, duration: float, total: Reading, level: int = logging.INFO) -> None:
    """Log that a server has closed.

    Args:
        label: of the server.
        report: of its drain.
        duration: seconds that the drain took.
        total: its counters since its start: fields that begin with `total_`.
        level: of the record.
    """
    ended = {"completed": report.completed, "cancelled": report.cancelled, "aborted": report.aborted}
    logger.log(
        level,
        "closed %s: %s in %.1f s",
        label,
        ", ".join(f"{number} {how}" for how, number in ended.items()),
        duration,
        extra={"server": label, **ended, "duration": duration, **{f"total_{name}": total[name] for name in total}},
    )


# Modules whose frames say little about where a program went wrong.
_NOT_THE_PROGRAM = {"asyncserver", "anyio", "asyncio", "contextlib"}


def raised_at(exc: BaseException, unknown: str = "an unknown place") -> str:
    """The line of the program's own code where an error came from, or that this is unknown."""
    if isinstance(exc, BaseExceptionGroup):
        return raised_at(exc.exceptions[0], unknown)
    place = unknown
    for frame, line in traceback.walk_tb(exc.__traceback__):
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _NOT_THE_PROGRAM:
            place = f"{frame.f_code.co_name}, line {line} of {frame.f_code.co_filename}"
    return place


def with_lines(server: Labelled, run: Run[_Connection]) -> Run[_Connection]:
    """Add to what runs for each connection a log line at its end, if that is now asked for."""
    level = logging.INFO if _connections.logger.level else logging.DEBUG
    if not _connections.isEnabledFor(level):
        return run

    async def run_with_line(connection: _Connection) -> object:
        begun = perf_counter()
        outcome = "completed"
        try:
            return await run(connection)
        except BaseException as exc:
            outcome = outcome_of(exc)
            raise
        finally:
            duration = perf_counter() - begun
            _connections.log(
                level,
                "%s: connection %s after %.3f s, %d bytes received, %d sent",
                format_address(connection.peer_address),
                outcome.replace("_", " "),
                duration,
                connection.bytes_received,
                connection.bytes_sent,
                extra=about(server, connection, outcome=outcome, duration=duration),
            )

    return run_with_line
