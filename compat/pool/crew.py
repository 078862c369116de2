"""A pool of threads in which no call waits for another call to end, unless there is a bound.

Theory of operation. Calls wait in one shared deque. Workers that were woken or started for it, and
have not looked at it yet, are *woken*. A deque with calls in it means one of these:

* a worker is woken, or has come and not passed on;
* a producer is between add() and wake();
* every thread that may exist is at work, and takes the next call when it ends.

A producer adds as many calls as it has, then calls `wake` once: if no worker is woken, it wakes an
idle one or starts a new one. A worker that

* comes is woken no more, takes one call and, *before* it runs that call, wakes another worker if
  the deque is not empty. So handlers that wait for one another always meet. If the machine is too
  busy for that (LATE_SECONDS), it may wake two, so that their number doubles;
* has finished a call takes the next one without waking another. So quick calls empty a whole batch
  while the next worker is still waking up;
* becomes idle shows that first, and looks at the deque afterwards: a producer may have added a call
  in between, and found a woken worker that had looked before.

Exceptions may come between any two steps: from other threads (PyThreadState_SetAsyncExc), trace
functions, signal handlers, for lack of memory. So nothing is counted, everything is looked up:
calls run if workers hold them, workers live if the interpreter says so, taking a call is one step,
and each other step may be repeated. A worker that ends removes itself; what it has missed is found
by the next producer, worker or `look()`.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import weakref
from collections import deque
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Any

from compat.pool.openssl import quick_clearing
from compat.pool.thread_state import ThreadState
from compat.pool.threads import JoinableThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from compat.pool.call import Call

# If the oldest call has waited longer, and none has ended since, workers come too slowly. On a
# quiet machine 200 come in a row in this time; on a busy one, one may need as long.
LATE_SECONDS = 0.01
# Once calls have left something in so many threads in a row, one of so many is looked at, to see
# whether that has changed: to note what a new thread is like takes as long as to start it.
SPOILT_IN_A_ROW = 32
REAP_SECONDS = 1.0  # between looks for workers that ended unnoticed: 0.1 us for each worker


class Crew:
    """The threads of a pool, and the calls that they take. The arguments are ThreadPool's."""

    def __init__(
        self, max_threads: int | None, name: str, daemon: bool, idle_seconds: float, reuse_threads: bool
    ) -> None:
        self.max_threads = max_threads
        self.name = name
        self.daemon = daemon
        self.idle_seconds = idle_seconds
        self.reuse_threads = reuse_threads
        self.closed = False
        self.starved: bool = False  # the last thread could not be started
        self.on_start: Callable[[threading.Thread], object] | None = None  # a thread has started
        # Asks for look(), and returns whether that will come.
        self.on_starved: Callable[[], object] | None = None
        self.on_room: Callable[[], object] | None = None  # a call has ended
        self.clear_tls_errors: Callable[[], object] = quick_clearing()  # of the calling thread
        self._reset()

    def _reset(self) -> None:
        self._queue: deque[Call] = deque()
        self._next: Iterator[Call] = iter(self._queue.popleft, None)  # each step takes a call
        # Dicts: no exception comes in the middle of one step on them.
        self._workers: dict[Worker, None] = {}
        self._idle: dict[Worker, None] = {}
        self._woken: dict[Worker, None] = {}
        # Times of the last look for ended workers, of the last `_rouse()`, of the last call's end.
        self._reaped = self._roused = self._ended = 0.0
        self._spoilt: int = 0  # threads in a row, about, in which a call has left something
        self.threads: JoinableThreads = JoinableThreads()

    # How workers are found.

    def _send_workers(self, may_start: bool = True) -> Exception | None:
        """Wake or start a worker if calls wait and none is woken; return what prevented it."""
        queue = self._queue
        if not queue:
            return None
        if not self._woken:
            sent, error = self._send_one(may_start)
            if not sent or len(queue) < 2:
                return error
        if self._is_late() and self._lacks_woken():
            return self._send_one(may_start)[1]
        return None

    def _is_late(self) -> bool:
        try:
            since = monotonic() - LATE_SECONDS
            return self._queue[0].added < since and self._ended < since
        except IndexError:
            return False

    def _lacks_woken(self) -> bool:
        """Whether more may be woken than are now, after a look at those that should have come."""
        if monotonic() - self._roused > LATE_SECONDS:
            self._roused = monotonic()
            self._rouse()
        woken = len(self._woken)
        at_work = len(self._workers) - len(self._idle) - woken
        return woken < min(len(self._queue), max(at_work, 1))

    def _rouse(self) -> None:
        for worker in list(self._woken):
            if worker.has_ended():
                self._bury(worker)
            elif worker.calls:  # it came before it was listed as woken
                self._woken.pop(worker, None)
            else:
                worker.wake()  # its waker may have been interrupted; otherwise this has no effect

    def _send_one(self, may_start: bool) -> tuple[bool, Exception | None]:
        """Wake an idle worker or start a new one; it is listed as woken before."""
        try:
            self._wake_idle()
        except KeyError:
            return self._start_one() if may_start else (False, None)
        return True, None

    def _wake_idle(self) -> None:
        worker, _ = self._idle.popitem()
        self._woken[worker] = None
        worker.wake()

    def _start_one(self) -> tuple[bool, Exception | None]:
        if self._is_at_bound():
            return False, None
        worker = Worker(self)
        try:
            if not self._enlist(worker):
                return False, None
            self._woken[worker] = None
            worker.thread.start()
        except (RuntimeError, MemoryError) as error:  # the system's limit, or the interpreter ends
            self._forget(worker)
            self.starved = True
            return False, error
        except BaseException:
            self._forget(worker)  # if it has started it adds itself again
            raise
        self.starved = False
        self._remember(worker)
        return True, None

    def _forget(self, worker: Worker) -> None:
        self._woken.pop(worker, None)
        self._workers.pop(worker, None)

    def _is_at_bound(self) -> bool:
        limit = self.max_threads
        if limit is None or len(self._workers) < limit:
            return False
        self._reap()
        return len(self._workers) >= limit

    def _enlist(self, worker: Worker) -> bool:
        """Add a worker; false when those added before have reached `max_threads`."""
        self._workers[worker] = None
        limit = self.max_threads
        if limit is None or len(self._workers) <= limit or worker in list(self._workers)[:limit]:
            return True
        self._workers.pop(worker, None)
        return False

    # What workers report.

    def _enter(self, worker: Worker) -> None:
        self._workers[worker] = None  # again: its starter may have been interrupted and removed it
        self._remember(worker)

    def _remember(self, worker: Worker) -> None:
        """Let others join it. Called by both threads, as either may be the first to need it."""
        self.threads.append(worker.thread)
        if self.on_start is not None:
            self.on_start(worker.thread)

    def _may_reuse(self) -> bool:
        """Whether to note what a new thread is like, to compare it after its calls."""
        if self._spoilt >= SPOILT_IN_A_ROW:
            self._spoilt += 1
            if self._spoilt % SPOILT_IN_A_ROW:
                return False
        return self.reuse_threads

    def _pass_on(self) -> None:
        error = self._send_workers()
        if error is not None and self.on_starved is not None:
            self.on_starved()

    def _bury(self, worker: Worker, itself: bool = False) -> None:
        """Remove a worker that ends, or has ended, and let others do what it has not begun.

        A second time has no effect. `itself`: its own thread calls this. A thread that this one
        starts could inherit what its last call has left, so others are asked to, if there are any.
        """
        self._woken.pop(worker, None)
        self._idle.pop(worker, None)
        with contextlib.suppress(IndexError):
            while True:
                self._give_up(worker.calls.pop())
        self._workers.pop(worker, None)
        self._send_workers(may_start=not itself)
        if itself and self._queue and not self._woken and not (self.on_starved is not None and self.on_starved()):
            self._send_workers()
        room = self.on_room
        if room is not None:
            room()

    def _give_up(self, call: Call) -> None:
        if call.started:
            call.break_off()
        else:
            self._queue.appendleft(call)

    def _reap(self) -> None:
        """Remove workers that ended and could not do it themselves."""
        if monotonic() - self._reaped < REAP_SECONDS:
            return
        self._reaped = monotonic()
        for worker in list(self._workers):
            if worker.has_ended():
                self._bury(worker)


