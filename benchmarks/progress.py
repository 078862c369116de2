"""What is shown while a run goes on, on stderr: a bar where rich is installed, else a line for each step."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Self

from benchmarks.plan import clock

if TYPE_CHECKING:
    from types import TracebackType

    from benchmarks.plan import Pace


def state(pace: Pace) -> str:
    """How far a run is: samples, the time that it took, and about how much is left."""
    return f"{pace.taken}/{pace.samples} samples, {clock(pace.elapsed)} so far, about {clock(pace.left())} left"


class PlainProgress:
    """A line per step, for logs and for environments without rich."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, text: str) -> None:
        """Say what is going on."""
        if text != self._last:
            print(f"[{state(self._pace)}] {text}", file=sys.stderr, flush=True)
        self._last = text


class RichProgress:
    """A bar as long as the run takes, whose steps are not equally long."""

    def __init__(self, pace: Pace) -> None:
        bar = importlib.import_module("rich.progress")
        self._pace = pace
        self._progress = bar.Progress(
            bar.BarColumn(24),
            bar.TextColumn("{task.description}"),
            console=importlib.import_module("rich.console").Console(stderr=True),
            refresh_per_second=2,  # it shares the load generator's core
        )
        self._task = self._progress.add_task("starting", total=pace.planned)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, text: str) -> None:
        """Say what is going on."""
        pace = self._pace
        short = f"{pace.taken}/{pace.samples}, about {clock(pace.left())} left: {text}"
        self._progress.update(self._task, description=short, completed=pace.done, total=pace.planned)


def progress(pace: Pace) -> PlainProgress | RichProgress:
    """A bar when someone watches and rich is there, else lines."""
    if not sys.stderr.isatty():
        return PlainProgress(pace)
    try:
        return RichProgress(pace)
    except ImportError:
        return PlainProgress(pace)
