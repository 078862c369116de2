"""Call: one call of a pool, with its age and its stack."""

import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context, copy_context
from time import monotonic
from typing import Any, TypeVar

# The context that Thread.start() gives a new thread: an empty one; or from Python 3.14 on, a
# copy of its starter's: with free threading, or with `-X thread_inherit_context`.
_new_context: Callable[[], Context] = copy_context if getattr(sys.flags, "thread_inherit_context", 0) else Context

_R = TypeVar("_R")
_RLock: Any = type(threading.RLock())


class _Condition(_RLock):  # type: ignore[misc] # CPython's own has no name
    """A condition that is its lock: `with` takes that in one step.

    An exception within the method of `threading.Condition` would leave the future locked for ever,
    and stop the event loop that asks for its state.
    """

    _waiters: threading.Condition | None = None

    def wait(self, timeout: float | None = None) -> bool:
        if self._waiters is None:
            self._waiters = threading.Condition(self)
        return self._waiters.wait(timeout)

    def notify_all(self) -> None:
        if self._waiters is not None:
            self._waiters.notify_all()


class CallFuture(Future[_R]):
    """The future of a call, which an exception from outside does not leave locked."""

    def __init__(self) -> None:
        super().__init__()
        self._condition: Any = _Condition()


class Call:
    """One call that waits or runs, as `ThreadPool.calls()` shows it."""

    __slots__ = ("added", "args", "context", "function", "started", "worker")

    def __init__(self, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.function: Callable[..., object] = function
        self.args: tuple[Any, ...] = args
        self.context: Context = _new_context()
        self.added: float = monotonic()
        self.started: float = 0.0
        self.worker: threading.Thread | None = None

    def age(self) -> float:
        """Seconds since a thread took the call, 0 while it waits."""
        return monotonic() - self.started if self.started else 0.0

    def stack(self) -> str:
        """Return where the call is now, as text; "" when it is not running.

        Also "" on Python 3.13 without the GIL: to look at the frames of a running thread is a
        use-after-free there (python/cpython gh-152355). From 3.14 on they are locked.
        """
        if sys.version_info < (3, 14) and not getattr(sys, "_is_gil_enabled", lambda: True)():
            return ""
        frame = sys._current_frames().get(self.worker.ident or 0) if self.worker else None
        return "".join(traceback.format_stack(frame)) if frame else ""

    def break_off(self) -> None:
        """An exception from outside has ended the call: let its future fail, unless it is done."""
        if self.function is fulfil and not self.args[0].done():
            self.args[0].set_exception(RuntimeError("an exception from outside has interrupted the call"))


def fulfil(future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run a submitted call, and set the result in its future."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args, **kwargs)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
