"""How log records look: JSONFormatter, and what the command line sets up."""

from __future__ import annotations

import logging
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..servers.logs import CONNECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime"}  # what every record has


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


def set_up(level: str, *, as_json: bool, connection_lines: bool) -> None:
    """Log to standard error.

    Args:
        level: what is logged at least, "info" for example.
        as_json: one JSON object in a line instead of text.
        connection_lines: a line for each connection, whatever the level.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter() if as_json else logging.Formatter(_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if connection_lines:
        logging.getLogger(CONNECTIONS).setLevel(logging.INFO)
