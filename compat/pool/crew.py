"""A pool of threads in which no call ever waits for another call to end, unless a bound says so.

Theory of operation. Calls wait in one shared deque. Those who have been woken or started for it and have not looked at
it yet are on the list of the *woken*:

    a non-empty deque  =>  a worker is woken, or has come and not passed on, or a producer is between add() and wake(),
                           or every thread that may exist is at work and takes the next call when it ends

1. A producer adds calls (`add`), as many as it has at hand, and then sees to them once (`wake`): if nobody is woken,
   it wakes an idle worker or starts a new one.
2. A worker that comes takes itself off the list, then takes one call and, *before* it runs that call, wakes another one
   if the deque is not empty. So handlers that wait for one another always meet.
3. A worker that has finished a call takes the next one without waking anybody. So quick calls drain a whole batch while
   the next worker is still waking up.
4. Where the oldest call has waited too long (`LATE_SECONDS`) and no call has ended since, the machine is busy and the
   chain too slow: then each one that comes may wake two, so that their number doubles.
5. A worker that lies down shows itself as idle first and looks at the deque afterwards; what was added in between may
   have found somebody woken who has looked before.

Exceptions may arrive between any two steps: from other threads (PyThreadState_SetAsyncExc), trace functions, signal
handlers, for want of memory. So nothing is counted, everything is looked up: what runs is what workers hold, who lives
is who the interpreter says lives, taking a call is one step, and each other step may be taken twice. A worker that ends
takes itself off the books; what even that has missed, the next look finds: by the next producer, worker or `look()`.
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

# A quiet machine brings 200 workers in a row in this time. On a busy one each may take as long.
LATE_SECONDS = 0.01
REAP_SECONDS = 1.0  # between two looks for workers that have ended and said nothing, which cost 0.1 us for each worker


class Crew:
    """The threads of a pool, and the calls that they take: see above.

    Args:
        name: threads are called name-1, name-2, ...; numbers are never reused.
        daemon: whether the threads are daemonic.
    """

    def __init__(self, name: str, daemon: bool) -> None:
        self.name = name
        self.daemon = daemon
        self.max_threads: int | None = None
        self.idle_seconds = 0.0
        self.reuse_threads = True
        self.closed = False
        self.starved = False  # the last thread that we wanted could not be started
        self.on_start: Callable[[threading.Thread], object] | None = None  # a thread has started
        self.on_starved: Callable[[], object] | None = None  # look() soon; returns whether somebody will
        self.on_room: Callable[[], object] | None = None  # a call has ended
        self.clear_tls_errors: Callable[[], object] = quick_clearing()  # of the calling thread
        self._reset()

    def _reset(self) -> None:
        self._queue: deque[Call] = deque()
        self._next: Iterator[Call] = iter(self._queue.popleft, None)  # takes a call, for what wants an iterator
        # Dicts, because each step on them is one that no exception divides.
        self._workers: dict[Worker, None] = {}
        self._idle: dict[Worker, None] = {}
        self._woken: dict[Worker, None] = {}
        self._reaped = self._roused = self._ended = 0.0  # when; the last of them: when a call has ended
        self.threads: JoinableThreads = JoinableThreads()

    # How workers are found.

    def _send_workers(self, may_start: bool = True) -> Exception | None:
        """Wake or start somebody if calls wait and nobody is woken; return what stopped us."""
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
        """Whether more may be woken than there are, after a look at those who should have come."""
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
            elif worker.calls:  # it had come before it was put on the list
                self._woken.pop(worker, None)
            else:
                worker.wake()  # its waker was interrupted; otherwise nothing comes of it

    def _send_one(self, may_start: bool) -> tuple[bool, Exception | None]:
        """Wake an idle worker or start a new one, and put it on the list before."""
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
            self._forget(worker)  # it comes back by itself if it has started
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
        """Put a worker on the books; false when others were there before and `max_threads` is for them."""
        self._workers[worker] = None
        limit = self.max_threads
        if limit is None or len(self._workers) <= limit or worker in list(self._workers)[:limit]:
            return True
        self._workers.pop(worker, None)
        return False

    # What workers tell.

    def _enter(self, worker: Worker) -> None:
        self._workers[worker] = None  # again: its starter may have been interrupted, and taken it off
        self._remember(worker)

    def _remember(self, worker: Worker) -> None:
        """Let others join it. Called by both threads, as either may be the first to look for it there."""
        self.threads.append(worker.thread)
        if self.on_start is not None:
            self.on_start(worker.thread)

    def _pass_on(self) -> None:
        error = self._send_workers()
        if error is not None and self.on_starved is not None:
            self.on_starved()

    def _bury(self, worker: Worker, itself: bool = False) -> None:
        """Take a worker that ends, or has ended, off the books, and have others do what it has not begun.

        Args:
            worker: where it has been before, nothing happens.
            itself: its own thread does it. A thread that it started would begin as its last call has left it, so
                that others are asked to, if there are any.
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
        """Bury those that could not do it themselves."""
        if monotonic() - self._reaped < REAP_SECONDS:
            return
        self._reaped = monotonic()
        for worker in list(self._workers):
            if worker.has_ended():
                self._bury(worker)

    def _alive_after_all(self) -> bool:
        """Whether a worker lives that could take what waits."""
        return any(not worker.has_ended() for worker in list(self._workers))


