"""What other programs take of the cores that a run uses: none, or its figures mean little."""

from __future__ import annotations

import os
import time
from pathlib import Path

# Of one core: what a desktop or a few daemons take. More is told.
QUIET = 0.2


class Neighbours:
    """Other programs' CPU time on our cores, by proc_stat(5)."""

    def __init__(self) -> None:
        self.cores = os.sched_getaffinity(0)
        self._last = self._read()

    def used(self) -> float:
        """How many cores they have used on average since the last call; when none of our children runs."""
        before, self._last = self._last, self._read()
        elapsed, busy, ours = (now - then for now, then in zip(self._last, before, strict=True))
        return max(busy - ours, 0.0) / elapsed if elapsed > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        """Now, and CPU seconds until now: of everyone, and of us with all children that have ended."""
        return time.monotonic(), busy_seconds(Path("/proc/stat").read_text(), self.cores), sum(os.times()[:4])


def busy_seconds(stat: str, cores: set[int]) -> float:
    """CPU seconds of all programs on these cores; time stolen by the host's other guests counts too."""
    ticks = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name.removeprefix("cpu").isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, _irq, _softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def now(seconds: float = 0.5) -> float:
    """How many of our cores other programs use at the moment."""
    neighbours = Neighbours()
    time.sleep(seconds)
    return neighbours.used()
