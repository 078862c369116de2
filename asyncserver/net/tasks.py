"""How handlers start (start_task, name_task), and how one task waits for others (outlast, Progress)."""

from __future__ import annotations

import asyncio
import math
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context

_Result = TypeVar("_Result")


def _create_task(
    coroutine: Coroutine[Any, Any, _Result], loop: asyncio.AbstractEventLoop, context: Context, name: str | None
) -> asyncio.Task[_Result]:
    task = context.copy().run(loop.create_task, coroutine)  # a copy: it may be entered just now
    if name is not None:
        name_task(task, name)
    return task


def name_task(task: asyncio.Task[Any] | None, name: str) -> None:
    """Name a task that is there: not all factories take a name, nor make tasks that have one."""
    if isinstance(task, asyncio.Task):
        task.set_name(name)


if sys.version_info >= (3, 12):

    def start_task(
        coroutine: Coroutine[Any, Any, _Result],
        loop: asyncio.AbstractEventLoop,
        context: Context,
        name: str | None = None,
    ) -> asyncio.Task[_Result]:
        """Start a task, in a copy of a context, and run it to its first wait.

        An answer that needs no wait costs no trip through the loop. By hand, because asyncio's eager_task_factory
        breaks on uvloop 0.23 with CPython 3.13.0; and a factory that the program has set is used.
        """
        if loop.get_task_factory() is None:
            return asyncio.Task(coroutine, loop=loop, name=name, eager_start=True, context=context.copy())
        return _create_task(coroutine, loop, context, name)

else:

    def start_task(
        coroutine: Coroutine[Any, Any, _Result],
        loop: asyncio.AbstractEventLoop,
        context: Context,
        name: str | None = None,
    ) -> asyncio.Task[_Result]:
        """Start a task in a copy of a context."""
        return _create_task(coroutine, loop, context, name)


async def outlast(task: asyncio.Task[_Result], hurry: Callable[[], object]) -> _Result:
    """Wait for a task of ours to its end; being cancelled hurries it, and is passed on afterwards."""
    cancelled: asyncio.CancelledError | None = None
    # An anyio scope cancels again in every round of the loop. One that was cancelled before has got us here, and
    # says nothing about how long the task may take; one that is cancelled meanwhile is heard once.
    shield = anyio.current_effective_deadline() == -math.inf
    while not task.done():
        try:
            with anyio.CancelScope(shield=shield):
                await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled, shield = exc, True
            hurry()
    try:
        if cancelled is not None:
            raise cancelled
        return task.result()
    finally:
        del cancelled  # its traceback holds this frame: a cycle


class Progress:
    """Lets one task wait for a condition that changes now and then."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed: asyncio.Future[None] | None = None

    def tell(self) -> None:
        """Say that the condition may have changed."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def until(self, reached: Callable[[], bool], deadline: Callable[[], float]) -> None:
        """Wait for the condition, or for the deadline, which may move; that is told, too."""
        while not reached() and (seconds := deadline() - self._loop.time()) > 0:
            self._changed = self._loop.create_future()
            await asyncio.wait([self._changed], timeout=seconds)
        self._changed = None