_numbers = itertools.count(1)  # one for all pools: thread names are unique among all live handlers

exiting = threading.Event()  # the interpreter waits for non-daemon threads: they must not lie down any more

# For whoever has chosen an idle worker, and has to wake it, to do so: two steps, between which it may be interrupted.
CHOSEN_SECONDS = 1.0


class _Life:
    """Held by what a thread runs and nobody else: it goes when that has ended, in whatever way."""

    __slots__ = ("__weakref__",)


class Worker:
    """A thread and what the pool's books say about it.

    Beside the thread, not on it: programs put attributes of any name on `threading.current_thread()`.

    Args:
        pool: whose calls it takes.

    Attributes:
        calls: the call that it has taken, if any. Its thread alone adds to it.
        thread: not started yet.
    """

    def __init__(self, pool: Crew) -> None:
        self.pool = pool
        self.name = f"{pool.name}-{next(_numbers)}"
        self.calls: deque[Call] = deque()
        self._wakeup = threading.Lock()
        self._wakeup.acquire()
        # An inherited context would be kept, with all that is in it, as long as the thread lives.
        own: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
        life = _Life()
        self._end = weakref.ref(life, self._on_end)
        self.thread = threading.Thread(target=self._run, args=(life,), name=self.name, daemon=pool.daemon, **own)

    def wake(self) -> None:
        """End its rest, or the next one; from any thread."""
        try:
            self._wakeup.release()
        except RuntimeError:  # it has been woken already
            return

    def has_ended(self) -> bool:
        """Whether its thread has been started and is no more, as the interpreter knows it."""
        return self.thread.ident is not None and not self.thread.is_alive()

    # What its thread does.

    def _run(self, _: _Life) -> None:
        try:
            self.pool._enter(self)
            self._serve()
        finally:
            self.pool._bury(self, itself=True)

    def _on_end(self, _: object) -> None:
        """Take what even `finally` does not see: an exception before `_run` has begun, or one more inside of it."""
        self.pool._bury(self, itself=True)

    def _serve(self) -> None:
        pool = self.pool
        state = ThreadState(self.thread) if pool.reuse_threads else None
        while True:
            pool._woken.pop(self, None)
            arrived = True
            while self._take():
                if arrived:
                    arrived = False
                    pool._pass_on()
                self._call()
                if state is None or not pool.reuse_threads or not state.is_as_new():
                    return
            if not self._rest():
                return

    def _take(self) -> bool:
        """Take a call in one step: no exception from outside finds it neither in the queue nor with us."""
        pool = self.pool
        if not pool._queue:
            return False
        try:
            self.calls.extend(itertools.islice(pool._next, 1))
        except IndexError:
            return False
        return True

    def _call(self) -> None:
        pool, call = self.pool, self.calls[0]
        call.worker = self.thread
        call.started = monotonic()
        try:
            call.context.run(call.function, *call.args)
        except BaseException:
            report(self.thread)
            call.break_off()
        del call  # an idle thread keeps no request alive
        self.calls.clear()
        pool._ended = monotonic()
        room = pool.on_room
        if room is not None:
            room()
        if self.thread.name != self.name:  # a handler renamed its thread
            self.thread.name = self.name
        pool.clear_tls_errors()  # errors of its connections must not meet the next call

    def _rest(self) -> bool:
        """Lie down until somebody wakes us; false when it is time to go."""
        pool = self.pool
        pool._idle[self] = None
        pool._send_workers()  # for what was added just before
        woken = self._wakeup.acquire(timeout=self._patience())
        if pool._idle.pop(self, self) is self:  # somebody has chosen us
            if self not in pool._woken:  # and is about to say so: what woke us was older
                self._wakeup.acquire(timeout=CHOSEN_SECONDS)
            return True
        return woken or self._stays_after_all()

    def _patience(self) -> float:
        pool = self.pool
        leaving = pool.closed or self not in pool._workers or (exiting.is_set() and not pool.daemon)
        return 0 if leaving else pool.idle_seconds

    def _stays_after_all(self) -> bool:
        """Leave, unless the last look shows a call for which a producer may have counted on us."""
        pool = self.pool
        pool._workers.pop(self, None)
        return bool(pool._queue) and pool._enlist(self)


def report(thread: threading.Thread) -> None:
    """Do with the current exception what `threading.Thread` does with it, and live on."""
    kind, error, trace = sys.exc_info()
    if kind is None:
        return
    try:
        threading.excepthook(threading.ExceptHookArgs((kind, error, trace, thread)))
    except Exception:
        sys.excepthook(*sys.exc_info())
