"""CallExecutor: the loop's default executor; its calls do not keep a program from ending.

A thread cannot be stopped from outside. asyncio's own executor, used by `asyncio.to_thread()`, is
joined when the loop closes, for five minutes or for ever (CPython 3.11, uvloop), and again by the
interpreter at its end. Here threads are daemonic; calls that still run some time after the drain
are named in the log, and left behind.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import functools
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from .._logger import logger as _logger
from ..net.tasks import Progress

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

_Result = TypeVar("_Result")

# Seconds beyond the drain's deadline for calls to end by themselves.
GRACE = 2.0
# Calls that one line of the log names.
_NAMED = 10


class Call:
    """One call, and the future for its result."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._function = function
        self._begun = time.monotonic()

    def __str__(self) -> str:
        """Show what is called, and since when. Not the arguments, which may be secret."""
        return f"{_name(self._function)}() since {time.monotonic() - self._begun:.1f} s"

    def run(self) -> None:
        """Call, unless it has been cancelled meanwhile."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._function()
        except BaseException as exc:
            self.future.set_exception(exc)
            del self  # a cycle: the error's traceback holds this frame, which holds the future
        else:
            self.future.set_result(result)


class CallExecutor(concurrent.futures.ThreadPoolExecutor):
    """The running loop's default executor, for which asyncio takes only ThreadPoolExecutors."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # ThreadPoolExecutor's own, which asks the system also where it forbids that.
        self._limit = min(32, (os.cpu_count() or 1) + 4)
        super().__init__(self._limit)
        self._loop = loop
        self._progress = Progress(loop)
        self._deadline = 0.0
        self._changed = threading.Condition()  # guards the following
        self._waiting: deque[Call] = deque()
        self._unfinished: set[Call] = set()  # calls that wait or run, and are not left behind
        self._alive = 0
        self._idle = 0
        self._shut = False
        loop.set_default_executor(self)

    def submit(self, fn: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[_Result]:
        """Call a function in a thread.

        Raises:
            RuntimeError: it has been shut down, or no thread can be started.
        """
        call = Call(functools.partial(fn, *args, **kwargs))
        with self._changed:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if len(self._waiting) >= self._idle and self._alive < self._limit:
                self._start_thread()
            self._waiting.append(call)
            self._unfinished.add(call)
            self._changed.notify()
        return call.future

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._work, name=f"asyncio_{self._alive}", daemon=True).start()
        except RuntimeError:
            if not self._alive:
                raise
        else:
            self._alive += 1

    def _work(self) -> None:
        while (call := self._next()) is not None:
            call.run()
            with self._changed:
                self._unfinished.discard(call)
                if self._shut:
                    self._changed.notify_all()
            del call  # with its result

    def _next(self) -> Call | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._waiting or self._shut)
            self._idle -= 1
            if self._waiting:
                return self._waiting.popleft()
            self._alive -= 1
            return None

    async def finish(self) -> None:
        """Wait for the calls that run now until GRACE after the deadline; then leave them."""
        with self._changed:
            calls = set(self._unfinished)
        begun = self._loop.time()
        for call in calls:
            call.future.add_done_callback(self._tell)
        await self._progress.until(
            lambda: all(call.future.done() for call in calls), lambda: max(self._deadline, begun) + GRACE
        )
        self._leave(calls)

    def end_by(self, deadline: float) -> None:
        """Set the deadline of `finish()`, in the loop's time; it may move while that waits."""
        self._deadline = deadline
        self._progress.notify()

    def _tell(self, _: object) -> None:
        """Wake `finish()`, from the thread of a call that has ended."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self._loop.call_soon_threadsafe(self._progress.notify)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait for the others for GRACE at most, then leave them behind."""
        with self._changed:
            self._shut = True
            if cancel_futures:
                for call in self._waiting:
                    call.future.cancel()
            self._changed.notify_all()
            if not wait:
                return
            self._changed.wait_for(lambda: not self._unfinished, GRACE)
            left = set(self._unfinished)
        self._leave(left)

    def _leave(self, calls: Iterable[Call]) -> None:
        with self._changed:
            left = [call for call in calls if call in self._unfinished and not call.future.done()]
            self._unfinished.difference_update(left)
        for call in left:
            call.future.cancel()  # no effect on calls that run
        if left:
            names = ", ".join(str(call) for call in left[:_NAMED])
            more = f", and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
            _logger.warning("calls in threads are left behind, %d: %s%s", len(left), names, more)


def _name(function: Callable[..., Any]) -> str:
    """Name what `asyncio.to_thread()` and others have wrapped."""
    while isinstance(function, functools.partial):
        of_context = isinstance(getattr(function.func, "__self__", None), contextvars.Context)
        function = function.args[0] if of_context and function.args else function.func
    name = getattr(function, "__qualname__", None) or repr(function)
    return f"{module}.{name}" if (module := getattr(function, "__module__", None)) else name
