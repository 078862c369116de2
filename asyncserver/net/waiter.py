"""Waiter: stands in for a Future, and resumes the waiting task without a trip through the loop.

A task can await anything that yields an object with `_asyncio_future_blocking`, `get_loop`,
`add_done_callback`, `result` and `cancel` (asyncio/tasks.py, Task.__step, and `_asynciomodule.c`).
A Future calls its callbacks through `loop.call_soon`. A Waiter calls the task's wake-up at once, in
the task's own context: so a coroutine costs about as much as a protocol callback.

The rules that keep this correct:

* `wake()` is for I/O callbacks of the loop only: no task is current there, and no task's context is
  entered (`add_reader` runs its callback in a copy of the context in which it was called).
  Everything else calls `wake_soon()`.
* At most one task waits at a time. A waiter is used again, and keeps nothing from wait to wait.
* After `cancel()` the task's wake-up is scheduled and nothing else can wake it. Bytes that arrive
  before it runs must be found by the next receive: a Stream leaves them in the kernel.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, NoReturn

import anyio

from ..speedups.extension import accelerate

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextvars import Context

_no_result: Callable[[], object] = bool  # a builtin that returns at once, without arguments


def woken(_: object) -> None:
    """State of a waiter's `wakeup`: its task is about to run, and nothing else can wake it.

    Called all the same, it does nothing: a look for it at each wake-up would cost each message.
    """


def busy(action: str) -> anyio.BusyResourceError:
    """Make the error of a second task that is "sending to" or "receiving from" a stream."""
    error = anyio.BusyResourceError(action)
    others = ", or post() what needs no waiting" if action == "sending to" else ""
    error.args = (f"{error}: leave that to one task, or take turns with an asyncio.Lock{others}",)
    return error


@accelerate
class WaiterFields:
    """What a waiter keeps."""

    __slots__ = (
        "_action",
        "_asyncio_future_blocking",
        "context",
        "get_loop",
        "result",
        "wakeup",
    )


class Waiter(WaiterFields):
    """Where at most one task at a time waits for an event, again and again.

    Args:
        get_loop: the task calls it at every wait, so it should be a builtin, such as a weak
            reference to the loop: a Python function costs twice as much.
        action: names the wait in the error that a second task gets: "receiving from".
    """

    __slots__ = ()

    def __init__(self, get_loop: Callable[[], asyncio.AbstractEventLoop | None], action: str) -> None:
        self._action = action
        self._asyncio_future_blocking = False
        # The waiting task's, until that runs. It takes what is done: us, or a future.
        self.wakeup: Callable[[Any], object] | None = None
        self.get_loop: Callable[[], asyncio.AbstractEventLoop | None] = get_loop
        self.result: Callable[[], object] = _no_result  # called at every wake-up, so a builtin, too

    @property
    def busy(self) -> bool:
        """Whether a task waits here, or has been woken and is about to run."""
        return self.wakeup is not None

    def __await__(self) -> Generator[Waiter, None, None]:
        """Wait until woken; raises BusyResourceError if another task waits here already."""
        if self.wakeup is not None:
            raise busy(self._action)
        self._asyncio_future_blocking = True
        try:
            yield self
        finally:
            # Also when the coroutine was closed or got an exception: a dead task must not be woken.
            self.wakeup = None

    def wake(self) -> bool:
        """Resume the waiting task now; false if none waits. For the loop's I/O callbacks only."""
        wakeup = self.wakeup
        if wakeup is None or wakeup is woken:
            return False
        self.context.run(wakeup, self)
        del wakeup  # it refers to the task, whose error may refer to this frame: a cycle
        return True

    def wake_soon(self) -> None:
        """Resume the waiting task, if any, in the loop's next round; from the loop's thread."""
        if self.wakeup is not None and self.wakeup is not woken:
            loop = self.get_loop()
            assert loop is not None  # it runs
            loop.call_soon(self.wakeup, self, context=self.context)
            self.wakeup = woken

    # What asyncio.Task calls of a future

    def add_done_callback(self, callback: Callable[[Waiter], object], *, context: Context) -> None:
        """Keep the task's wake-up; called by the task."""
        self.wakeup = callback
        self.context: Context = context

    def cancel(self, msg: object = None) -> bool:
        """Called by `task.cancel()`; false if the task is being woken already, and remembers it."""
        if self.wakeup is None or self.wakeup is woken:
            return False
        self.result = functools.partial(self._raise_cancelled, msg)
        self.wake_soon()
        return True

    def _raise_cancelled(self, message: object) -> NoReturn:
        """State of `result`: cancelled, until the task's wake-up has called it once."""
        self.result = _no_result
        raise asyncio.CancelledError(*(() if message is None else (message,)))
