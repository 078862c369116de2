"""Watchdog: reports the program's state to systemd, and ends workers whose loop is stuck.

A program in one process pings from its loop, so that systemd notices when that is stuck. No handler
can block a supervisor: it pings for itself, and aborts stuck workers as systemd would a program.

    silent -> stuck -> killed      logged; asked for its stacks; these logged
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from .._logger import logger as _logger
from .slot import DUMP, NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..monitoring.notify import NotifySocket
    from ..reports.stats import ServerStats
    from .slot import Slot, Worker

# Seconds without a message from a worker until that is logged. Where systemd's watchdog sets the
# time until it is stuck, that is at least the second number.
_SILENCE, _LEAST_SILENCE = 10.0, 3.0
# Seconds between two reports of a worker at most, and at least how many it sends in the
# time it has.
_REPORT_EVERY, _REPORTS = 1.0, 4
# Seconds that a stuck worker has to write its stacks.
_WRITING = 1.0
# Seconds late from which on the supervisor itself must have been stopped, and most likely the
# workers with it.
_LATE = 1.0
# Seconds that a worker aborted for systemd has for a core dump.
_GRACE = 5.0


class Watchdog:
    """Reports to systemd, and aborts stuck workers if systemd watches the program.

    Args:
        notify: systemd's socket.
        slots, workers, stats: of all workers.
        stuck_timeout: seconds without a message until a worker is stuck; 0 for no limit of ours.

    Attributes:
        report_every: seconds between two reports of a worker.
    """

    def __init__(
        self,
        notify: NotifySocket,
        slots: Sequence[Slot],
        workers: Iterable[Worker],
        stats: Callable[[], list[ServerStats]],
        stuck_timeout: float,
    ) -> None:
        self._notify = notify
        self._slots = slots
        self._workers = workers
        self._stats = stats
        self._limit = min(stuck_timeout or NEVER, max(notify.watchdog, _LEAST_SILENCE))
        self._silence = min(_SILENCE, self._limit)
        self.report_every: float = min(_REPORT_EVERY, self._limit / _REPORTS)
        self._pulse_at = time.monotonic() + notify.pulse_every
        self._starting = True  # the program, or new workers on SIGHUP
        self._stopping = False
        self._note = ""

    @property
    def due(self) -> float:
        """When to call `expire()`."""
        times = [(worker.silent_at, worker.stuck_at, worker.abort_at) for worker in self._workers]
        return min([self._pulse_at, *(one for three in times for one in three)])

    def expire(self, due: float) -> None:
        """Ping, and look for stuck workers. `due` is the time for which this call was planned."""
        now = time.monotonic()
        for worker in self._workers:
            if min(worker.silent_at, worker.stuck_at, worker.abort_at) > now:
                continue
            if now - due > _LATE:
                self.note_message(worker)
            elif worker.kill_at < NEVER:  # it is ending
                worker.silent_at = worker.stuck_at = worker.abort_at = NEVER
            else:
                self._on_silence(worker, now)
        if self._pulse_at <= now:
            self._pulse_at = now + self._notify.pulse_every
            self._notify.pulse(self._stats())

    def note_message(self, worker: Worker) -> None:
        """Note that a worker has sent a message."""
        now = time.monotonic()
        worker.silent_at, worker.stuck_at = now + self._silence, now + self._limit
        worker.abort_at = NEVER

    def _on_silence(self, worker: Worker, now: float) -> None:
        if worker.silent_at <= now:
            worker.silent_at = NEVER
            _logger.error("worker %d has said nothing for %g s: does a handler block?", worker.pid, self._silence)
        if worker.stuck_at <= now:
            worker.stuck_at, worker.abort_at = NEVER, now + _WRITING
            worker.send_signal(DUMP)
        elif worker.abort_at <= now:
            worker.abort_at = NEVER
            self._abort(worker, now)

    def _abort(self, worker: Worker, now: float) -> None:
        stacks = worker.stacks() or "it has not told where"
        _logger.error("worker %d is killed, its loop has been stuck for %g s:\n%s", worker.pid, self._limit, stacks)
        if self._notify.watchdog < NEVER:  # as systemd does: there may be a core dump
            worker.kill_at = now + _GRACE
            worker.send_signal(signal.SIGABRT)
        else:
            worker.send_signal(signal.SIGKILL)

    def reload(self) -> None:
        """Report that new workers are being started."""
        self._starting, self._note = True, ""
        self._notify.reloading()

    def note_failure(self) -> None:
        """Note for people that a new worker could not start: systemd has no failed reload."""
        self._note = ", but new workers could not start (see the log)"

    def report_if_ready(self) -> None:
        """End a start or reload if every slot has a serving worker and no successor is starting."""
        if self._starting and not self._stopping and all(slot.settled for slot in self._slots):
            self._starting = False
            self._notify.ready(self._note)

    def stop(self) -> None:
        """Report that the end has begun."""
        self._stopping = True
        self._notify.stopping()
