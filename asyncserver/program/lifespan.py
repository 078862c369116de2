"""Lifespan: what a program opens before it serves, and closes when the last handler has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from .._logger import logger as _logger
from ..adapters.checks import check_lifespan, name_of, takes_one
from ..reports.logs import raised_at

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from ..servers.server import Server
    from ..serving import Serving

#: Called once in each process that serves; may take the Servers.
Lifespan: TypeAlias = (
    Callable[[], AbstractAsyncContextManager[object]]
    | Callable[[tuple["Server", ...]], AbstractAsyncContextManager[object]]
)
#: What a process serves, and the lifespan around it.
Loaded: TypeAlias = tuple["Sequence[Serving]", "Life"]


class Life:
    """Enters and leaves a lifespan.

        async with life:                    leaves, if it has been entered; all in one task
            life.hold(servings)
            ... they are bound, and take nothing
            await life.enter(servers)
            life.begin(servers)

    `failure` is what it has raised, which is in the log.
    """

    def __init__(self, lifespan: Lifespan | None = None) -> None:
        self.failure: BaseException | None = None
        self.entered: bool = False
        self._function: Any = lifespan
        self._manager: AbstractAsyncContextManager[object] | None = None
        self._leaving: asyncio.Task[Any] | None = None

    def check(self) -> None:
        """Raise TypeError for what cannot be a lifespan."""
        if self._function is not None:
            check_lifespan(self._function)

    def hold(self, servings: Sequence[Serving]) -> None:
        """Let servers that are to start take nothing before `begin()`."""
        for serving in servings if self._function is not None else ():
            serving.hold()

    async def enter(self, servers: Sequence[Server]) -> None:
        """Enter it, if there is one. Raises what it raises; an error is logged."""
        if self._function is None:
            return
        before = asyncio.all_tasks()
        try:
            self._manager = self._made(tuple(servers))
            await self._manager.__aenter__()
        except Exception as exc:
            self._fail(exc, "could not be entered, so nothing is served")
            raise
        self.entered = True
        # A task group cancels the program when a task of it fails, and says why when it is left,
        # which is after the drain.
        program = asyncio.current_task()
        for task in asyncio.all_tasks() - before:
            task.add_done_callback(partial(self._on_task_done, program))

    def begin(self, servers: Sequence[Server]) -> None:
        """Let the servers take work, with the context variables that are set now."""
        for server in servers if self._function is not None else ():
            server._begin()

    def interrupt(self) -> bool:
        """Cancel what leaves it; returns whether anything does."""
        if self._leaving is None:
            return False
        _logger.warning("lifespan %s is still being left: cancelled", name_of(self._function))
        self._leaving.cancel()
        return True

    async def __aenter__(self) -> Self:
        """Nothing yet: see `enter()`."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Leave it, if it has been entered. Raises, and logs, what it raises."""
        if not self.entered or self._manager is None:
            return None
        self._leaving = asyncio.current_task()
        try:
            return await self._manager.__aexit__(kind, exc, traceback)
        except Exception as error:
            if error is not exc:
                self._fail(error, "failed as it was left")
            raise
        finally:
            self._leaving = None

    def _made(self, servers: tuple[Server, ...]) -> AbstractAsyncContextManager[object]:
        made = self._function(servers) if takes_one(self._function) else self._function()
        if hasattr(type(made), "__aenter__") and hasattr(type(made), "__aexit__"):
            manager: AbstractAsyncContextManager[object] = made
            return manager
        if asyncio.iscoroutine(made):
            made.close()
        advice = "put @contextlib.asynccontextmanager above an `async def` function with one `yield`"
        raise TypeError(f"it must return an async context manager, and returned {made!r}: {advice}")

    def _on_task_done(self, program: asyncio.Task[Any] | None, task: asyncio.Task[Any]) -> None:
        """Say at once what a task raised that was started as it was entered, if that is its end."""
        # Called behind the task group's own callback. Without a group nothing is cancelled, and
        # what a task raised is left to who waits for it, or to asyncio's word that nobody does.
        if program is None or not program.cancelling() or self._leaving is not None or task.cancelled():
            return
        if (exc := task.exception()) is not None:
            self._log(exc, f"has lost its task {task.get_name()}")

    def _fail(self, exc: Exception, how: str) -> None:
        self.failure = exc
        self._log(exc, how)

    def _log(self, exc: BaseException, how: str) -> None:
        place = raised_at(exc, "")
        _logger.error(
            "lifespan %s %s: %s: %s%s",
            name_of(self._function),
            how,
            type(exc).__name__,
            exc,
            f" (raised in {place})" if place else "",  # else it is our own word
            exc_info=exc if _logger.isEnabledFor(logging.DEBUG) else None,
        )
