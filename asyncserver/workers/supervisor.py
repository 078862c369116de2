"""Workers: processes that serve the same addresses, and the supervisor that keeps their number.

    supervisor   binds, forks a worker for each slot, replaces the dead, adds up their counters
    slot         one worker's place: its sockets, which stay open however workers come and go
    worker       serves on its slot's sockets; the supervisor ends it over a socket pair

Each slot has sockets of its own on every address (SO_REUSEPORT: the kernel picks one for each
client) and so a queue of its own. A worker that dies or is replaced leaves its slot's queue where
it is, and its successor goes on with it: nothing queued is reset. The supervisor runs no event
loop, no threads and no handler, so it can fork at any time.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import selectors
import signal
import socket
import time
import warnings
from typing import TYPE_CHECKING

from .._logger import logger as _logger
from ..leaving.stopping import Stage, Stopping
from ..monitoring.monitor import log_urls
from .counters import Counters
from .http_server import HTTPServer
from .process import FORCE, LEAVE, MOST_SERVERS, NOT_LEFT, READY, SIGNALS, STOP, Orders, do_nothing, run_worker
from .recycling import Recycling
from .slot import NEVER, Slot, Worker, open_slots, write_stacks_on_dump
from .watchdog import Watchdog

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ..listening.binding import BoundSocket
    from ..monitoring.notify import NotifySocket
    from ..program.lifespan import Loaded
    from ..serving import Serving

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Seconds beyond `drain_timeout` until a worker is killed: handlers are cancelled and aborted in
# this time, unless its loop is blocked.
_GRACE = 5.0


class Supervisor:
    """Binds, keeps workers running, and ends on a signal when they have ended.

    Args:
        servings: what to serve; bound here. The handlers in it are not called here.
        load: called in each new worker; returns its servings, for the same places in the same
            order, and its lifespan.
        loop_factory: makes a worker's event loop.
        count: workers.
        started: called when everything is bound.
        monitor: where to serve metrics and readiness over HTTP, if at all.
        drain_delay: seconds from the first signal to stop, when /ready says no, to the drain.
        stuck_timeout: seconds that a worker's loop may not turn until it is killed; 0 for ever.
        max_requests, max_age: when a worker is recycled; see Recycling.
        notify: where to report to systemd.
    """

    def __init__(
        self,
        servings: Sequence[Serving],
        load: Callable[[], Loaded],
        loop_factory: Callable[[], asyncio.AbstractEventLoop],
        count: int,
        *,
        started: Callable[[], object],
        monitor: Serving | None,
        drain_delay: float,
        stuck_timeout: float,
        max_requests: int | None,
        max_age: float | None,
        notify: NotifySocket,
    ) -> None:
        if len(servings) > MOST_SERVERS:
            raise ValueError(
                f"workers serve at most {MOST_SERVERS} servers each, got {len(servings)}: run two programs"
            )
        self._load = load
        self._loop_factory = loop_factory
        self._patience = max(serving.drain_timeout for serving in servings) + _GRACE
        self._open = functools.partial(open_slots, servings, count)
        self._started = started
        self._monitor = monitor
        self._stopping = Stopping(drain_delay)
        self._drain_at = NEVER
        self._notify = notify
        self._stuck_timeout = stuck_timeout
        self._recycling_for = functools.partial(Recycling, max_requests=max_requests, max_age=max_age)
        self._exchanges: HTTPServer | None = None
        self._slots: list[Slot] = []
        self._bound: list[BoundSocket] = []
        self._workers: set[Worker] = set()
        self._selector = selectors.DefaultSelector()
        self._reloads = 0
        self._failure = ""

    def run(self) -> None:
        """Serve until a signal to stop; see `run()`."""
        with self._watching_signals():
            try:
                self._bind()
                message = "the supervisor is process %d: SIGHUP to it replaces the workers, SIGTERM ends all"
                _logger.info(message, os.getpid())
                for slot in self._slots:
                    slot.worker = self._fork(slot)
                while self._workers or not self._stopping.draining:
                    self._turn()
                self._counters.log_end()
            finally:
                self._kill(self._workers)  # none is left, unless this is an error
                for worker in self._workers:
                    worker.wait()
                    worker.close()
                self._close_sockets()
                self._selector.close()
                if self._exchanges is not None:
                    self._exchanges.close()
        if self._failure:
            raise ChildProcessError(f"{self._failure}: see the log for its error")

    def _bind(self) -> None:
        self._slots = [Slot(sockets) for sockets in self._open()]
        self._bound = [one for slot in self._slots for sockets in slot.sockets for one in sockets]
        self._counters = Counters(self._slots, self._workers, self._stopping)
        self._watchdog = Watchdog(self._notify, self._slots, self._workers, self._counters.stats, self._stuck_timeout)
        self._recycling = self._recycling_for(self._slots, self._workers, self._stopping, self._renew)
        if self._monitor is not None:
            bound = self._monitor.open_slots(1)[0]
            self._exchanges = HTTPServer(self._selector, bound, self._counters.respond)
            log_urls(one.address for one in bound)
        self._started()

    # -- what wakes it

    @contextlib.contextmanager
    def _watching_signals(self) -> Iterator[None]:
        """Let signals wake the selector, as bytes of their numbers."""
        reading, writing = socket.socketpair()
        with reading, writing:
            reading.setblocking(False)
            writing.setblocking(False)
            self._wakeup = (reading, writing)
            before = {number: signal.signal(number, do_nothing) for number in SIGNALS}
            # pidfd_open(2) would report deaths too, but needs Linux 5.3, and gVisor lacks it. With
            # SIGCHLD ignored, as our parent may have left it, the kernel would reap workers unseen.
            before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, do_nothing)
            mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
            self._selector.register(reading, selectors.EVENT_READ, self._on_signals)
            try:
                yield
            finally:
                time.sleep(self._stopping.echo_left)  # the handler that is put back may kill
                signal.set_wakeup_fd(descriptor)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                for number, handler in before.items():
                    if handler is not None:  # one that is not Python's
                        signal.signal(number, handler)

    def _turn(self) -> None:
        due = [worker.kill_at for worker in self._workers] + [slot.restart_at for slot in self._slots]
        due += [self._exchanges.due] if self._exchanges is not None else []
        watch_at = self._watchdog.due
        seconds = min(self._counters.due, self._drain_at, watch_at, self._recycling.due, *due) - time.monotonic()
        for key, _ in self._selector.select(None if seconds == NEVER else max(0.0, seconds)):
            key.data()
        now = time.monotonic()
        self._watchdog.expire(watch_at)
        self._kill([worker for worker in self._workers if worker.kill_at <= now])
        for slot in self._slots:
            if slot.restart_at <= now:
                self._fill(slot)
        self._recycling.expire()
        if self._counters.due <= now:
            self._counters.expire()
        if self._exchanges is not None:
            self._exchanges.expire(now)
        if self._drain_at <= now:
            self._on_stop("the delay is over")

    def _on_signals(self) -> None:
        for number in self._wakeup[0].recv(4096):
            if number in _STOP_SIGNALS and self._stopping.is_echo(number):
                continue
            if number in _STOP_SIGNALS:
                self._on_stop(signal.Signals(number).name)
            elif number == signal.SIGHUP and self._stopping.has_lost_terminal():
                self._on_stop("SIGHUP")
            elif number == signal.SIGHUP and not self._stopping.stopping:
                self._on_reload()
            elif number == signal.SIGUSR1:
                self._counters.ask(self._counters.log_stats)
        for worker in list(self._workers):  # there may have been no room for SIGCHLD's byte
            if (status := worker.wait(os.WNOHANG)) is not None:
                self._on_death(worker, status)

    def _on_stop(self, cause: str) -> None:
        self._drain_at = NEVER
        match self._stopping.advance(cause):
            case Stage.DELAYED:
                self._watchdog.stop()
                self._drain_at = time.monotonic() + self._stopping.drain_delay
            case Stage.DRAINING:
                self._stop()
            case Stage.FORCED:
                self._tell_all(FORCE, _GRACE)
            case _:
                self._kill(self._workers)

    def _stop(self) -> None:
        self._watchdog.stop()
        for slot in self._slots:
            if slot.worker is None and self._stopping.started:
                self._fill(slot)  # for the clients in its queue, which would be reset
            slot.restart_at = NEVER
        self._counters.begin_end()
        self._close_sockets()  # so that a worker that closes its own, emptied, closes the last
        self._tell_all(STOP, self._patience)

    def _on_reload(self) -> None:
        self._reloads += 1
        self._watchdog.reload()
        _logger.info("SIGHUP: starting new workers; those that serve go on until these do")
        for slot in self._slots:
            self._renew(slot)
        self._watchdog.report_if_ready()

    def _on_message(self, worker: Worker) -> None:
        message = worker.receive() if worker in self._workers else None  # it may be gone already
        if message:
            self._on_words(worker, message)
        elif message is not None:  # it is ending; SIGCHLD comes when it has
            self._selector.unregister(worker.channel)

    def _on_words(self, worker: Worker, message: bytes) -> None:
        self._watchdog.note_message(worker)
        if message == READY:
            self._on_ready(worker)
        elif message == LEAVE:
            if worker is worker.slot.worker and worker.slot.successor is None and not self._stopping.stopping:
                self._renew(worker.slot)
        else:
            self._counters.store(worker, message)
            self._recycling.note_report(worker)

    def _on_ready(self, worker: Worker) -> None:
        worker.serving = True
        slot = worker.slot
        if worker is slot.successor:
            old, slot.worker, slot.successor = slot.worker, worker, None
            if old in self._workers:  # it may have ended, when the end came while this one started
                self._retire(old)
        if all(each.settled for each in self._slots):
            self._stopping.start()
            if not self._stopping.draining:
                serving = f"{count} workers serve" if (count := len(self._slots)) > 1 else "1 worker serves"
                _logger.info("%s on %s", serving, ", ".join(self._counters.places))
        self._watchdog.report_if_ready()

    def _on_death(self, worker: Worker, status: int) -> None:
        """Remove a worker, and start its successor."""
        while message := worker.receive():  # its last reports
            self._on_words(worker, message)
        self._workers.discard(worker)
        with contextlib.suppress(KeyError):
            self._selector.unregister(worker.channel)
        worker.close()
        self._counters.retire(worker)
        how = f"worker {worker.pid} ended " + (f"with status {status}" if status >= 0 else f"by signal {-status}")
        if worker.leaving or self._stopping.draining:
            _logger.log(logging.ERROR if status else logging.DEBUG, "%s while it drained", how)
            if status == NOT_LEFT and not worker.leaving:
                self._failure = self._failure or f"{how}, its lifespan failed as it was left"
        else:
            self._replace(worker, how)

    def _replace(self, worker: Worker, how: str) -> None:
        self._counters.deaths += 1
        slot = worker.slot
        if worker is slot.successor:
            slot.successor = None
            self._watchdog.note_failure()
            _logger.error("%s before it served: the one that serves stays", how)
        elif slot.successor is not None:
            slot.worker, slot.successor = slot.successor, None
            _logger.error("%s, its successor is starting already", how)
        elif not self._stopping.started and not worker.serving:
            self._failure = f"{how} before all workers served"
            self._stopping.fail()
            self._stop()
        else:
            slot.worker = None
            delay = slot.back_off(time.monotonic() - worker.started)
            _logger.error("%s, and its connections with it; the next one starts in %g s", how, delay)
        self._watchdog.report_if_ready()

    # -- starting and ending workers

    def _fill(self, slot: Slot) -> None:
        """Start a worker in an empty slot."""
        slot.restart_at = NEVER
        try:
            slot.worker = self._fork(slot)
        except OSError as exc:
            _logger.error("no worker could be started (%s); tried again in %g s", exc, slot.back_off(0.0))

    def _renew(self, slot: Slot) -> None:
        """Start a successor; the worker in the slot goes on until that serves."""
        if slot.worker is None:
            self._fill(slot)
            return
        if slot.successor is not None:  # of an older state of the program
            self._retire(slot.successor)
        try:
            slot.successor = self._fork(slot)
        except OSError as exc:
            slot.successor = None
            self._watchdog.note_failure()
            _logger.error("no new worker could be started (%s): the one that serves stays", exc)

    def _retire(self, worker: Worker) -> None:
        worker.leaving = True
        worker.kill_at = time.monotonic() + self._patience
        worker.send(LEAVE)

    def _tell_all(self, message: bytes, patience: float) -> None:
        for worker in self._workers:
            worker.kill_at = min(worker.kill_at, time.monotonic() + patience)
            worker.send(message)

    def _kill(self, workers: set[Worker] | list[Worker]) -> None:
        for worker in workers:
            worker.kill_at = NEVER
            _logger.error("worker %d has not ended in time: killed", worker.pid)
            worker.send_signal(signal.SIGKILL)

    def _close_sockets(self) -> None:
        for bound in self._bound:
            bound.close()

    def _fork(self, slot: Slot) -> Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stacks, stacks_end = socket.socketpair()
        with ours, theirs, stacks, stacks_end:
            # Until the child has handlers of its own, its signals' bytes would come to us.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                with warnings.catch_warnings():
                    # The warning is about the program's threads. Where warnings are errors, Python
                    # 3.15 would raise it in the parent, after the fork.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    pid = os.fork()
                if pid == 0:
                    write_stacks_on_dump(stacks_end)
                    prepare = functools.partial(self._forget_others, slot, (ours, stacks), mask)
                    reloaded, measure = self._reloads > 0, self._exchanges is not None
                    orders = Orders(slot.sockets, theirs, reloaded, measure, self._watchdog.report_every)
                    run_worker(self._load, orders, prepare, self._loop_factory)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            worker = Worker(pid, slot, *(socket.socket(fileno=end.detach()) for end in (ours, stacks)))
        self._workers.add(worker)
        self._selector.register(worker.channel, selectors.EVENT_READ, functools.partial(self._on_message, worker))
        return worker

    # -- reports

    def _forget_others(self, slot: Slot, other_ends: Iterable[socket.socket], mask: set[int | signal.Signals]) -> None:
        """In a worker: close what it has inherited of others, so that their end is noticed."""
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._selector.close()
        self._notify.close()
        for end in (*self._wakeup, *other_ends):
            end.close()
        for worker in self._workers:
            worker.close()
        if self._exchanges is not None:
            self._exchanges.close()
        mine = [bound for sockets in slot.sockets for bound in sockets]
        for bound in self._bound:
            bound.share()
            if bound not in mine:
                bound.close()
