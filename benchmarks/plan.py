"""What a run will do and about how long it takes: known before it starts, and kept to in quick mode.

A run is a row of stages. In each, servers of one kind are started, warmed up and measured in turn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from benchmarks import programs

if TYPE_CHECKING:
    from benchmarks.peers import Peer
    from benchmarks.workloads import Workload

# Seconds on an idle machine with two cores of 2.6 GHz, as measured; a busy one takes longer.
START = 0.09  # a server, while others start too
WARM_UP = 0.1  # and 60 us for each operation
AROUND = 0.025  # a sample, for the load generator's own start and end
PER_IDLE = 0.0004  # a connection that is held idle, and one of those before it
IDLE_BEFORE = 500  # load.c's IDLE_WARMUP
PROGRAM = {"shutdown": 4.0, "import": 0.8}

# Quick mode. Samples after the first are left out where the run is slower than QUICK_GOAL, so that each workload loses
# alike, and QUICK_SLACK late: to compile the C programs takes as long. At QUICK_LIMIT it ends.
QUICK_GOAL = 120.0
QUICK_SLACK = 10.0
QUICK_LIMIT = 180.0


@dataclass(frozen=True)
class Settings:
    """How long and how often.

    Attributes:
        rounds: How often each contender does each workload; in quick mode with the same server processes, except
            for memory, and for what is not a server, which are measured once.
        seconds: Length of one sample. Five rounds of a second take three times as long, and find the same.
        warm_up: Operations before the first sample.
        quick: See `rounds`; and the run ends in time.
        python_load: Use the Python load generator even where C would do.
    """

    rounds: int = 3
    seconds: float = 0.4
    warm_up: int = 4000
    quick: bool = False
    python_load: bool = False

    @property
    def starts(self) -> int:
        """How often servers are started anew."""
        return 1 if self.quick else self.rounds


@dataclass(frozen=True)
class Stage:
    """Workloads of one kind of server, measured in turn on the same processes.

    Attributes:
        workloads: What is done.
        contenders: Names of those who do it.
        peers: The same as peers; empty for programs, which are no servers.
        laps: How often each sample is taken.
    """

    workloads: tuple[Workload, ...]
    contenders: tuple[str, ...]
    peers: tuple[Peer, ...]
    laps: int
    settings: Settings

    @property
    def title(self) -> str:
        """What it is called while it goes on."""
        return self.workloads[0].title

    @property
    def samples(self) -> int:
        """How many it takes."""
        return self.laps * len(self.workloads) * len(self.contenders)

    @property
    def before(self) -> float:
        """Seconds until all servers are up and warm."""
        each = START + WARM_UP + self.settings.seconds / 2 + 6e-5 * self.settings.warm_up
        return each * len(self.peers)

    def sample(self, workload: Workload) -> float:
        """Seconds of one sample."""
        if workload.kind == "program":
            return PROGRAM[workload.mode]
        if workload.mode == "idle":
            return AROUND + PER_IDLE * (workload.connections + IDLE_BEFORE)
        return AROUND + self.settings.seconds

    @property
    def seconds(self) -> float:
        """Of the whole stage."""
        lap = sum(self.sample(each) for each in self.workloads) * len(self.contenders)
        return self.before + self.laps * lap


def stages(peers: list[Peer], workloads: list[Workload], settings: Settings) -> list[Stage]:
    """What a run of these peers, who are all present, will do."""
    planned = []
    for turn in range(settings.starts):
        for _, group in groupby(workloads, key=lambda each: each.group):
            planned += _stages_of(list(group), peers if turn % 2 == 0 else peers[::-1], settings)
    return planned


def _stages_of(group: list[Workload], peers: list[Peer], settings: Settings) -> list[Stage]:
    first = group[0]
    if first.kind == "program":
        return [Stage((each,), tuple(programs.contenders(each)), (), 1, settings) for each in group]
    fit = tuple(peer for peer in peers if first.kind in peer.kinds and first.suits(peer.name))
    laps = settings.rounds if settings.quick and not first.fresh else 1
    return [Stage(tuple(group), tuple(peer.name for peer in fit), fit, laps, settings)] if fit else []


class Pace:
    """How far a run is, in samples and in seconds of its plan, and how fast it gets on."""

    def __init__(self, planned: list[Stage], *, quick: bool) -> None:
        self.samples = sum(stage.samples for stage in planned)
        self.taken = 0
        self.planned = sum(stage.seconds for stage in planned)
        self.done = 0.0  # of the planned seconds
        self.begun = time.monotonic()
        self._quick = quick
        self._allowance = max(QUICK_GOAL / self.planned, 1.0) if self.planned else 1.0

    def start(self) -> None:
        """The run begins now."""
        self.begun = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begun

    def left(self) -> float:
        """About how many seconds are left, at the pace so far."""
        left = self.planned - self.done
        left *= self.elapsed / self.done if self.done > 0.1 * self.planned else 1.0
        return min(left, max(QUICK_LIMIT - self.elapsed, 0.0)) if self._quick else left

    def advance(self, seconds: float, samples: int = 0) -> None:
        """So much of the plan is done."""
        self.done += seconds
        self.taken += samples

    def drop(self, seconds: float, samples: int) -> None:
        """So much of the plan will not be done."""
        self.planned -= seconds
        self.samples -= samples

    def is_behind(self) -> bool:
        """Whether there is no time for another sample of what has one."""
        return self._quick and self.elapsed > self.done * self._allowance + QUICK_SLACK

    def is_over(self) -> bool:
        """Whether there is no time for anything."""
        return self._quick and self.elapsed > QUICK_LIMIT


def clock(seconds: float) -> str:
    """Minutes and seconds, as a clock shows them."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def in_words(seconds: float) -> str:
    """About how long: seconds, or minutes from two on."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
