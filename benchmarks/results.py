"""The results of a run: kept as plain data, written as JSON, read back by tables and charts."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path  # noqa: TC003 - dataclasses look at annotations
from typing import Any

FORMAT = 1


@dataclass
class Result:
    """What one peer did in one workload.

    Attributes:
        workload, peer: Their names.
        samples: One per round; `value` is the figure that is compared, the others stand beside it.
        cold: The same from servers that had not been used before, where that was measured.
        error: Why there is no figure, or why there are fewer than rounds.
    """

    workload: str
    peer: str
    samples: list[dict[str, float]] = field(default_factory=list)
    cold: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether there is a reason why there is no figure."""
        return self.error is not None and not self.samples

    @property
    def best(self) -> float:
        """The smallest figure of all rounds: noise only ever adds."""
        return min((sample["value"] for sample in self.samples), default=math.nan)

    @property
    def worst(self) -> float:
        """The largest figure of all rounds."""
        return max((sample["value"] for sample in self.samples), default=math.nan)

    @property
    def best_cold(self) -> float:
        """The smallest cold figure."""
        return min((sample["value"] for sample in self.cold), default=math.nan)

    @property
    def strays(self) -> bool:
        """Whether the worst figure is half as much again as the best, or more: something else was going on."""
        return len(self.samples) > 1 and self.worst >= 1.5 * self.best > 0

    def beside(self, name: str) -> float | None:
        """Another figure of the best round."""
        if not self.samples:
            return None
        return min(self.samples, key=lambda sample: sample["value"]).get(name)


@dataclass
class Run:
    """A whole run.

    Attributes:
        started: Date and time, ISO 8601.
        seconds: How long it took.
        settings: Rounds, quick or not, seconds per sample, cores, which load generator.
        machine: See machine.py.
        peers: Name -> title, versions, and why it is missing if it is.
        workloads: Name -> title and unit.
        results: One per workload and peer that took part.
        notes: What a reader must know before believing the figures.
        neighbours: Workload -> how many of the cores other programs used while it was measured, with its group.
    """

    started: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    peers: dict[str, dict[str, Any]]
    workloads: dict[str, dict[str, Any]]
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    neighbours: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def result(self, workload: str, peer: str) -> Result:
        """The result of a peer in a workload, made empty if there is none yet."""
        for result in self.results:
            if (result.workload, result.peer) == (workload, peer):
                return result
        self.results.append(Result(workload, peer))
        return self.results[-1]

    def figure(self, workload: str, peer: str, *, cold: bool = False) -> float:
        """The best figure, or NaN where there is none."""
        for result in self.results:
            if (result.workload, result.peer) == (workload, peer):
                return result.best_cold if cold else result.best
        return math.nan

    def of(self, workload: str) -> list[Result]:
        """The results of one workload, best first, those without a figure last."""
        found = [result for result in self.results if result.workload == workload]
        return sorted(found, key=lambda result: (math.isnan(result.best), result.best))

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")


def read(path: Path) -> Run:
    """Read a run from JSON.

    Raises:
        ValueError: The file has another format.
    """
    data = json.loads(path.read_text())
    if data.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not a result of format {FORMAT}; run the benchmarks again")
    data["results"] = [Result(**result) for result in data["results"]]
    return Run(**data)