_numbers = itertools.count(1)  # one for all pools: thread names are unique among all live handlers

exiting: threading.Event = threading.Event()  # set when non-daemon threads must not become idle any more
# For a thread that has chosen an idle worker to wake it: it may be interrupted between the two.
CHOSEN_SECONDS = 1.0


class _Life:
    """Referenced only by what a thread runs: it is freed when that has ended, in whatever way."""

    __slots__ = ("__weakref__",)


class Worker:
    """A thread that takes the calls of a pool, and what the pool knows about it.

    Not as attributes of the thread: programs set any name on `threading.current_thread()`.

    `calls` holds the one that it has taken, if any; only its thread adds to it. `thread` is not
    started yet.
    """

    def __init__(self, pool: Crew) -> None:
        self.pool = pool
        self.name: str = f"{pool.name}-{next(_numbers)}"
        self.calls: list[Call] = []
        self._taking = map(self.calls.append, pool._next)
        self._wakeup = threading.Lock()
        self._wakeup.acquire()
        # An inherited context would be kept, with all its values, as long as the thread lives.
        own: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
        life = _Life()
        self._end = weakref.ref(life, self._on_end)
        self.thread: threading.Thread = threading.Thread(
            target=self._run, args=(life,), name=self.name, daemon=pool.daemon, **own
        )

    def wake(self) -> None:
        """End its rest, or the next one; from any thread."""
        try:
            self._wakeup.release()
        except RuntimeError:  # it has been woken already
            return

    def has_ended(self) -> bool:
        """Whether its thread has been started and has ended, by what the interpreter knows."""
        return self.thread.ident is not None and not self.thread.is_alive()

    # What its thread does.

    def _run(self, _: _Life) -> None:
        try:
            self.pool._enter(self)
            self._serve()
        finally:
            self.pool._bury(self, itself=True)

    def _on_end(self, _: object) -> None:
        """For what `finally` misses: an exception before `_run` begins, or a second one in it."""
        self.pool._bury(self, itself=True)

    def _serve(self) -> None:
        pool = self.pool
        state = ThreadState(self.thread) if pool._may_reuse() else None
        while True:
            pool._woken.pop(self, None)
            arrived = True
            while self._take():
                if arrived:
                    arrived = False
                    pool._pass_on()
                self._call()
                if state is None or not pool.reuse_threads:
                    return
                if not state.is_as_new():
                    pool._spoilt += 1
                    return
                pool._spoilt = 0
            if not self._rest():
                return

    def _take(self) -> bool:
        """Take a call in one step: whenever an exception comes, the queue or this worker has it."""
        pool = self.pool
        if not pool._queue:
            return False
        try:
            next(self._taking)
        except IndexError:
            return False
        return True

    def _call(self) -> None:
        pool, call = self.pool, self.calls[0]
        call.worker = self.thread
        call.started = monotonic()
        try:
            call.context.run(call.function, *call.args)
        except BaseException as error:
            _report(error, self.thread)
            call.break_off()
        del call  # an idle thread keeps no request alive
        self.calls.clear()
        pool._ended = monotonic()
        room = pool.on_room
        if room is not None:
            room()
        if self.thread.name != self.name:  # a handler renamed its thread
            self.thread.name = self.name
        pool.clear_tls_errors()  # the next call must not get errors of its connections

    def _rest(self) -> bool:
        """Be idle until woken; false when it is time to end."""
        pool = self.pool
        pool._idle[self] = None
        pool._send_workers()  # for calls that were added just before
        woken = self._wakeup.acquire(timeout=self._patience())
        if pool._idle.pop(self, self) is self:  # another thread has chosen this worker
            if self not in pool._woken:  # and is about to wake it: what woke it now was older
                self._wakeup.acquire(timeout=CHOSEN_SECONDS)
            return True
        return woken or self._stays_after_all()

    def _patience(self) -> float:
        pool = self.pool
        leaving = pool.closed or self not in pool._workers or (exiting.is_set() and not pool.daemon)
        return 0 if leaving else pool.idle_seconds

    def _stays_after_all(self) -> bool:
        """End, unless a last look shows a call for which a producer may rely on this worker."""
        pool = self.pool
        pool._workers.pop(self, None)
        return bool(pool._queue) and pool._enlist(self)


def _report(error: BaseException, thread: threading.Thread) -> None:
    """Do with an exception what `threading.Thread` does, and go on."""
    try:
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, thread)))
    except Exception:
        sys.excepthook(*sys.exc_info())
