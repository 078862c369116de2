"""The command line of `python -m benchmarks`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import measuring, peers, tables, workloads
from benchmarks.progress import progress


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the process's exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        chosen = peers.select(options.peer)
        work = workloads.select(options.workload, quick=options.quick)
    except ValueError as error:
        parser.error(str(error))
    return run(chosen, work, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure server libraries side by side on this machine."
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
        rounds=options.rounds or (2 if options.quick else 5),
        seconds=options.seconds or (0.15 if options.quick else 1.0),
        warm_up=1000 if options.quick else 4000,
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
