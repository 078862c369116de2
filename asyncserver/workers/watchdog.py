"""Watchdog: reports the program's state to systemd, and aborts workers whose loop is stuck.

A program in one process pings from its loop, so that systemd notices when that is stuck. No handler
can block a supervisor: it pings for itself, and aborts stuck workers as systemd would a program.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from .._logger import logger as _logger
from .slot import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..monitoring.notify import NotifySocket
    from ..servers.stats import ServerStats
    from .slot import Slot, Worker

# Seconds without a message until a worker's loop counts as stuck; a worker reports each second.
# Where systemd's watchdog sets the time, it is at least the second number.
_SILENCE, _LEAST_SILENCE = 10.0, 3.0
# Seconds late from which on the supervisor itself must have been stopped, and most likely the
# workers with it.
_LATE = 1.0
# Seconds that an aborted worker has for faulthandler's traceback or a core dump.
_GRACE = 5.0


class Watchdog:
    """Reports to systemd, and aborts stuck workers if systemd watches the program.

    Args:
        notify: systemd's socket.
        slots: of all workers.
        workers: those alive; the supervisor changes it.
        stats: returns the counters of all workers.
    """

    def __init__(
        self,
        notify: NotifySocket,
        slots: Sequence[Slot],
        workers: Iterable[Worker],
        stats: Callable[[], list[ServerStats]],
    ) -> None:
        self._notify = notify
        self._slots = slots
        self._workers = workers
        self._stats = stats
        self._silence = _SILENCE if notify.watchdog == NEVER else max(notify.watchdog, _LEAST_SILENCE)
        self._pulse_at = time.monotonic() + notify.pulse_every
        self._starting = True  # the program, or new workers on SIGHUP
        self._stopping = False
        self._note = ""

    @property
    def due(self) -> float:
        """When to call `expire()`."""
        return min([self._pulse_at, *(worker.silent_at for worker in self._workers)])

    def expire(self, due: float) -> None:
        """Ping, and look for stuck workers. `due` is the time for which this call was planned."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.silent_at <= now:
                worker.silent_at = NEVER
                if now - due > _LATE:
                    self.note_message(worker)
                elif worker.kill_at == NEVER:  # it is not ending
                    self._on_silence(worker)
        if self._pulse_at <= now:
            self._pulse_at = now + self._notify.pulse_every
            self._notify.pulse(self._stats())

    def note_message(self, worker: Worker) -> None:
        """Note that a worker has sent a message."""
        worker.silent_at = time.monotonic() + self._silence

    def _on_silence(self, worker: Worker) -> None:
        _logger.error("worker %d has said nothing for %g s: does a handler block?", worker.pid, self._silence)
        if self._notify.watchdog < NEVER:
            worker.kill_at = time.monotonic() + _GRACE
            # As systemd does: faulthandler writes where it is stuck.
            worker.send_signal(signal.SIGABRT)

    def reload(self) -> None:
        """Report that new workers are being started."""
        self._starting, self._note = True, ""
        self._notify.reloading()

    def note_failure(self) -> None:
        """Note for people that a new worker could not start: systemd has no failed reload."""
        self._note = ", but new workers could not start (see the log)"

    def report_if_ready(self) -> None:
        """End a start or reload if every slot has a serving worker and no successor is starting."""
        ready = all(one.worker and one.worker.serving and one.successor is None for one in self._slots)
        if self._starting and not self._stopping and ready:
            self._starting = False
            self._notify.ready(self._note)

    def stop(self) -> None:
        """Report that the end has begun."""
        self._stopping = True
        self._notify.stopping()

    def close(self) -> None:
        """Send nothing more."""
        self._notify.close()
