"""Tally: what all workers have counted, those that have ended included. See workers.py.

Workers report each second by themselves, and at once when asked. The counters of a worker that has ended stay with its
slot, so they never go backwards; of one that was killed those of its last second are missing.
"""

from __future__ import annotations

import json
import time
import zlib
from typing import TYPE_CHECKING

from ..monitoring.metrics import Row
from ..monitoring.monitor import respond
from ..net.addresses import distinct_labels, label_of
from ..servers.stats import add, retired, stats_of
from .drops import drops_of
from .process import STATS
from .slot import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..monitoring import http
    from ..servers.stats import Reading, ServerStats
    from .slot import Slot, Worker

# Seconds that a busy worker has for its counters when they are asked for.
_PATIENCE = 1.0


class Tally:
    """Adds up the workers' readings.

    Args:
        slots: of all workers.
        workers: those that live; the supervisor changes it.
        is_ready: tells whether all servers take new work.

    Attributes:
        places: where each server is reached.
        due: when to call `expire()`.
        deaths: workers that ended unasked.
    """

    def __init__(self, slots: Sequence[Slot], workers: set[Worker], is_ready: Callable[[], bool]) -> None:
        self._slots = slots
        self._workers = workers
        self._is_ready = is_ready
        self._asked: set[Worker] = set()
        self._then: list[Callable[[], object]] = []
        self._drops = drops_of(slots)
        self.places: list[str] = distinct_labels(map(label_of, slots[0].sockets))
        self.due: float = NEVER
        self.deaths = 0

    def ask(self, then: Callable[[], object]) -> None:
        """Ask all workers, and call `then` when they have answered; without those that do not within a second."""
        self._then.append(then)
        if len(self._then) > 1:
            return  # they have been asked less than a second ago: one answer does for both
        self._asked = {worker for worker in self._workers if worker.serving}
        self.due = time.monotonic() + _PATIENCE
        for worker in self._asked:
            worker.send(STATS)
        self._answer()

    def take(self, worker: Worker, message: bytes) -> None:
        """Take a worker's report."""
        worker.readings = json.loads(zlib.decompress(message.removeprefix(STATS)))
        if message.startswith(STATS):
            self._forget(worker)

    def bury(self, worker: Worker) -> None:
        """Keep the counters of a worker that has ended."""
        add(worker.slot.retired, [retired(reading) for reading in worker.readings])
        self._forget(worker)

    def leave_sockets(self) -> None:
        """To be called before the supervisor closes its sockets."""
        for slot, drops in zip(self._slots, self._drops, strict=True):
            for reading, one in zip(self._reported(slot), drops, strict=True):
                one.leave(reading.get("datagrams_dropped", 0))

    def expire(self) -> None:
        """Wait for the others no longer."""
        self._asked.clear()
        self._answer()

    def _forget(self, worker: Worker) -> None:
        self._asked.discard(worker)
        self._answer()

    def _answer(self) -> None:
        if not self._asked:
            self.due = NEVER
            then, self._then = self._then, []
            for call in then:
                call()

    # -- as a Program of _monitor.py

    @property
    def ready(self) -> bool:
        """See Program."""
        return self._is_ready()

    def has_other_metrics(self) -> bool:
        """See Program. Nothing else in this process is about the servers: they are in the workers."""
        return False

    def respond(self, request: http.Request, answer: Callable[[http.Response], object]) -> None:
        """Answer a request, with fresh counters when it is about them."""
        if request.path == "/metrics":
            self.ask(lambda: answer(respond(self, request)))
        else:
            answer(respond(self, request))

    def rows(self) -> list[Row]:
        """See Program."""
        taking = sum(worker.taking for worker in self._workers)
        own = Row({"ready": self.ready, "workers": taking, "worker_deaths": self.deaths})
        return [own, *self._readings()]

    def _readings(self) -> list[Row]:
        rows = []
        for number, (slot, drops) in enumerate(zip(self._slots, self._drops, strict=True), 1):
            for place, reading, one in zip(self.places, self._reported(slot), drops, strict=True):
                if "datagrams_dropped" in reading:
                    reading["datagrams_dropped"] = one.count(reading["datagrams_dropped"])
                rows.append(Row(reading, (place, str(number))))
        return rows

    def _reported(self, slot: Slot) -> list[Reading]:
        totals: list[Reading] = [dict(reading) for reading in slot.retired]
        for worker in self._workers:
            if worker.slot is slot:
                add(totals, worker.readings)
        return totals

    def stats(self) -> list[ServerStats]:
        """The counters of all slots together, for each server."""
        totals: dict[str, Reading] = {place: {} for place in self.places}
        for row in self._readings():
            add([totals[row.labels[0]]], [row.reading])
        return [stats_of(reading) for reading in totals.values()]
