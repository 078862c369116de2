"""Recycling: workers that are old, or have handled much, are replaced as on SIGHUP, one at a time.

What a program leaks, slowly, ends with the process. What a worker has handled is in the readings
that it sends each second: nothing is counted for this.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from .._logger import logger as _logger
from .slot import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ..leaving.stopping import Stopping
    from .slot import Slot, Worker

# The part of its limits by which a worker may exceed them, at random, so that those that have begun
# together do not end together; as gunicorn's max_requests_jitter, which one has to set there.
_JITTER = 0.1
_random = random.SystemRandom()  # the program's own may be seeded
# Seconds until a worker is tried again whose successor could not start, doubled by each further
# failure; the most.
_BACKOFF, _LONGEST_BACKOFF = 1.0, 60.0


class Recycling:
    """Finds the worker to replace next, while every slot has one that serves and none drains.

    So there is never more than one process too many, and never two start together.

    Args:
        slots, workers, stopping: the supervisor's, which changes them.
        renew: starts a successor in a slot.
        max_requests: connections and datagrams that a worker handles; None for no limit.
        max_age: seconds that a worker lives; None for no limit.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        workers: Collection[Worker],
        stopping: Stopping,
        renew: Callable[[Slot], object],
        *,
        max_requests: int | None,
        max_age: float | None,
    ) -> None:
        self._slots = slots
        self._workers = workers
        self._stopping = stopping
        self._renew = renew
        self._most = NEVER if max_requests is None else max_requests
        self._age = NEVER if max_age is None else max_age
        self._patience: WeakKeyDictionary[Worker, float] = WeakKeyDictionary()
        self._tried: Worker | None = None  # whose successor is starting, or could not
        self._failures = 0
        self._not_before = 0.0

    def note_report(self, worker: Worker) -> None:
        """Note that a worker has reported; its first report comes before it serves."""
        patience = self._patience.setdefault(worker, 1 + _random.uniform(0, _JITTER))
        enough = handled(worker) > self._most * patience - 1  # so that 1 is 1, not 2
        worker.recycle_at = worker.started if enough else worker.started + self._age * patience

    @property
    def due(self) -> float:
        """When to call `expire()`, as far as known now."""
        return self._next()[0]

    def expire(self) -> None:
        """Replace a worker, if it is time to."""
        if self._tried is not None:
            self._judge(self._tried)
        due, worker = self._next()
        if worker is not None and due <= time.monotonic():
            self._tried = worker
            _logger.info(
                "worker %d is %.0f s old, has handled %d connections and datagrams, and goes on until a new one serves",
                worker.pid,
                time.monotonic() - worker.started,
                handled(worker),
            )
            self._renew(worker.slot)

    def _judge(self, tried: Worker) -> None:
        """After a try: wait before the next one, if it has failed."""
        if tried.slot.worker is not tried:
            self._tried, self._failures = None, 0
        elif tried.slot.successor is None and not tried.leaving:
            self._tried = None
            self._not_before = time.monotonic() + min(_BACKOFF * 2.0**self._failures, _LONGEST_BACKOFF)
            self._failures = min(self._failures + 1, 10)  # far beyond the longest

    def _next(self) -> tuple[float, Worker | None]:
        """Say which worker is replaced next, and when."""
        if self._stopping.stopping or not self._idle():
            return NEVER, None
        worker = min((slot.worker for slot in self._slots if slot.worker is not None), key=lambda one: one.recycle_at)
        return max(worker.recycle_at, self._not_before), worker

    def _idle(self) -> bool:
        return all(slot.settled for slot in self._slots) and not any(worker.leaving for worker in self._workers)


def handled(worker: Worker) -> int:
    """Connections that it has accepted and datagrams that it has received, as last reported."""
    return int(sum(one.get("accepted", 0) + one.get("datagrams_received", 0) for one in worker.readings))
