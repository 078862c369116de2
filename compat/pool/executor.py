"""A pool of threads in which no call ever waits for another call to end, unless a bound says so.

Theory of operation. Calls wait in one shared deque. One *token*, a lock that any thread may put down again,
belongs to whoever has to see to it that they are taken:

    a non-empty deque  =>  some awake thread holds the token, or a producer is between add() and wake(),
                           or every thread that may exist is at work and takes the next call when it ends

1. A producer adds calls (`add`), as many as it has at hand, and then sees to the token once (`wake`): if it
   is free, the producer takes it and hands it over, to an idle worker or to a new one.
2. A worker that is handed the token takes one call and, *before* it runs that call, hands the token on if the
   deque is not empty, or puts it down if it is. So handlers that wait for one another always meet.
3. A worker that has finished a call takes the next one without asking for the token: its holder is awake and
   will see what is left. So quick calls drain a whole batch while the next worker is still waking up.
4. Whoever puts the token down looks at the deque once more, because what was added in between found the token
   taken. A worker that lies down shows itself as idle first and looks at the deque afterwards, for the same
   reason.
5. A token that cannot be handed over (the bound is reached, or no thread can be started) is put down, never
   lost.
"""

import asyncio
import contextlib
import itertools
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import Context
from time import monotonic
from typing import Any, ParamSpec, TypeVar

from compat.pool.call import Call
from compat.pool.openssl import quick_clearing
from compat.pool.threads import JoinableThreads

_P = ParamSpec("_P")
_R = TypeVar("_R")

IDLE_SECONDS = (
    5.0  # bridges the pauses between bursts; after that a thread's stack is worth more than its start (60 us)
)

_numbers = itertools.count(1)  # one for all pools: thread names are unique among all live handlers
# For its keyrefs(), a list made in one step: iterating a WeakSet fails when another thread makes a
# pool meanwhile.
_pools: "weakref.WeakKeyDictionary[ThreadPool, None]" = weakref.WeakKeyDictionary()
_exiting = threading.Event()  # the interpreter waits for non-daemon threads: they must not lie down any more


class _Worker(threading.Thread):
    def __init__(self, pool: "ThreadPool") -> None:
        self.own_name = f"{pool.name}-{next(_numbers)}"
        # An inherited context would be kept, with all that is in it, as long as the thread lives.
        own: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
        super().__init__(name=self.own_name, daemon=pool.daemon, **own)
        self.pool = pool
        self.wakeup = threading.Lock()  # released by whoever hands us the token, or sends us home
        self.wakeup.acquire()
        self.dismissed = False

    def run(self) -> None:
        self.pool._remember(self)
        self.pool._work(self)


