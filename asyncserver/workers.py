"""Workers: processes that serve the same addresses, and the supervisor that keeps their number.

    supervisor   binds; forks a worker for each slot; replaces the dead; passes signals on; adds up their counters
    slot         one worker's place: its sockets, which the supervisor keeps open however workers come and go
    worker       serves on its slot's sockets; told by the supervisor, over a socket pair, how to end

Each slot has sockets of its own on every address (SO_REUSEPORT: the kernel picks one for each client) and so a queue
of its own. A worker that dies or is replaced leaves its slot's queue where it is, and its successor goes on with it:
nothing queued is reset. The supervisor runs no event loop, no threads and no handler, so it can fork at any time.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING

from ._log import logger as _logger
from ._worker import FORCE, LEAVE, LONGEST_MESSAGE, READY, SIGNALS, STATS, STOP, pass_over, work
from .reports import ServerStats

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

    from .binding import BoundSocket
    from .serving import Serving


_NEVER = float("inf")
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Seconds that a worker must have lived for its death to be an accident, not a habit.
_STEADY = 10.0
# Seconds until the next attempt after a second early death, doubled by each further one, and the most.
_BACKOFF, _LONGEST_BACKOFF = 0.1, 30.0
# Seconds beyond `drain_timeout`, in which handlers are cancelled and aborted, until a worker is killed: one whose
# loop is blocked.
_GRACE = 5.0
# Seconds that a busy worker has for its counters when they are asked for.
_STATS_PATIENCE = 1.0


class _Worker:
    """A worker process, as the supervisor sees it."""

    def __init__(self, pid: int, slot: _Slot, channel: socket.socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.slot = slot
        self.channel = channel
        self.started = time.monotonic()
        self.serving = False
        self.leaving = False
        self.kill_at = _NEVER
        self.stats: list[dict[str, int]] = []

    def tell(self, message: bytes) -> None:
        """Send, unless it is dead or so stuck that it has not read hundreds before; then it will be killed."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            self.channel.send(message)

    def hear(self) -> bytes | None:
        """Return its next message; None if there is none, b"" if there will be none."""
        try:
            return self.channel.recv(LONGEST_MESSAGE)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        self.channel.close()
        os.close(self.pidfd)


class _Slot:
    """One worker's place: its sockets for each server, and who fills it."""

    def __init__(self, sockets: list[list[BoundSocket]]) -> None:
        self.sockets = sockets
        self.worker: _Worker | None = None
        self.successor: _Worker | None = None
        self.early_deaths = 0
        self.restart_at = _NEVER

    def back_off(self, lived: float) -> float:
        """After a death: decide when the next worker starts, and return in how many seconds."""
        self.early_deaths = 0 if lived >= _STEADY else self.early_deaths + 1
        delay = min(_BACKOFF * 2.0 ** (self.early_deaths - 2), _LONGEST_BACKOFF) if self.early_deaths > 1 else 0.0
        self.restart_at = time.monotonic() + delay
        return delay


