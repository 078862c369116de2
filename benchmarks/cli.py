"""The command line of `python -m benchmarks`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import charts, guard, measuring, peers, tables, workloads
from benchmarks.progress import progress
from benchmarks.results import read


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the process's exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["report"]:
        return report(words[1:])
    if words[:1] == ["guard"]:
        return guard.main(words[1:])
    parser = _parser()
    options = parser.parse_args(words)
    try:
        chosen = peers.select(options.peer)
        work = workloads.select(options.workload, quick=options.quick)
    except ValueError as error:
        parser.error(str(error))
    return run(chosen, work, options)


def report(words: list[str]) -> int:
    """Make the Markdown report and the charts from a run's JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report", description="Make tables and charts from the JSON of a run."
    )
    parser.add_argument("json", type=Path)
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: beside the JSON")
    options = parser.parse_args(words)
    folder = options.to or options.json.parent
    folder.mkdir(parents=True, exist_ok=True)
    results = read(options.json)
    names = {}
    for workload in results.workloads:
        if (drawing := charts.chart(results, workload)) is not None:
            names[workload] = f"{workload}.svg"
            (folder / names[workload]).write_text(drawing)
    (folder / "README.md").write_text(tables.markdown(results, names))
    print(f"{folder / 'README.md'} and {len(names)} charts")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure server libraries side by side on this machine.",
        epilog="Further commands: `report FILE` makes tables and charts of a run's JSON; `guard` compares counts "
        "that need no clock with the stored ones.",
    )
    parser.add_argument("--quick", action="store_true", help="shorter samples, fewer rounds and workloads")
    parser.add_argument("--workload", action="append", default=[], metavar="NAME", help="only this one; repeatable")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME",
        help="only those whose names begin so; repeatable",
    )
    parser.add_argument("--rounds", type=int, help="how often each contender does each workload")
    parser.add_argument("--seconds", type=float, help="length of one sample")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument("--python-load", action="store_true", help="use the Python load generator")
    return parser


def run(chosen: list[peers.Peer], work: list[workloads.Workload], options: argparse.Namespace) -> int:
    """Measure, show and save."""
    settings = measuring.Settings(
        rounds=options.rounds or (3 if options.quick else 5),
        seconds=options.seconds or (0.08 if options.quick else 1.0),
        warm_up=500 if options.quick else 4000,
        quick=options.quick,
        python_load=options.python_load,
    )
    with progress(measuring.total_steps(chosen, work, settings)) as shown:
        results = measuring.measure(chosen, work, settings, shown.step)
    print(tables.text(results))
    if options.json:
        results.save(options.json)
        print(f"\nwritten to {options.json}", file=sys.stderr)
    return 0
