"""Waiter: what a stream waits on; a Future's stand-in that resumes its task without a trip through the loop.

A task may await anything that yields an object with `_asyncio_future_blocking`, `get_loop`, `add_done_callback`,
`result` and `cancel` (asyncio/tasks.py, Task.__step; `_asynciomodule.c` takes the same road for foreign futures). A
Future answers its callbacks through `loop.call_soon`; a Waiter calls the task's wake-up at once, in the task's own
context, which is what makes a coroutine cost about as much as a protocol callback.

The rules that keep this right:

* `wake()` is for I/O callbacks of the loop only: no task is current there and no context of a task is entered
  (`add_reader` runs its callback in a copy of the context it was called in). Everybody else calls `wake_soon()`.
* One waiter, one waiting task. It is used again and again, so state is only what lies between two waits.
* After `cancel()` the wake-up is on its way and nothing else can wake the task; what happened in between
  (bytes that arrived) must be found by whoever looks next. A Stream leaves such bytes in the kernel.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from typing import TYPE_CHECKING, NoReturn

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextvars import Context

_nothing: Callable[[], object] = bool  # called without arguments, it returns without looking at anything


class Waiter:
    """Where at most one task at a time waits for an event, again and again.

    Args:
        loop: the loop of the tasks that will wait.
        action: how the wait is called in the error that a second task gets ("receiving from").
    """

    __slots__ = (
        "_action",
        "_asyncio_future_blocking",
        "_loop",
        "busy",
        "context",
        "get_loop",
        "result",
        "wakeup",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, action: str) -> None:
        self._loop = loop
        self._action = action
        self._asyncio_future_blocking = False
        self.wakeup: Callable[[Waiter], object] | None = None
        # Asked by the task at every wait and every wake-up: builtins, because a Python function costs twice as much.
        self.get_loop: Callable[[], asyncio.AbstractEventLoop | None] = weakref.ref(loop)
        self.result: Callable[[], object] = _nothing
        self.busy: bool = False

    def __await__(self) -> Generator[Waiter, None, None]:
        """Wait until woken.

        Raises:
            anyio.BusyResourceError: another task waits here already.
            asyncio.CancelledError: the task was cancelled.
        """
        if self.busy:
            raise anyio.BusyResourceError(self._action)
        self.busy = self._asyncio_future_blocking = True
        try:
            yield self
        finally:
            # Also when the coroutine was closed or thrown into: a dead task must not be woken.
            self.wakeup = None
            self.busy = False

    def wake(self) -> bool:
        """Resume the waiting task now; false if none waits. From the loop's I/O callbacks only."""
        wakeup = self.wakeup
        if wakeup is None:
            return False
        self.wakeup = None
        self.context.run(wakeup, self)
        del wakeup  # it holds the task, whose error may come to hold this frame: a cycle
        return True

    def wake_soon(self) -> None:
        """Resume the waiting task, if there is one, in the loop's next round. From anywhere in the loop's thread."""
        if self.wakeup is not None:
            self._loop.call_soon(self.wakeup, self, context=self.context)
            self.wakeup = None

    # What asyncio.Task asks of a future.

    def add_done_callback(self, callback: Callable[[Waiter], object], *, context: Context) -> None:
        """Called by the task with its own wake-up."""
        self.wakeup = callback
        self.context: Context = context

    def cancel(self, msg: object = None) -> bool:
        """Called by `task.cancel()`; false if the wake-up is on its way already (then the task remembers)."""
        if self.wakeup is None:
            return False
        self.result = functools.partial(self._raise_cancelled, msg)
        self.wake_soon()
        return True

    def _raise_cancelled(self, message: object) -> NoReturn:
        """Be `result()` once, for the wake-up that `cancel()` has sent."""
        self.result = _nothing
        raise asyncio.CancelledError(*(() if message is None else (message,)))