class Supervisor:
    """Binds, keeps workers running, and ends when it is told to and they have ended.

    Args:
        servings: what to serve; bound here. The handlers in it are not called here.
        load: called in each new worker for the servings to serve there, the same places in the same order.
        loop_factory: makes a worker's event loop.
        count: workers.
    """

    def __init__(
        self,
        servings: Sequence[Serving],
        load: Callable[[], Sequence[Serving]],
        loop_factory: Callable[[], asyncio.AbstractEventLoop],
        count: int,
    ) -> None:
        self._load = load
        self._loop_factory = loop_factory
        self._patience = max(serving.drain_timeout for serving in servings) + _GRACE
        self._slots = [_Slot(sockets) for sockets in _open(servings, count)]
        self._bound = [one for slot in self._slots for sockets in slot.sockets for one in sockets]
        self._places = [", ".join(str(one.address) for one in group) for group in self._slots[0].sockets]
        self._workers: set[_Worker] = set()
        self._selector = selectors.DefaultSelector()
        self._stops = 0
        self._reloads = 0
        self._complete = False
        self._failure = ""
        self._retired = [dict.fromkeys(ServerStats.__slots__, 0) for _ in servings]
        self._asked: set[_Worker] = set()
        self._answer_by = _NEVER

    def run(self) -> None:
        """Serve until told to stop; see `run()`."""
        with self._watching_signals():
            try:
                for slot in self._slots:
                    slot.worker = self._fork(slot)
                while self._workers or not self._stops:
                    self._turn()
                self._log_stats()
            finally:
                self._kill(self._workers)  # nobody is left, unless this is an error
                self._close_sockets()
                self._selector.close()
        if self._failure:
            raise ChildProcessError(f"{self._failure} before all workers served: see the log for its error")

    def stats(self) -> list[ServerStats]:
        """Count what has happened so far in all workers, those that have ended included, for each server."""
        totals = [dict(counts) for counts in self._retired]
        for worker in self._workers:
            _add(totals, worker.stats)
        return [ServerStats(**counts) for counts in totals]

    # -- what wakes it

    @contextlib.contextmanager
    def _watching_signals(self) -> Iterator[None]:
        """Let signals wake the selector, as bytes of their numbers."""
        reading, writing = socket.socketpair()
        with reading, writing:
            reading.setblocking(False)
            writing.setblocking(False)
            self._wakeup = (reading, writing)
            before = {number: signal.signal(number, pass_over) for number in SIGNALS}
            descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
            self._selector.register(reading, selectors.EVENT_READ, self._on_signals)
            try:
                yield
            finally:
                signal.set_wakeup_fd(descriptor)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _turn(self) -> None:
        due = [worker.kill_at for worker in self._workers] + [slot.restart_at for slot in self._slots]
        seconds = min(self._answer_by, *due) - time.monotonic()
        for key, _ in self._selector.select(None if seconds == _NEVER else max(0.0, seconds)):
            key.data()
        now = time.monotonic()
        self._kill([worker for worker in self._workers if worker.kill_at <= now])
        for slot in self._slots:
            if slot.restart_at <= now:
                self._fill(slot)
        if self._answer_by <= now:
            self._log_stats()

    def _on_signals(self) -> None:
        for number in self._wakeup[0].recv(4096):
            if number in _STOP_SIGNALS:
                self._on_stop(signal.Signals(number).name)
            elif number == signal.SIGHUP and not self._stops:
                self._on_reload()
            elif number == signal.SIGUSR1:
                self._ask_stats()

    def _on_stop(self, name: str) -> None:
        self._stops += 1
        if self._stops == 1:
            _logger.info("%s: no new work, waiting for what runs; once more to end it now", name)
            self._stop()
        elif self._stops == 2:
            _logger.warning("%s again: cancelling what still runs", name)
            self._tell_all(FORCE, _GRACE)
        else:
            self._kill(self._workers)

    def _stop(self) -> None:
        self._stops = max(self._stops, 1)
        for slot in self._slots:
            if slot.worker is None and self._complete:
                self._fill(slot)  # for those in its queue, which would be reset
            slot.restart_at = _NEVER
        self._close_sockets()  # so that a worker that closes its own, emptied, closes the last
        self._tell_all(STOP, self._patience)

    def _on_reload(self) -> None:
        self._reloads += 1
        _logger.info("SIGHUP: starting new workers; those that serve go on until these do")
        for slot in self._slots:
            self._renew(slot)

    def _on_message(self, worker: _Worker) -> None:
        message = worker.hear() if worker in self._workers else None  # it may have been buried in this turn
        if message:
            self._on_words(worker, message)
        elif message is not None:  # it is ending; the descriptor of its process will tell when it has
            self._selector.unregister(worker.channel)

    def _on_words(self, worker: _Worker, message: bytes) -> None:
        if message == READY:
            self._on_ready(worker)
        elif message == LEAVE:
            if worker is worker.slot.worker and worker.slot.successor is None and not self._stops:
                self._renew(worker.slot)
        else:
            worker.stats = json.loads(message)
            self._on_stats(worker)

    def _on_ready(self, worker: _Worker) -> None:
        worker.serving = True
        slot = worker.slot
        if worker is slot.successor:
            old, slot.worker, slot.successor = slot.worker, worker, None
            if old is not None:
                self._retire(old)
        if all(each.successor is None and each.worker and each.worker.serving for each in self._slots):
            self._complete = True
            if not self._stops:
                _logger.info("%d workers serve on %s", len(self._slots), ", ".join(self._places))

    def _on_death(self, worker: _Worker) -> None:
        """Bury a worker, and see to its successor."""
        status = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        while message := worker.hear():  # what it said last
            self._on_words(worker, message)
        self._workers.discard(worker)
        _add(self._retired, [{**counts, "active": 0} for counts in worker.stats])
        for descriptor in (worker.channel, worker.pidfd):
            with contextlib.suppress(KeyError):
                self._selector.unregister(descriptor)
        worker.close()
        self._on_stats(worker)
        how = f"worker {worker.pid} ended " + (f"with status {status}" if status >= 0 else f"by signal {-status}")
        if worker.leaving or self._stops:
            _logger.log(logging.ERROR if status else logging.DEBUG, "%s while it drained", how)
        else:
            self._replace(worker, how)

    def _replace(self, worker: _Worker, how: str) -> None:
        slot = worker.slot
        if worker is slot.successor:
            slot.successor = None
            _logger.error("%s before it served: the one that serves stays", how)
        elif slot.successor is not None:
            slot.worker, slot.successor = slot.successor, None
            _logger.error("%s, its successor is starting already", how)
        elif not self._complete and not worker.serving:
            self._failure = how
            self._stop()
        else:
            slot.worker = None
            delay = slot.back_off(time.monotonic() - worker.started)
            _logger.error("%s, and its connections with it; the next one starts in %g s", how, delay)

    # -- starting and ending workers

    def _fill(self, slot: _Slot) -> None:
        """Start a worker in an empty slot."""
        slot.restart_at = _NEVER
        try:
            slot.worker = self._fork(slot)
        except OSError as exc:
            _logger.error("no worker could be started (%s); tried again in %g s", exc, slot.back_off(0.0))

    def _renew(self, slot: _Slot) -> None:
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
            _logger.error("no new worker could be started (%s): the one that serves stays", exc)

    def _retire(self, worker: _Worker) -> None:
        worker.leaving = True
        worker.kill_at = time.monotonic() + self._patience
        worker.tell(LEAVE)

    def _tell_all(self, message: bytes, patience: float) -> None:
        for worker in self._workers:
            worker.kill_at = min(worker.kill_at, time.monotonic() + patience)
            worker.tell(message)

    def _kill(self, workers: set[_Worker] | list[_Worker]) -> None:
        for worker in workers:
            worker.kill_at = _NEVER
            _logger.error("worker %d has not ended in time: killed", worker.pid)
            signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)

    def _close_sockets(self) -> None:
        for bound in self._bound:
            bound.close()

    def _fork(self, slot: _Slot) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            # Until the child has handlers of its own, the signals' bytes would go to the supervisor.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                pid = os.fork()
                if pid == 0:
                    prepare = functools.partial(self._forget_others, slot, ours, mask)
                    reload_tls = self._reloads > 0
                    work(self._load, slot.sockets, theirs, prepare, self._loop_factory, reload_tls=reload_tls)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            ours.setblocking(False)
            worker = _Worker(pid, slot, socket.socket(fileno=ours.detach()))
        self._workers.add(worker)
        self._selector.register(worker.channel, selectors.EVENT_READ, functools.partial(self._on_message, worker))
        self._selector.register(worker.pidfd, selectors.EVENT_READ, functools.partial(self._on_death, worker))
        return worker

    # -- counters

    def _ask_stats(self) -> None:
        self._asked = set(self._workers)
        self._answer_by = time.monotonic() + _STATS_PATIENCE
        self._tell_all(STATS, _NEVER)

    def _on_stats(self, worker: _Worker) -> None:
        self._asked.discard(worker)
        if not self._asked and self._answer_by < _NEVER:
            self._log_stats()

    def _log_stats(self) -> None:
        self._answer_by = _NEVER
        for place, stats in zip(self._places, self.stats(), strict=True):
            _logger.info("on %s: %s", place, stats)

    def _forget_others(self, slot: _Slot, other_end: socket.socket, mask: set[int | signal.Signals]) -> None:
        """In a worker: close what it has inherited of others, so that their ends are noticed."""
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._selector.close()
        for end in (*self._wakeup, other_end):
            end.close()
        for worker in self._workers:
            worker.close()
        mine = [bound for sockets in slot.sockets for bound in sockets]
        for bound in self._bound:
            bound.share()
            if bound not in mine:
                bound.close()


def _open(servings: Sequence[Serving], count: int) -> list[list[list[BoundSocket]]]:
    """Bind every place, or none; returns the sockets for each slot, for each server."""
    opened: list[list[list[BoundSocket]]] = []
    try:
        opened.extend(serving.open_slots(count) for serving in servings)
    except BaseException:
        for bound in (one for slots in opened for sockets in slots for one in sockets):
            bound.close()
        raise
    return [list(sockets) for sockets in zip(*opened, strict=True)]


def _add(totals: list[dict[str, int]], stats: Sequence[dict[str, int]]) -> None:
    for total, counts in zip(totals, stats, strict=False):
        for name, value in counts.items():
            total[name] += value
