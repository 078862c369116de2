"""ErrorCalls: calls the program's `on_error` for each error of a handler; it may be async."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any

from .._logger import logger as _logger
from ..net.tasks import start_task

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class ErrorCalls:
    """Calls `on_error`, if there is one; `changed()` is called when an async call has ended.

    Attributes:
        context: copied for each async call.
    """

    def __init__(
        self,
        function: Callable[[BaseException, Any], object] | None,
        loop: asyncio.AbstractEventLoop,
        changed: Callable[[], object],
    ) -> None:
        self.running: set[asyncio.Task[object]] = set()  # async calls
        self._function = function
        self._loop = loop
        self._changed = changed
        self.context: contextvars.Context = contextvars.copy_context()

    def call(self, exc: BaseException, source: Any, extra: dict[str, Any]) -> None:
        """Report what a handler of `source` raised; `extra` is for the log, if `on_error` fails."""
        if self._function is None:
            return
        try:
            result = self._function(exc, source)
        except (Exception, asyncio.CancelledError):  # the latter comes from a future it looked at
            _logger.exception("on_error failed", extra=extra)
            return
        if asyncio.iscoroutine(result):
            task = start_task(self._wait(result, extra), self._loop, self.context, "on_error")
            if not task.done():
                self.running.add(task)
                task.add_done_callback(self._ended)

    async def _wait(self, call: Coroutine[Any, Any, object], extra: dict[str, Any]) -> None:
        try:
            await call
        except (Exception, asyncio.CancelledError):
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # cancelled at the end of the drain
            _logger.exception("on_error failed", extra=extra)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self.running.discard(task)
        self._changed()
