"""What is shown while a run goes on, on stderr: a bar where rich is installed, else a line for each step."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class PlainProgress:
    """A line per step, for logs and for environments without rich."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, text: str, count: int = 0) -> None:
        """Say what is going on; `count` more samples are done."""
        self._done += count
        if text != self._last:
            print(f"[{self._done}/{self._total}] {text}", file=sys.stderr, flush=True)
        self._last = text


class RichProgress:
    """A bar with the time that is left."""

    def __init__(self, total: int) -> None:
        bar = importlib.import_module("rich.progress")
        self._progress = bar.Progress(
            bar.BarColumn(24),
            bar.MofNCompleteColumn(),
            bar.TimeRemainingColumn(),
            bar.TextColumn("{task.description}"),
            console=importlib.import_module("rich.console").Console(stderr=True),
            refresh_per_second=2,  # it shares the load generator's core
        )
        self._task = self._progress.add_task("starting", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, text: str, count: int = 0) -> None:
        """Say what is going on; `count` more samples are done."""
        self._progress.update(self._task, description=text, advance=count)


def progress(total: int) -> PlainProgress | RichProgress:
    """A bar when someone watches and rich is there, else lines."""
    if not sys.stderr.isatty():
        return PlainProgress(total)
    try:
        return RichProgress(total)
    except ImportError:
        return PlainProgress(total)
