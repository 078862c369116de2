"""Watchdog: what a supervisor tells systemd, and its eye on workers whose loop is stuck. See workers.py.

A program in one process pings from its loop, so that systemd notices when that is stuck. A supervisor has no loop that
a handler could block: it pings for itself, and does to its workers what systemd would do to a program.
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

# Seconds without a word from a worker, which has one to say each second, until its loop counts as stuck; and the
# least, where systemd's watchdog says how many.
_SILENCE, _LEAST_SILENCE = 10.0, 3.0
# Seconds by which we are called too late if we were stopped ourselves, and the workers most likely with us.
_OVERSLEPT = 1.0
# Seconds that an aborted worker has, for faulthandler's traceback or a core dump.
_GRACE = 5.0


class Watchdog:
    """Tells systemd how the workers are, and aborts those that are stuck where systemd would abort a program.

    Args:
        notify: where to tell.
        slots: of all workers.
        workers: those that live; the supervisor changes it.
        stats: tells what they have done.
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
        """Ping, and look for workers that are stuck. `due` is when that was to be done."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.silent_at <= now:
                worker.silent_at = NEVER
                if now - due > _OVERSLEPT:
                    self.note_message(worker)
                elif worker.kill_at == NEVER:  # else told to end already
                    self._blame(worker)
        if self._pulse_at <= now:
            self._pulse_at = now + self._notify.pulse_every
            self._notify.pulse(self._stats())

    def note_message(self, worker: Worker) -> None:
        """A worker has said something."""
        worker.silent_at = time.monotonic() + self._silence

    def _blame(self, worker: Worker) -> None:
        _logger.error("worker %d has said nothing for %g s: does a handler block?", worker.pid, self._silence)
        if self._notify.watchdog < NEVER:
            worker.kill_at = time.monotonic() + _GRACE
            signal.pidfd_send_signal(worker.pidfd, signal.SIGABRT)  # as systemd does; faulthandler tells where

    def reload(self) -> None:
        """New workers are being started."""
        self._starting, self._note = True, ""
        self._notify.reloading()

    def fail(self) -> None:
        """One of them could not start. systemd knows no failed reload, so only people are told."""
        self._note = ", but new workers could not start (see the log)"

    def settle(self) -> None:
        """Tell systemd, if every slot has a worker that serves, and no successor is starting any more."""
        settled = all(one.worker and one.worker.serving and one.successor is None for one in self._slots)
        if self._starting and not self._stopping and settled:
            self._starting = False
            self._notify.ready(self._note)

    def stop(self) -> None:
        """The end has begun."""
        self._stopping = True
        self._notify.stopping()

    def close(self) -> None:
        """Say no more."""
        self._notify.close()
