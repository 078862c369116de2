"""The results as text for a terminal and as Markdown for the README."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from benchmarks import targets

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

INTRODUCTION = """\
What is compared is the CPU time that a server takes for one operation, unless a table says otherwise; less is better.
*best* and *worst* are the cheapest and the dearest sample, *x best* is the best as a multiple of the leader's, *cold*
is the first sample of a new process. The columns behind them belong to the best sample: operations per second, how long
half and 99 % of the answers took at most, what was lost, and how busy server and load generator kept their cores. A
load generator at 100 % limits the operations per second, but not the CPU time. Ratios travel to other machines, figures
do not. `python -m benchmarks --page FOLDER` has made this page; the README of `benchmarks` says how it measures."""


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
    ratio = result.best / best
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


def base(run: Run, workload: str) -> float:
    """The best figure that is not zero (the C server holds no memory for a connection), NaN if there is none."""
    return next((result.best for result in run.of(workload) if result.best > 0), math.nan)


def text_table(rows: list[list[str]], left: int = 1) -> str:
    """Aligned columns, the first ones to the left; a row of two cells is a remark as long as it likes."""
    full = [cells for cells in rows if len(cells) > 2]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)] or [0]
    widths[0] = max(len(cells[0]) for cells in rows)
    lines = []
    for cells in rows:
        if len(cells) <= 2:
            lines.append(f"{cells[0]:<{widths[0]}}  {''.join(cells[1:])}")
            continue
        padded = [
            f"{cell:<{width}}" if i < left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def workload_table(run: Run, workload: str) -> list[list[str]]:
    """Headings and rows of one workload, with the columns that have anything to say."""
    rows = [HEADINGS, *(row(run, result, base(run, workload)) for result in run.of(workload))]
    keep = [i for i in range(len(HEADINGS)) if i == 0 or any(len(cells) > 2 and cells[i] != "-" for cells in rows[1:])]
    return [cells if len(cells) == 2 else [cells[i] for i in keep] for cells in rows]


def text(run: Run) -> str:
    """Everything, for a terminal."""
    parts = []
    for name, workload in run.workloads.items():
        if run.of(name):
            parts.append(f"{workload['title']}  [{workload['unit']}]\n{text_table(workload_table(run, name))}")
    rows = targets.table(run)
    if len(rows) > 1:
        parts.append("Targets (ratios of the best rounds)\n" + text_table(rows, left=3))
    return "\n\n".join([*parts, "\n".join(remarks(run))])


def remarks(run: Run) -> list[str]:
    """What a reader must know besides the figures."""
    lines = [f"not taking part: {peer['title']}: {peer['missing']}" for peer in run.peers.values() if peer["missing"]]
    if any(result.error and result.samples for result in run.results):
        lines.append("(!) failed in some rounds; see the JSON")
    return lines + [f"note: {note}" for note in run.notes] + strays(run)


def strays(run: Run) -> list[str]:
    """A warning, if best and worst of somebody differ by half: their samples did not meet the same machine."""
    places = []
    for name in run.workloads:
        who = [result.peer for result in run.of(name) if result.strays]
        if who:
            places.append(f"{name} ({', '.join(who) if len(who) <= 2 else f'{len(who)} of {len(run.of(name))}'})")
    if not places:
        return []
    return [f"warning: best and worst sample differ by half or more, so compare with care: {', '.join(places)}"]


def about(run: Run) -> list[str]:
    """When, where and how the run was made."""
    settings, machine = run.settings, run.machine
    versions: dict[str, str] = {}
    for peer in run.peers.values():
        versions |= peer["versions"]
    return [
        f"{run.started[:10]}, {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, {machine['python']}",
        f"{settings['rounds']} rounds of {settings['seconds_per_sample']:g} s per figure"
        + (", quick mode" if settings["quick"] else "")
        + f"; server on core {settings['server_core']}, load generator ({settings['load']}) on {settings['load_core']}",
        ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
    ]


def markdown_table(rows: list[list[str]], left: int = 1) -> str:
    """A table for Markdown; the first row is the heading."""
    width = len(rows[0])
    lines = [cells + [""] * (width - len(cells)) for cells in rows]
    lines.insert(1, ["---"] * left + ["---:"] * (width - left))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def overview(run: Run) -> list[list[str]]:
    """Peers by workloads: each figure as a multiple of the best of its column."""
    names = [name for name in run.workloads if not math.isnan(base(run, name)) and name != "import"]
    rows = [["", *names]]
    for peer in run.peers:
        cells = []
        for name in names:
            figure = run.figure(name, peer)
            cells.append("" if math.isnan(figure) else f"{figure / base(run, name):.2f}")
        if any(cells):
            rows.append([title(run, peer), *cells])
    return rows


def markdown(run: Run, charts: dict[str, str], others: dict[str, str]) -> str:
    """The whole report.

    Args:
        run: The results.
        charts: Workload -> file name of its chart.
        others: Link to another page -> what it is about.
    """
    parts = [f"# Results with {run.machine['python']}", INTRODUCTION]
    parts += [f"The same with {', '.join(f'[{of}]({link})' for link, of in others.items())}."] if others else []
    parts += ["  \n".join(about(run)), "\n".join(f"* {line}" for line in remarks(run))]
    parts += ["## Targets", markdown_table(targets.table(run), left=3)]
    parts += ["## Overview: multiples of the best in each column; less is better", markdown_table(overview(run))]
    for name, workload in run.workloads.items():
        if not run.of(name):
            continue
        parts += [f"## {workload['title']}", f"`{name}`, {workload['unit']}"]
        parts += [f"![{workload['title']}]({charts[name]})"] if name in charts else []
        parts.append(markdown_table(workload_table(run, name)))
    return "\n\n".join(part for part in parts if part) + "\n"
