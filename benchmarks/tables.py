"""The results as text for a terminal and as Markdown for the README."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.results import Result, Run

HEADINGS = [
    "",
    "best",
    "worst",
    "x best",
    "cold",
    "per second",
    "p50 us",
    "p99 us",
    "lost %",
    "server",
    "load",
]


def number(value: float | None) -> str:
    """Three significant digits, thousands set apart; a dash for nothing."""
    if value is None or math.isnan(value):
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{value:.0%}"


def title(run: Run, peer: str) -> str:
    """The peer's title, or its name when it is one of a program's."""
    found: str = run.peers.get(peer, {}).get("title", peer)
    return found


def row(run: Run, result: Result, best: float) -> list[str]:
    """One line of a workload's table."""
    if not result.samples:
        return [title(run, result.peer), f"failed: {result.error}"]
    ratio = result.best / best if best > 0 else math.nan
    return [
        title(run, result.peer) + (" (!)" if result.error else ""),
        number(result.best),
        number(result.worst),
        number(ratio),
        number(result.best_cold),
        number(result.beside("per_second")),
        number(result.beside("p50_us")),
        number(result.beside("p99_us")),
        number(result.beside("lost_percent")),
        percent(result.beside("server_busy")),
        percent(result.beside("load_busy")),
    ]


def text_table(rows: list[list[str]]) -> str:
    """Aligned columns; a row of two cells is a remark and may be as long as it likes."""
    full = [cells for cells in rows if len(cells) > 2]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)] or [0]
    widths[0] = max(len(cells[0]) for cells in rows)
    lines = []
    for cells in rows:
        if len(cells) <= 2:
            lines.append(f"{cells[0]:<{widths[0]}}  {''.join(cells[1:])}")
            continue
        line = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
        lines.append(f"{cells[0]:<{widths[0]}}  {line}")
    return "\n".join(lines)


def workload_table(run: Run, workload: str) -> list[list[str]]:
    """Headings and rows of one workload, with the columns that have anything to say."""
    results = run.of(workload)
    best = next((result.best for result in results if result.samples), math.nan)
    rows = [HEADINGS, *(row(run, result, best) for result in results)]
    keep = [i for i in range(len(HEADINGS)) if i == 0 or any(len(cells) > 2 and cells[i] != "-" for cells in rows[1:])]
    return [cells if len(cells) == 2 else [cells[i] for i in keep] for cells in rows]


def text(run: Run) -> str:
    """Everything, for a terminal."""
    parts = []
    for name, workload in run.workloads.items():
        if run.of(name):
            parts.append(f"{workload['title']}  [{workload['unit']}]\n{text_table(workload_table(run, name))}")
    missing = [f"{peer['title']}: {peer['missing']}" for peer in run.peers.values() if peer["missing"]]
    parts += [f"not taking part: {line}" for line in missing]
    parts += [f"note: {note}" for note in run.notes]
    return "\n\n".join(parts)
