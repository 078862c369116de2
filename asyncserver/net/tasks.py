"""Starting handlers (start_task, name_task), and waiting for other tasks (join, Progress)."""

from __future__ import annotations

import asyncio
import math
import re
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context

_Result = TypeVar("_Result")


def name_task(task: asyncio.Task[Any] | None, name: str) -> None:
    """Name a task that exists: not every task factory takes a name or makes an asyncio.Task."""
    if isinstance(task, asyncio.Task):
        task.set_name(name)


def _start_by_loop(
    coroutine: Coroutine[Any, Any, _Result],
    loop: asyncio.AbstractEventLoop,
    context: Context,
    name: str | None = None,
) -> asyncio.Task[_Result]:
    # A copy, since the context may be entered at this moment.
    task = context.copy().run(loop.create_task, coroutine)
    if name is not None:
        name_task(task, name)
    return task


if sys.version_info >= (3, 12):

    def start_task(
        coroutine: Coroutine[Any, Any, _Result],
        loop: asyncio.AbstractEventLoop,
        context: Context,
        name: str | None = None,
    ) -> asyncio.Task[_Result]:
        """Start a task in a copy of a context, and run it to its first wait.

        An answer that needs no wait costs no trip through the loop. A task factory of the program
        is used; asyncio's eager one is not, since it breaks on uvloop 0.23 with CPython 3.13.0.
        """
        try:
            eager = loop.get_task_factory() is None
        except NotImplementedError:  # a loop that takes none
            eager = True
        if eager:
            return asyncio.Task(coroutine, loop=loop, name=name, eager_start=True, context=context.copy())
        return _start_by_loop(coroutine, loop, context, name)

else:
    start_task = _start_by_loop


async def join(task: asyncio.Task[_Result], on_cancel: Callable[[], object]) -> _Result:
    """Wait for a task's end; when cancelled, call `on_cancel`, wait on, and raise it afterwards."""
    cancelled: asyncio.CancelledError | None = None
    # An anyio scope cancels again in every round of the loop. One that was cancelled before is the
    # reason for this call, not for haste; one that is cancelled during it calls `on_cancel` once.
    shield = anyio.current_effective_deadline() == -math.inf
    while not task.done():
        try:
            with anyio.CancelScope(shield=shield):
                await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled, shield = exc, True
            on_cancel()
    try:
        if cancelled is not None:
            raise cancelled
        return task.result()
    finally:
        del cancelled  # its traceback refers to this frame: a cycle


def require_loop(loop: asyncio.AbstractEventLoop, call: str, *, coroutine: bool = False) -> None:
    """Raise RuntimeError where a loop runs in another thread, or beside the one that runs here.

    Args:
        loop: the loop that a call belongs to.
        call: what a program hands over, such as "server.pause" or "server.close()".
        coroutine: whether it is one.
    """
    if asyncio._get_running_loop() is not loop and loop.is_running():
        way = f"asyncio.run_coroutine_threadsafe({call}, server.loop).result()"
        way = way if coroutine else f"server.loop.call_soon_threadsafe({call})"
        name = re.match(r"[\w.]+", call)
        assert name is not None
        raise RuntimeError(f"{name[0]}() belongs to the thread of the server's loop: write {way} here")


def give_up(task: asyncio.Task[Any]) -> None:
    """Stop counting a task as one that the loop has, so that the end of the program does not wait.

    `asyncio.run()` cancels all tasks and waits until they have ended; one that ignores that would
    keep it for ever. `_unregister_task` is asyncio's own for this: CPython's documentation,
    "Extending asyncio", task lifetime support. The task still runs for as long as the loop does.
    """
    asyncio._unregister_task(task)
    if isinstance(task, asyncio.Task):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # we have logged it


class Progress:
    """Lets one task wait until a condition holds."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed: asyncio.Future[None] | None = None

    def notify(self) -> None:
        """Check the condition again: it may have changed."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def until(self, reached: Callable[[], bool], deadline: Callable[[], float]) -> None:
        """Wait for the condition or the deadline. When the deadline moves, call `notify()`."""
        while not reached() and (seconds := deadline() - self._loop.time()) > 0:
            self._changed = self._loop.create_future()
            await asyncio.wait([self._changed], timeout=seconds)
        self._changed = None