class ThreadPool(Executor):
    """An executor whose threads are started on demand, reused, and retired when idle.

    Unlike `concurrent.futures.ThreadPoolExecutor` it never queues a call while a thread may still
    be started, runs each call in a context of its own, as a new thread does, can be daemonic (the
    interpreter's exit does not wait for running calls) and can be asked what it is doing.
    `threading.local` values do survive from one call to the next in the same thread, but the
    current event loop and OpenSSL's errors do not.

    Args:
        max_threads: the most threads at a time; None is no bound. May be changed at any time.
        name: threads are called name-1, name-2, ...; numbers are never reused.
        daemon: whether the threads are daemonic.
        idle_seconds: how long a thread without work stays.
    """

    def __init__(
        self,
        max_threads: int | None = None,
        *,
        name: str = "ThreadPool",
        daemon: bool = False,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        if max_threads is not None and max_threads < 1:
            raise ValueError(f"max_threads is {max_threads}, expected at least 1, or None for no bound")
        self.max_threads = max_threads
        self.name = name
        self.daemon = daemon
        self.idle_seconds = idle_seconds
        self.closed: bool = False
        self.starved: bool = False  # the last thread that we wanted could not be started
        self.on_start: Callable[[threading.Thread], object] | None = None  # a thread has started
        self.on_starved: Callable[[], object] | None = None  # a worker could start none: wake() again, later
        self.on_room: Callable[[], object] | None = None  # a call has ended
        self.clear_tls_errors: Callable[[], object] = quick_clearing()  # of the calling thread
        self._reset()
        _pools[self] = None

    def _reset(self) -> None:
        self._queue: deque[Call] = deque()
        self._live: dict[Call, None] = {}  # waiting and running, oldest first
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._token = threading.Lock()
        self.threads: JoinableThreads = JoinableThreads()

    # What producers do.

    def add(self, function: Callable[..., object], /, *args: Any) -> None:
        """Queue a call; nobody need notice before the caller has called `wake()`, which it must.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self.closed:
            raise RuntimeError(f"the pool {self.name} is closed and takes no more calls")
        call = Call(function, args)
        self._live[call] = None
        self._queue.append(call)

    def wake(self) -> None:
        """Make sure that every queued call is taken as soon as there may be a thread for it.

        Raises:
            RuntimeError: no thread can be started and none lives; the calls are still queued, see
            `take_back`.
        """
        error = self._see_to_queue()
        if error is not None and self._queue and not self._workers:
            raise error

    def submit(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_R]:
        """Run a call in some thread and return its future. Do not mix with `add` in one pool.

        Raises:
            RuntimeError: the pool is closed, or no thread can be started and none lives.
        """
        future: Future[_R] = Future()
        self.add(_fulfil, future, fn, args, kwargs)
        try:
            self.wake()
        except RuntimeError as error:
            if future in self._refuse(error):  # and with it what other producers have left to our attempt
                raise
        return future

    def _refuse(self, error: RuntimeError) -> list[Future[Any]]:
        """Fail the futures whose calls nobody has begun and nobody can; return them."""
        futures: list[Future[Any]] = [call.args[0] for call in self.take_back()]
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        return futures

    def take_back(self) -> list[Call]:
        """Empty the queue and return the calls that nobody has begun."""
        calls = []
        with contextlib.suppress(IndexError):  # workers take from the other end at the same time
            while True:
                calls.append(self._queue.pop())
        for call in calls:
            del self._live[call]
        return calls[::-1]

    # What may be asked.

    def calls(self) -> list[Call]:
        """The calls that wait or run, oldest first."""
        return list(self._live)

    @property
    def waiting(self) -> int:
        """How many calls nobody has begun."""
        return len(self._queue)

    @property
    def alive(self) -> int:
        """How many threads there are, idle ones included."""
        return len(self._workers)

    def __len__(self) -> int:
        """How many calls wait or run."""
        return len(self._live)

    def __bool__(self) -> bool:
        """A pool is a pool, also without calls."""
        return True

    # How it ends.

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; those that are queued still run, and the threads end after the last.

        If no thread lives and none can be started, the futures of queued calls fail with that error; what was
        added is left to `take_back`.

        Args:
            wait: do not return before that.
            cancel_futures: cancel what was submitted (not added) and has not begun.

        Raises:
            RuntimeError: called with `wait` from one of the pool's own threads.
        """
        self.closed = True
        if cancel_futures:
            for call in self.take_back():
                call.args[0].cancel()
        self._dismiss_idle()
        error = self._see_to_queue()
        if error is not None and not self._workers and any(call.function is _fulfil for call in self.calls()):
            self._refuse(error)
        if wait:
            self.threads.join()

    def _dismiss_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                worker = self._idle.pop()
                worker.dismissed = True
                worker.wakeup.release()

    # The token.

    def _see_to_queue(self) -> RuntimeError | None:
        """Take the token if it is free and something waits, and hand it over; return what stopped us."""
        error = None
        while self._queue and self._token.acquire(blocking=False):
            handed_over, error = self._hand_over()
            if handed_over:
                return None
            self._token.release()
            if not self._idle:  # all are at work, and whoever finishes takes the next call
                break
        return error

    def _hand_over(self) -> tuple[bool, RuntimeError | None]:
        """Give the token, which the caller holds, to an idle or a new worker."""
        with contextlib.suppress(IndexError):
            self._idle.pop().wakeup.release()
            return True, None
        if self.max_threads is not None and len(self._workers) >= self.max_threads:
            return False, None
        worker = _Worker(self)
        self._workers.add(worker)
        try:
            worker.start()
        except RuntimeError as error:  # "can't start new thread": the system's limit, or the interpreter ends
            self._workers.discard(worker)
            self.starved = True
            return False, error
        self.starved = False
        self._remember(worker)
        return True, None

    def _remember(self, worker: _Worker) -> None:
        """Let others join it. Called by both threads, as either may be the first to look for it there."""
        self.threads.append(worker)
        if self.on_start is not None:
            self.on_start(worker)

    # What workers do.

    def _work(self, worker: _Worker) -> None:
        holding = True
        while holding:
            call = self._take()
            self._pass_on()
            while call is not None:
                self._run(call, worker)
                call = None  # so that an idle thread keeps no request alive
                call = self._take()
            holding = self._rest(worker)

    def _take(self) -> Call | None:
        try:
            return self._queue.popleft()
        except IndexError:
            return None

    def _pass_on(self) -> None:
        handed_over, error = self._hand_over() if self._queue else (False, None)
        if handed_over:
            return
        self._token.release()
        self._see_to_queue()
        if error is not None and self.on_starved is not None:
            self.on_starved()

    def _run(self, call: Call, worker: _Worker) -> None:
        call.worker = worker
        call.started = monotonic()
        try:
            call.context.run(call.function, *call.args)
        except BaseException:
            _report(worker)
        finally:
            self._live.pop(call, None)  # a fork in the call has emptied it
            room = self.on_room
            if room is not None:
                room()
            if worker.name != worker.own_name:  # a handler renamed its thread
                worker.name = worker.own_name
            asyncio.set_event_loop(None)  # 0.3 us; a loop that the call has closed must not meet the next one
            self.clear_tls_errors()  # nor must errors of its connections

    def _rest(self, worker: _Worker) -> bool:
        """Lie down until somebody hands over the token; false when it is time to go."""
        self._idle.append(worker)
        self._see_to_queue()
        if worker.wakeup.acquire(timeout=self._patience(worker)):
            if not worker.dismissed:
                return True
        else:
            try:
                self._idle.remove(worker)
            except ValueError:  # somebody chose us at this very moment
                worker.wakeup.acquire()
                if not worker.dismissed:
                    return True
        return self._stay_after_all(worker)

    def _patience(self, worker: _Worker) -> float:
        leaving = self.closed or worker not in self._workers or (_exiting.is_set() and not self.daemon)
        return 0 if leaving else self.idle_seconds

    def _stay_after_all(self, worker: _Worker) -> bool:
        """Leave, unless the last look shows a call for which a producer may have counted on us."""
        self._workers.discard(worker)
        if self._queue and self._token.acquire(blocking=False):
            self._workers.add(worker)
            worker.dismissed = False
            return True
        return False


def _fulfil(future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args, **kwargs)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _report(worker: threading.Thread) -> None:
    """Do with the current exception what `threading.Thread` does with it, and live on."""
    kind, error, trace = sys.exc_info()
    if kind is None:
        return
    try:
        threading.excepthook(threading.ExceptHookArgs((kind, error, trace, worker)))
    except Exception:
        sys.excepthook(*sys.exc_info())


def _all_pools() -> "list[ThreadPool]":
    return [pool for reference in _pools.keyrefs() if (pool := reference()) is not None]


def _send_idle_threads_home() -> None:
    _exiting.set()
    for pool in _all_pools():
        if not pool.daemon:
            pool._dismiss_idle()


def _forget_threads_after_fork() -> None:
    for pool in _all_pools():
        pool._reset()


# The interpreter joins non-daemon threads before it runs atexit functions; concurrent.futures relies on the
# same hook. Where it is missing, idle threads end by themselves a few seconds later.
getattr(threading, "_register_atexit", lambda _: None)(_send_idle_threads_home)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads_after_fork)
