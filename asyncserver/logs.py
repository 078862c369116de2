"""What log records tell besides their text, a line for each connection, and records as JSON.

Every record of the logger "asyncserver" that is about a server has the fields of `about()`, for formatters and filters.
"""

from __future__ import annotations

import logging
import math
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from ._logger import ContainedLogger
from .addresses import shown
from .reports import outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


# A line for each connection that has ended: at DEBUG, or, once somebody has given this logger a level, at INFO.
_connections = ContainedLogger(logging.getLogger("asyncserver.connection"))

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime"}  # what every record has


class Labelled(Protocol):
    """What records are about: a Server."""

    label: str


def about(server: Labelled, source: Any = None, **more: object) -> dict[str, object]:
    """Make the `extra` of a log record.

    Args:
        server: whose address becomes `server`, as in metrics: "tcp://127.0.0.1:8080".
        source: a stream or datagram, whose peer becomes `peer`, "127.0.0.1:50123"; `bytes_received` and `bytes_sent`
            are a stream's, so far.
        more: `duration` in seconds, `outcome` as a counter of ServerStats is called.
    """
    fields: dict[str, object] = {"server": server.label, **more}
    if source is not None:
        fields["peer"] = shown(source.peer_address)
        if hasattr(source, "bytes_received"):
            fields |= {"bytes_received": source.bytes_received, "bytes_sent": source.bytes_sent}
    return fields


def with_lines(server: Labelled, run: Callable[[Any], Coroutine[Any, Any, object]]) -> Any:
    """Make what a server starts for each connection log it when it has ended, if that is asked for at this time."""
    level = logging.INFO if _connections.logger.level else logging.DEBUG
    if not _connections.isEnabledFor(level):
        return run

    async def run_and_tell(connection: Any) -> object:
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
                shown(connection.peer_address),
                outcome.replace("_", " "),
                duration,
                connection.bytes_received,
                connection.bytes_sent,
                extra=about(server, connection, outcome=outcome, duration=duration),
            )

    return run_and_tell


class JSONFormatter(logging.Formatter):
    """A JSON object in a line for each record: time (UTC), level, logger, process, message, its fields, exception.

    It never raises: of what cannot be written it tells the type.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": _attempt(record.getMessage, lambda: f"{record.msg!r} % {record.args!r}"),
        }
        exc_info = record.exc_info
        if isinstance(exc_info, tuple) and exc_info[0] is not None:
            fields["exception"] = _attempt(lambda: self.formatException(exc_info), lambda: repr(exc_info[1]))
        if record.stack_info:
            fields["stack"] = record.stack_info
        further = {str(name): value for name, value in vars(record).items() if name not in _OWN}
        import json  # noqa: PLC0415 - nobody else here needs it

        return json.dumps({name: _plain(value) for name, value in {**further, **fields}.items()})


def _plain(value: object) -> object:
    """Make of a value what JSON has: flat, since a field is something to search for."""
    if value is None or isinstance(value, bool):
        return value
    if type(value) is int and abs(value) < 1 << 63:  # others read no more than that
        return value
    if type(value) is float and math.isfinite(value):
        return value
    return _attempt(lambda: str(value))


def _attempt(*ways: Callable[[], str]) -> str:
    """Return what the first way returns that does not raise."""
    for way in ways:
        try:
            return way()
        except Exception as exc:
            failure = exc
    return f"(it could not be written: {type(failure).__name__})"


def set_up(level: str, *, as_json: bool, connections: bool) -> None:
    """Log to standard error.

    Args:
        level: what is logged at least, "info" for example.
        as_json: one JSON object in a line instead of text.
        connections: a line for each connection, whatever the level.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter() if as_json else logging.Formatter(_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if connections:
        _connections.setLevel(logging.INFO)
