"""Counters: the sums of all workers' counters, including those of workers that have ended.

Workers report each second, and when asked. The counters of a worker that has ended are kept in its
slot, so that the sums never decrease; what a killed worker counted in its last second is missing.
"""

from __future__ import annotations

import json
import time
import zlib
from typing import TYPE_CHECKING

from .._logger import logger as _logger
from ..monitoring.metrics import Row, summed
from ..monitoring.monitor import respond
from ..net.addresses import distinct_labels, label_of
from ..reports.logs import closed
from ..reports.stats import add, retired, split_drain, stats_of
from .drops import drops_of
from .process import STATS
from .slot import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..leaving.stopping import Stopping
    from ..monitoring import http
    from ..reports.stats import Reading, ServerStats
    from .slot import Slot, Worker

# Seconds to wait for the reports of busy workers.
_PATIENCE = 1.0


class Counters:
    """Adds up the workers' readings. `workers` are those alive: the supervisor changes it.

    Attributes:
        places: the label of each server.
        due: when to call `expire()`.
        deaths: how many workers ended unasked.
    """

    def __init__(self, slots: Sequence[Slot], workers: set[Worker], stopping: Stopping) -> None:
        self._slots = slots
        self._workers = workers
        self._stopping = stopping
        self._asked: set[Worker] = set()
        self._callbacks: list[Callable[[], object]] = []
        self._drops = drops_of(slots)
        self.places: list[str] = distinct_labels(map(label_of, slots[0].sockets))
        self.due: float = NEVER
        self.deaths = 0
        self._closing_since: float | None = None

    def ask(self, callback: Callable[[], object]) -> None:
        """Ask all workers for reports, and call back when all have come, or after a second."""
        self._callbacks.append(callback)
        if len(self._callbacks) > 1:
            return  # asked less than a second ago: the same reports serve both
        self._asked = {worker for worker in self._workers if worker.serving}
        self.due = time.monotonic() + _PATIENCE
        for worker in self._asked:
            worker.send(STATS)
        self._call_back()

    def store(self, worker: Worker, message: bytes) -> None:
        """Store a worker's report."""
        worker.readings = json.loads(zlib.decompress(message.removeprefix(STATS)))
        if message.startswith(STATS):
            self._expect_no_more(worker)

    def retire(self, worker: Worker) -> None:
        """Keep the counters of a worker that has ended."""
        drain = self._closing_since is not None
        add(worker.slot.retired, [retired(reading, drain=drain) for reading in worker.readings])
        self._expect_no_more(worker)

    def begin_end(self) -> None:
        """To be called when the end begins, before the supervisor closes its sockets."""
        self._closing_since = time.monotonic()
        for slot, drops in zip(self._slots, self._drops, strict=True):
            for reading, one in zip(self._reported(slot), drops, strict=True):
                one.freeze(reading.get("datagrams_dropped", 0))

    def expire(self) -> None:
        """Call back without the reports that have not come."""
        self._asked.clear()
        self._call_back()

    def _expect_no_more(self, worker: Worker) -> None:
        self._asked.discard(worker)
        self._call_back()

    def _call_back(self) -> None:
        if not self._asked:
            self.due = NEVER
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback()

    # -- as a Program of monitoring/monitor.py

    has_other_metrics = False  # those of this process are not about the workers' servers

    @property
    def ready(self) -> bool:
        """Whether every slot has a worker that takes new work, and no signal to stop has come."""
        return not self._stopping.stopping and all(
            slot.worker is not None and slot.worker.taking for slot in self._slots
        )

    def respond(self, request: http.Request, answer: Callable[[http.Response], object]) -> None:
        """Answer a request; one for metrics gets fresh counters."""
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
        """The sums over all slots, for each server."""
        return [stats_of(row.reading) for row in self._totals()]

    def _totals(self) -> list[Row]:
        return summed(self._readings())

    # -- in the log

    def log_stats(self) -> None:
        """Log what each server has counted; all of it in fields of the record."""
        for row in self._totals():
            _, total = split_drain(row.reading)
            place = row.labels[0]
            fields = {f"total_{name}": value for name, value in total.items()}
            _logger.info("on %s: %s", place, stats_of(row.reading), extra={"server": place, **fields})

    def log_end(self) -> None:
        """Log that all workers' parts of each server have closed."""
        seconds = 0.0 if self._closing_since is None else time.monotonic() - self._closing_since
        for row in self._totals():
            report, total = split_drain(row.reading)
            _logger.debug("on %s: %s", row.labels[0], stats_of(row.reading))
            closed(row.labels[0], report, seconds, total)
