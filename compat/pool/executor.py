"""ThreadPool: the pool of threads as an executor: for producers, its numbers, and its end."""

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from compat.pool.call import Call, CallFuture, fulfil
from compat.pool.crew import Crew, exiting

_P = ParamSpec("_P")
_R = TypeVar("_R")

IDLE_SECONDS = 5.0  # bridges pauses between bursts; then a stack costs more than a start (60 us)

# For its keyrefs(), a list made in one step: to iterate over a WeakSet fails when another
# thread makes a pool meanwhile.
_pools: "weakref.WeakKeyDictionary[ThreadPool, None]" = weakref.WeakKeyDictionary()


class ThreadPool(Crew, Executor):
    """An executor whose threads are started on demand, reused, and retired when idle.

    Unlike `concurrent.futures.ThreadPoolExecutor` it never queues a call while a thread may still
    be started. It runs each call in a context of its own, as a new thread does, can be daemonic
    (the interpreter's exit does not wait for running calls), and shows what it is doing. A thread
    is used again only where the call has left it as new: without values of a `threading.local`,
    trace function, signal mask, and whatever else belongs to a thread. Otherwise it ends, and may
    have to start the next one, which inherits what the kernel keeps for each thread.

    Example::

        with compat.ThreadPool(10, name="worker") as pool:
            print(pool.submit(sum, [1, 2, 3]).result())

    Args:
        max_threads: the most threads at a time; None is no bound. May be changed at any time.
        name: threads are called name-1, name-2, ...; numbers are never reused.
        daemon: whether the threads are daemonic.
        idle_seconds: how long a thread without work stays.
        reuse_threads: False for a new thread for each call. May be changed at any time.
    """

    def __init__(
        self,
        max_threads: int | None = None,
        *,
        name: str = "ThreadPool",
        daemon: bool = False,
        idle_seconds: float = IDLE_SECONDS,
        reuse_threads: bool = True,
    ) -> None:
        if max_threads is not None and max_threads < 1:
            raise ValueError(f"max_threads is {max_threads}, expected at least 1, or None for no bound")
        super().__init__(max_threads, name, daemon, idle_seconds, reuse_threads)
        _pools[self] = None

    # What producers do.

    def add(self, function: Callable[..., object], /, *args: Any) -> None:
        """Queue a call. It may stay there until the caller has called `wake()`, which it must.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self.closed:
            raise RuntimeError(f"the pool {self.name} is closed and takes no more calls")
        self._queue.append(Call(function, args))

    def wake(self) -> None:
        """Make sure that every queued call is taken as soon as there may be a thread for it.

        Raises:
            RuntimeError, MemoryError: no thread can be started and none lives; the calls are still
                queued, see `take_back`.
        """
        error = self._send_workers()
        if error is not None and self._queue and all(worker.has_ended() for worker in list(self._workers)):
            raise error

    def look(self) -> None:
        """Repair what exceptions have left behind. To be called by a timer."""
        self._reap()
        self._send_workers()

    def submit(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_R]:
        """Run a call in some thread and return its future. Do not mix with `add` in one pool.

        Raises:
            RuntimeError, MemoryError: the pool is closed, or no thread can be started and
                none lives.
        """
        future: Future[_R] = CallFuture()
        self.add(fulfil, future, fn, args, kwargs)
        try:
            self.wake()
        except (RuntimeError, MemoryError) as error:
            if future in self._refuse(error):  # with calls of producers that relied on this attempt
                raise
        return future

    def _refuse(self, error: Exception) -> list[Future[Any]]:
        """Fail the futures of calls that no thread has begun; return them."""
        futures: list[Future[Any]] = [call.args[0] for call in self.take_back()]
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        return futures

    def take_back(self) -> list[Call]:
        """Empty the queue and return the calls that no thread has begun."""
        calls = []
        with contextlib.suppress(IndexError):  # workers take from the other end at the same time
            while True:
                calls.append(self._queue.pop())
        return calls[::-1]

    # What it is doing.

    def calls(self) -> list[Call]:
        """The calls that wait or run, oldest first."""
        waiting = list(self._queue.copy())  # first: a call taken meanwhile is in both, not in none
        taken = [call for worker in list(self._workers) for call in worker.calls.copy()]
        taken.sort(key=lambda call: call.started or call.added)
        return list(dict.fromkeys(taken + waiting))

    @property
    def waiting(self) -> int:
        """How many calls no thread has begun."""
        return len(self._queue)

    @property
    def alive(self) -> int:
        """How many threads there are, idle ones included."""
        return len(self._workers)

    def __len__(self) -> int:
        """How many calls wait or run."""
        return len(self._queue) + sum(1 for worker in list(self._workers) if worker.calls)

    def room(self) -> int:
        """How many more calls `max_threads` allows, or fewer, but not 0 unless that is so."""
        limit = sys.maxsize if self.max_threads is None else self.max_threads
        # First what is cheap: at most as many run as are not idle.
        room = limit - (len(self._workers) - len(self._idle) + len(self._queue))
        return room if room > 0 else max(limit - len(self), 0)

    def has_room(self) -> bool:
        """Whether fewer calls wait or run than `max_threads`."""
        return self.room() > 0

    def __bool__(self) -> bool:
        """A pool is a pool, also without calls."""
        return True

    # How it ends.

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; those that are queued still run, and the threads end after the last.

        If no thread lives and none can be started, the futures of queued calls fail with that
        error; what was added is left to `take_back`.

        Args:
            wait: return only then.
            cancel_futures: cancel what was submitted (not added) and has not begun.

        Raises:
            RuntimeError: called with `wait` from one of the pool's own threads.
        """
        self.closed = True
        if cancel_futures:
            for call in self.take_back():
                call.args[0].cancel()
        self._dismiss_idle()
        error = self._send_workers()
        if error is not None and not self._workers and any(call.function is fulfil for call in self._queue.copy()):
            self._refuse(error)
        if wait:
            self.threads.join()

    def _dismiss_idle(self) -> None:
        with contextlib.suppress(KeyError):
            while True:
                self._wake_idle()  # it finds nothing to do, and ends


def _all_pools() -> "list[ThreadPool]":
    return [pool for reference in _pools.keyrefs() if (pool := reference()) is not None]


def _send_idle_threads_home() -> None:
    exiting.set()
    for pool in _all_pools():
        if not pool.daemon:
            pool._dismiss_idle()


def _forget_threads_after_fork() -> None:
    for pool in _all_pools():
        pool._reset()


# The interpreter joins non-daemon threads before it runs atexit functions; concurrent.futures
# relies on the same hook. Where it is missing, idle threads end by themselves a few seconds later.
getattr(threading, "_register_atexit", lambda _: None)(_send_idle_threads_home)
os.register_at_fork(after_in_child=_forget_threads_after_fork)
