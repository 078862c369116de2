"""The command line of `python -m benchmarks`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks import charts, guard, machine, measuring, neighbours, peers, tables, workloads
from benchmarks.plan import QUICK_LIMIT, Pace, Settings, in_words, stages
from benchmarks.progress import progress
from benchmarks.results import read

RESULTS, PAGE = "full.json", "README.md"  # of a run, in a folder for it

EPILOG = """
examples:
  python -m benchmarks --quick                        an overview, in three minutes at most
  python -m benchmarks --quick --peer asyncserver --peer streams --workload tcp-64
                                                      two libraries in one workload
  python -m benchmarks --page benchmarks/results      everything; a page with tables and charts
  python -m benchmarks --dry-run                      what that would do, and how long it would take

further commands:
  python -m benchmarks report FILE                    a page of tables and charts from a run's JSON
  python -m benchmarks guard                          counts that need no clock, against the stored ones
"""


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
        chosen = peers.select(options.peer, quick=options.quick)
        work = workloads.select(options.workload, quick=options.quick)
    except ValueError as error:
        parser.error(str(error))
    if options.page:
        options.page.mkdir(parents=True, exist_ok=True)
        options.json = options.json or options.page / RESULTS
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.parent}")
    return run(chosen, work, options)


def report(words: list[str]) -> int:
    """Make the Markdown report and the charts from a run's JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report", description="Make tables and charts from the JSON of a run."
    )
    parser.add_argument("json", type=Path)
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: beside the JSON")
    options = parser.parse_args(words)
    write_page(options.json, options.to or options.json.parent)
    return 0


def write_page(json: Path, folder: Path) -> None:
    """Write README.md and the charts of a run; the page of the folder above, if there is one, links to it."""
    folder.mkdir(parents=True, exist_ok=True)
    results = read(json)
    drawn = 0
    for workload in results.workloads:
        if (drawing := charts.chart(results, workload)) is not None:
            (folder / f"{workload}.svg").write_text(drawing)
            drawn += 1
    write_text(json, folder)
    above = folder.resolve().parent
    if (above / RESULTS).exists():
        write_text(above / RESULTS, above)
    print(f"{folder / PAGE} and {drawn} charts", file=sys.stderr)


def write_text(json: Path, folder: Path) -> None:
    """Write the page itself."""
    results = read(json)
    names = {name: f"{name}.svg" for name in results.workloads if (folder / f"{name}.svg").exists()}
    (folder / PAGE).write_text(tables.markdown(results, names, others(folder)))


def others(folder: Path) -> dict[str, str]:
    """Pages of other runs, in folders below it and in the one above: link -> interpreter."""
    found = {f"{one.parent.name}/{PAGE}": one for one in sorted(folder.glob(f"*/{RESULTS}"))}
    if (above := folder.resolve().parent / RESULTS).exists():
        found[f"../{PAGE}"] = above
    return {link: read(one).machine["python"] for link, one in found.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure server libraries side by side on this machine: the CPU time that each server takes\n"
        "for one operation. Before it starts it says what it will do, and how long that takes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="three minutes at most: short samples, one start of each server, not all workloads and contenders",
    )
    parser.add_argument(
        "--workload",
        action="append",
        default=[],
        metavar="NAME",
        help=f"only this one; repeatable. There are: {', '.join(each.name for each in workloads.WORKLOADS)}",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME",
        help=f"only those whose names begin so; repeatable. There are: {', '.join(each.name for each in peers.PEERS)}",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        default=Settings.rounds,
        help="how often each does each workload (default: 3)",
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="length of one sample (default: 0.4; --quick: 0.1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FOLDER",
        help="write them as a page: README.md, a chart for each workload, full.json",
    )
    parser.add_argument("--python-load", action="store_true", help="use the Python load generator")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and end")
    return parser


def run(chosen: list[peers.Peer], work: list[workloads.Workload], options: argparse.Namespace) -> int:
    """Say what will be done, measure, show and save."""
    settings = Settings(
        rounds=options.rounds,
        seconds=options.seconds or (0.1 if options.quick else Settings.seconds),
        warm_up=500 if options.quick else 4000,
        quick=options.quick,
        python_load=options.python_load,
    )
    planned = stages([peer for peer in chosen if peer.missing() is None], work, settings)
    pace = Pace(planned, quick=options.quick)
    print("\n".join(announcement(chosen, work, settings, pace)), file=sys.stderr)
    if options.dry_run or not planned:
        return 0 if planned else 1
    if warning := crowded(neighbours.now()):
        print(warning, file=sys.stderr)
    pace.start()
    with progress(pace) as shown:
        results = measuring.measure(chosen, work, settings, measuring.Work(planned, pace, shown.step))
    print(tables.text(results))
    if options.json:
        results.save(options.json)
        print(f"\nwritten to {options.json}", file=sys.stderr)
    if options.page:
        write_page(options.json, options.page)
    return 0


def announcement(chosen: list[peers.Peer], work: list[workloads.Workload], settings: Settings, pace: Pace) -> list[str]:
    """What will be done, and how long it takes."""
    server, load = machine.choose_cores()
    cores = "one core for servers and load" if server is None else f"servers on core {server}, load on core {load}"
    missing = [f"Not taking part: {peer.title}: {reason}" for peer in chosen if (reason := peer.missing())]
    who = f"{len(work)} workloads, {len(chosen) - len(missing)} contenders"
    lines = [f"{who}, {pace.samples:,} samples of {settings.seconds:g} s; {cores}.", *missing]
    lasts = f"It takes about {in_words(pace.planned)}"
    if settings.quick:
        most = in_words(QUICK_LIMIT)
        lines.append(f"{lasts}; on a slow or busy machine {most}, with fewer samples. Everything: without --quick.")
    else:
        lines.append(f"{lasts}, longer on a slow or busy machine. An overview in three minutes: --quick.")
    return lines


def crowded(used: float) -> str:
    """A warning, if other programs use so much that figures will stray."""
    if used <= neighbours.QUIET:
        return ""
    return (
        f"Warning: other programs use {used:.1f} of the {len(os.sched_getaffinity(0))} cores now (load average "
        f"{os.getloadavg()[0]:.1f}). Figures will stray; ratios of best samples suffer least."
    )
