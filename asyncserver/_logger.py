"""The package's logger. An error of a log handler or filter never reaches the code that logs."""

from __future__ import annotations

import contextlib
import logging
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class ContainedLogger(_Adapter):
    """Logs. An error in doing so is printed, as `logging` itself does it, and goes no further."""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log, if the log's handlers can; never raises."""
        kwargs.setdefault("stacklevel", 2)  # the record has our caller's line
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception:
            if logging.raiseExceptions:
                with contextlib.suppress(Exception):  # standard error may be closed, or nothing
                    traceback.print_exc()

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Leave the message, and its `extra`, as they are."""
        return msg, kwargs


class Seldom:
    """Chooses the level for records of something that strangers can cause as often as they like.

    Args:
        clock: returns the time in seconds.
    """

    # Seconds between two warnings of a kind.
    _EVERY = 60.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}

    def level(self, kind: str) -> int:
        """WARNING for the first of its kind in a minute, DEBUG for the others."""
        now = self._clock()
        if now - self._told.get(kind, -self._EVERY) < self._EVERY:
            return logging.DEBUG
        self._told[kind] = now
        return logging.WARNING


logger = ContainedLogger(logging.getLogger("asyncserver"))
