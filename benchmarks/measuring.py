"""The rounds: every contender does every workload once a round, in turn, so that drift hits all alike.

Each round starts new server processes, which samples what differs from start to start (addresses, hash
seeds), lets them do a cold run, warms them up, and then goes through the workloads of their kind with all of
them. Quick mode starts them once and goes several times through the workloads.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import tempfile
import time
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import load as loading
from benchmarks import machine, programs
from benchmarks.contender import Contender, StartError
from benchmarks.load import LoadError
from benchmarks.results import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.load import Load
    from benchmarks.peers import Peer
    from benchmarks.workloads import Workload

    Step = Callable[[str, int], None]

QUICK_IDLE = 2000
QUICK_BUDGET = 45.0  # seconds; the whole needs some 70 s of CPU time and should end within 120 s on a busy machine too
PATIENCE = 20.0  # beyond a sample's own length: for 1,000 connections, and for answers that are lost


@dataclass(frozen=True)
class Settings:
    """How long and how often.

    Attributes:
        rounds: How often each contender does each workload; in quick mode with the same server processes, except
            for memory, and for what is not a server, which are measured once.
        seconds: Length of one sample.
        warm_up: Operations before the first sample.
        quick: See `rounds`; and memory is measured with fewer connections.
        python_load: Use the Python load generator even where C would do.
    """

    rounds: int = 5
    seconds: float = 1.0
    warm_up: int = 4000
    quick: bool = False
    python_load: bool = False

    def laps(self, workload: Workload) -> int:
        """How often the workload is done with the same processes."""
        return self.rounds if self.quick and not workload.fresh and workload.kind != "program" else 1

    @property
    def starts(self) -> int:
        """How often servers are started anew."""
        return 1 if self.quick else self.rounds

    def connections(self, workload: Workload) -> int:
        """Connections of a workload."""
        return min(workload.connections, QUICK_IDLE) if self.quick and workload.mode == "idle" else workload.connections


def total_steps(peers: list[Peer], workloads: list[Workload], settings: Settings) -> int:
    """The number of samples that a run will take."""
    return settings.starts * sum(
        settings.laps(each) * len(programs.contenders(each) or _fit(peers, each)) for each in workloads
    )


def measure(peers: list[Peer], workloads: list[Workload], settings: Settings, step: Step) -> Run:
    """Do a whole run.

    Args:
        peers: Who takes part; those whose packages are missing are reported in the result.
        workloads: What they do.
        settings: How long and how often.
        step: Called with what goes on and how many more samples are done.
    """
    begun = time.monotonic()
    server_core, load_core = machine.choose_cores()
    load = loading.Load(None, c_tls=False, core=load_core) if settings.python_load else loading.build(load_core)
    run = Run(
        started=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        settings={
            "rounds": settings.rounds,
            "seconds_per_sample": settings.seconds,
            "quick": settings.quick,
            "server_core": server_core,
            "load_core": load_core,
            "load": "C" if load.c else "Python",
        },
        machine=machine.describe(),
        peers={peer.name: peer.describe() for peer in peers},
        workloads={each.name: {"title": each.title, "unit": each.unit} for each in workloads},
        notes=_notes(load, workloads, settings),
    )
    bench = Bench(run, load, settings, server_core, step)
    present = [peer for peer in peers if peer.missing() is None]
    for turn in range(settings.starts):
        for _, group in groupby(workloads, key=lambda each: each.group):
            bench.round(present if turn % 2 == 0 else present[::-1], list(group))
    run.seconds = round(time.monotonic() - begun, 1)
    return run


def _notes(load: Load, workloads: list[Workload], settings: Settings) -> list[str]:
    notes = []
    if settings.quick:
        notes.append(f"quick mode: short samples, fewer workloads, memory with {QUICK_IDLE:,} connections at most")
    modes = {each.mode for each in workloads if each.kind != "program"}
    if python := sorted(mode for mode in modes if not load.is_c(mode)):
        notes.append(f"driven by the Python load generator, which may be the bottleneck: {', '.join(python)}")
    if load.core is None:
        notes.append("only one core: server and load generator share it, wall-clock figures mean little")
    cores = len(os.sched_getaffinity(0))
    if any(each.workers >= cores for each in workloads):
        notes.append(f"{cores} cores for two workers and the load generator: figures of workers mean little here")
    return notes


def _fit(peers: list[Peer], workload: Workload) -> list[Peer]:
    return [peer for peer in peers if workload.kind in peer.kinds and workload.suits(peer.name)]


class Bench:
    """A run in progress: its settings and where its results go."""

    def __init__(self, run: Run, load: Load, settings: Settings, server_core: int | None, step: Step) -> None:
        self.run = run
        self.load = load
        self.settings = settings
        self.cores = {server_core} if server_core is not None else set()
        self.step = step
        self.extra_laps_until = time.monotonic() + QUICK_BUDGET

    def round(self, peers: list[Peer], group: list[Workload]) -> None:
        """One round of the workloads that share a kind of server."""
        if group[0].kind == "program":
            for workload in group:
                self._programs(workload)
            return
        with self._contenders(self._able(peers, group), group) as contenders:
            self.step(f"warming up for {group[0].title}", 0)
            ready = [each for each in contenders if self._prepare(each, group)]
            for lap in range(self.settings.laps(group[0])):
                if lap and self._late():
                    self.step(group[0].title, len(ready) * len(group))
                    continue
                for workload in group:
                    for contender in ready if lap % 2 == 0 else ready[::-1]:
                        self.step(workload.title, 0)
                        self._sample(contender, workload)
                        self.step(workload.title, 1)

    def _late(self) -> bool:
        """Whether quick mode has used up its time, so that what is left is done once only; noted in the run."""
        if not self.settings.quick or time.monotonic() < self.extra_laps_until:
            return False
        note = "the machine was slow or busy: some figures are from fewer rounds"
        if note not in self.run.notes:
            self.run.notes.append(note)
        return True

    def _able(self, peers: list[Peer], group: list[Workload]) -> list[Peer]:
        """Those who have the kind of server and did not fail in every workload of an earlier round."""
        return [
            peer
            for peer in _fit(peers, group[0])
            if not all(self.run.result(each.name, peer.name).failed for each in group)
        ]

    @contextlib.contextmanager
    def _contenders(self, peers: list[Peer], group: list[Workload]) -> Iterator[list[Contender]]:
        """Servers that are up; all are started before the first is waited for."""
        workload = group[0]
        self.step(f"starting servers for {workload.title}", 0)
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            if workload.kind == "tls":
                programs.write_certificate(Path(folder) / "server.pem")
            cores = self.cores if workload.workers == 1 else set()
            started = []
            for peer in peers:
                with self._recorded(group, peer.name):
                    contender = Contender(
                        peer, workload.kind, folder=Path(folder), cores=cores, workers=workload.workers
                    )
                    stack.callback(contender.stop)
                    started.append(contender)
            up = []
            for contender in started:
                with self._recorded(group, contender.peer.name):
                    contender.wait_until_ready()
                    up.append(contender)
            yield up

    @contextlib.contextmanager
    def _recorded(self, workloads: list[Workload], peer: str) -> Iterator[None]:
        """A contender that fails is recorded with its reason; the run goes on."""
        try:
            yield
        except (StartError, LoadError, programs.ProgramError) as error:
            for workload in workloads:
                self.run.result(workload.name, peer).error = str(error)

    def _prepare(self, contender: Contender, group: list[Workload]) -> bool:
        first, name, warm = group[0], contender.peer.name, False
        with self._recorded(group, name):
            if first.mode in {"tcp", "unix", "tls", "udp"}:
                cold = self._drive(contender, first, self.settings.seconds / 2)
                self.run.result(first.name, name).cold.append(cold)
            contender.warm_up(self.load, self.settings.warm_up)
            warm = True
        return warm  # noqa: RET504 - false when a failure was recorded instead

    def _sample(self, contender: Contender, workload: Workload) -> None:
        result = self.run.result(workload.name, contender.peer.name)
        with self._recorded([workload], contender.peer.name):
            result.samples.append(self._drive(contender, workload, self.settings.seconds))

    def _drive(self, contender: Contender, workload: Workload, seconds: float) -> dict[str, float]:
        try:
            figures = self.load.run(
                workload.mode,
                contender.address,
                patience=seconds + PATIENCE,
                connections=self.settings.connections(workload),
                size=workload.size,
                depth=workload.depth,
                seconds=seconds,
                pids=",".join(map(str, contender.pids())),
            )
        except LoadError as error:
            words = contender.last_words()
            raise LoadError(f"{error}; the server said: {words}" if words else str(error)) from None
        return workload.sample(figures)

    def _programs(self, workload: Workload) -> None:
        for name in programs.contenders(workload):
            self.step(workload.title, 1)
            with self._recorded([workload], name):
                value = programs.run(workload, name, self.cores)
                self.run.result(workload.name, name).samples.append({"value": value})
