"""The format of log records: JSONFormatter, and the logging of the command line."""

from __future__ import annotations

import logging
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..reports.logs import CONNECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["JSONFormatter"]

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime"}  # attributes of every record


class JSONFormatter(logging.Formatter):
    """Formats each record as one line of JSON, for any handler of `logging`; what --log-json uses.

    It has time (UTC, first), level, logger, process, message, exception and stack if there are any,
    and the record's fields (`extra`). It never raises: the text of a value that cannot be written
    is the type of its error.

    Example::

        handler = logging.StreamHandler()
        handler.setFormatter(asyncserver.JSONFormatter())
        logging.basicConfig(level="INFO", handlers=[handler])
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
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
        for name, value in vars(record).items():
            if name not in _STANDARD:
                fields.setdefault(str(name), value)
        import json  # noqa: PLC0415 - only used here

        return json.dumps({name: _plain(value) for name, value in fields.items()})


def _plain(value: object) -> object:
    """Return a value that JSON has: numbers, or text; flat, since fields are searched for."""
    if value is None or isinstance(value, bool):
        return value
    if type(value) is int and abs(value) < 1 << 63:  # readers take 64 bits
        return value
    if type(value) is float and math.isfinite(value):
        return value
    return _attempt(lambda: str(value))


def _attempt(*ways: Callable[[], str]) -> str:
    """Return the result of the first function that does not raise."""
    for way in ways:
        try:
            return way()
        except Exception as exc:
            failure = exc
    return f"(it could not be written: {type(failure).__name__})"


def set_up(level: str, *, as_json: bool, connection_lines: bool) -> None:
    """Log to standard error.

    Args:
        level: the lowest level to log, such as "info".
        as_json: log lines of JSON instead of text.
        connection_lines: log a line for each connection, whatever the level.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter() if as_json else logging.Formatter(_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if connection_lines:
        logging.getLogger(CONNECTIONS).setLevel(logging.INFO)
