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
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import load as loading
from benchmarks import machine, programs
from benchmarks.contender import Contender, StartError
from benchmarks.load import LoadError
from benchmarks.neighbours import QUIET, Neighbours
from benchmarks.results import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.load import Load
    from benchmarks.peers import Peer
    from benchmarks.plan import Pace, Settings, Stage
    from benchmarks.workloads import Workload

PATIENCE = 20.0  # beyond a sample's own length: for 1,000 connections, and for answers that are lost


class Work(NamedTuple):
    """What is to be done, how far it is, and whom to tell what goes on."""

    stages: list[Stage]
    pace: Pace
    step: Callable[[str], None]


def measure(peers: list[Peer], workloads: list[Workload], settings: Settings, work: Work) -> Run:
    """Do a whole run.

    Args:
        peers: Who takes part; those whose packages are missing are reported in the result.
        workloads: What they do.
        settings: How long and how often.
        work: The stages to do, and what to tell while they are done.
    """
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
    bench = Bench(run, load, settings, server_core, work)
    neighbours = Neighbours()
    for stage in work.stages:
        bench.stage(stage)
        name = stage.workloads[0].name
        run.neighbours[name] = max(run.neighbours.get(name, 0.0), round(neighbours.used(), 2))
    run.notes += _afterwards(run, work.pace)
    run.seconds = round(work.pace.elapsed, 1)
    return run


def _notes(load: Load, workloads: list[Workload], settings: Settings) -> list[str]:
    notes = []
    if settings.quick:
        notes.append("quick mode: short samples, fewer of them, not all workloads and contenders")
    modes = {each.mode for each in workloads if each.kind != "program"}
    if python := sorted(mode for mode in modes if not load.is_c(mode)):
        notes.append(f"driven by the Python load generator, which may be the bottleneck: {', '.join(python)}")
    if load.core is None:
        notes.append("only one core: server and load generator share it, wall-clock figures mean little")
    cores = len(os.sched_getaffinity(0))
    if any(each.workers >= cores for each in workloads):
        notes.append(f"{cores} cores for two workers and the load generator: figures of workers mean little here")
    if machine.is_privileged() and not machine.dropping_privileges():
        notes.append("servers have root's privileges, so compat has more to look at after each call")
    return notes


def _afterwards(run: Run, pace: Pace) -> list[str]:
    """What was seen only while it ran."""
    notes = []
    if pace.taken < pace.samples:
        notes.append(f"time was over: {pace.samples - pace.taken} samples were not taken")
    most = max(run.neighbours, key=run.neighbours.__getitem__, default="")
    if most and run.neighbours[most] > QUIET:
        notes.append(
            f"other programs used up to {run.neighbours[most]:.1f} of {len(os.sched_getaffinity(0))} cores "
            f"(during {most}): figures stray, run it again when the machine is quiet"
        )
    return notes


class Bench:
    """A run in progress: its settings and where its results go."""

    def __init__(self, run: Run, load: Load, settings: Settings, server_core: int | None, work: Work) -> None:
        self.run = run
        self.load = load
        self.settings = settings
        self.cores = {server_core} if server_core is not None else set()
        self.pace = work.pace
        self.step = work.step

    def stage(self, stage: Stage) -> None:
        """Start servers, warm them up, and take their samples."""
        if self.pace.is_over():
            return
        if not stage.peers:
            self._programs(stage)
            return
        group = list(stage.workloads)
        with self._contenders(self._able(stage), group) as contenders:
            self.step(f"warming up for {stage.title}")
            ready = [each for each in contenders if self._prepare(each, group)]
            self.pace.advance(stage.before)
            for lap in range(stage.laps):
                if lap and self.pace.is_behind():
                    self._leave_out(stage, stage.laps - lap)
                    break
                self._lap(stage, ready if lap % 2 == 0 else ready[::-1])

    def _lap(self, stage: Stage, ready: list[Contender]) -> None:
        """One sample of each workload from each server; those that have failed count as done."""
        failed = len(stage.contenders) - len(ready)
        for workload in stage.workloads:
            seconds = stage.sample(workload)
            self.pace.advance(seconds * failed, failed)
            for contender in ready:
                self.step(workload.title)
                if self.pace.is_over():
                    return
                self._sample(contender, workload)
                self.pace.advance(seconds, 1)

    def _leave_out(self, stage: Stage, laps: int) -> None:
        """Quick mode is late, so what has been measured once is not measured again."""
        number = laps * len(stage.contenders)
        for workload in stage.workloads:
            self.pace.drop(stage.sample(workload) * number, number)
        note = "the machine was slow or busy: some figures are from fewer samples"
        if note not in self.run.notes:
            self.run.notes.append(note)

    def _able(self, stage: Stage) -> list[Peer]:
        """Those who did not fail in every workload of an earlier round."""
        return [
            peer
            for peer in stage.peers
            if not all(self.run.result(each.name, peer.name).failed for each in stage.workloads)
        ]

    @contextlib.contextmanager
    def _contenders(self, peers: list[Peer], group: list[Workload]) -> Iterator[list[Contender]]:
        """Servers that are up; all are started before the first is waited for."""
        workload = group[0]
        self.step(f"starting servers for {workload.title}")
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
                connections=workload.connections,
                size=workload.size,
                depth=workload.depth,
                seconds=seconds,
                pids=",".join(map(str, contender.pids())),
            )
        except LoadError as error:
            words = contender.last_words()
            raise LoadError(f"{error}; the server said: {words}" if words else str(error)) from None
        return workload.sample(figures)

    def _programs(self, stage: Stage) -> None:
        (workload,) = stage.workloads
        for name in stage.contenders:
            self.step(workload.title)
            if self.pace.is_over():
                return
            with self._recorded([workload], name):
                value = programs.run(workload, name, self.cores)
                self.run.result(workload.name, name).samples.append({"value": value})
            self.pace.advance(stage.sample(workload), 1)
