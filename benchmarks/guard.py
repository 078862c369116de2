"""`python -m benchmarks guard`: has a hot path become longer?

It compares counts that do not depend on the clock (see counting.py) with those stored in guard.json for this version
of Python, and fails when one has moved by more than the tolerance, in either direction: what became cheaper should be
stored too, or it may be lost again unseen. They are of the Python code: the compiled extension is switched off. When a
change is meant, run `python -m benchmarks guard --update` under each supported Python that has figures, commit
guard.json with the change, and say in the commit message what was bought with the difference.

Patch versions of a minor version differ in the stock loop: where the counts of another one are stored, what has moved
is told, but is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks import tables
from benchmarks.load import HERE

if TYPE_CHECKING:
    from collections.abc import Iterator

Counts = dict[str, float]

STORE = HERE / "guard.json"
# Bytecodes and calls repeat exactly on one patch version of Python. Memory differs by up to 5 % between environments,
# such as one with and one without coverage.
TOLERANCE = {"bytecodes": 0.03, "calls": 0.03, "bytes": 0.1, "blocks": 0.1}
CASES = (
    *(f"asyncserver {kind} {loop}" for kind in ("message", "connection", "datagram") for loop in ("asyncio", "uvloop")),
    "asyncserver idle asyncio",
    "asyncserver idle uvloop",
    *(f"compat {kind} asyncio" for kind in ("message", "connection", "datagram")),
)


def version() -> str:
    """The key in the store; a newer patch version replaces the one before."""
    return platform.python_version()


def nearest(store: dict[str, dict[str, Counts]]) -> str | None:
    """The patch version of this minor version that has counts: this one if it can be."""
    minor = version().rpartition(".")[0]
    return version() if version() in store else next((key for key in store if key.rpartition(".")[0] == minor), None)


def measure(case: str) -> Counts:
    """The counts of one case, in a process of its own.

    Raises:
        RuntimeError: The case failed; the text is the last thing it said.
    """
    as_ever = {"ASYNCSERVER_PURE": "1", "PYTHONHASHSEED": "0", "PYTHONDEVMODE": "", "PYTHONASYNCIODEBUG": ""}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.counting", case],
        env={**os.environ, **as_ever},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it failed silently"])[-1])
    counts: Counts = json.loads(done.stdout)
    return counts


def compare(stored: Counts, counted: Counts) -> Iterator[tuple[str, str]]:
    """Each count's name with `same`, `more`, `less` or `new`."""
    for name, value in counted.items():
        before = stored.get(name)
        if before is None:
            yield name, "new"
        elif abs(value - before) <= TOLERANCE[name] * before:
            yield name, "same"
        else:
            yield name, "more" if value > before else "less"


def main(words: list[str]) -> int:
    """Compare, or with --update store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks guard", description=__doc__)
    parser.add_argument("--update", action="store_true", help="store what is counted now")
    parser.add_argument("--case", action="append", choices=CASES, help="only this one; repeatable")
    options = parser.parse_args(words)
    if sys.version_info < (3, 12):
        print("the guard needs sys.monitoring, that is Python 3.12 or newer")
        return 0
    store: dict[str, dict[str, Counts]] = json.loads(STORE.read_text()) if STORE.exists() else {}
    of = nearest(store)
    stored = store.pop(of) if of else {}
    rows, failed = [["case", "count", "stored", "now", ""]], False
    for case in options.case or CASES:
        more, moved = _check(case, stored, update=options.update)
        rows += more
        failed = failed or moved
    print(tables.text_table(rows, left=2))
    if options.update:
        store[version()] = stored
        STORE.write_text(json.dumps(store, indent=1, sort_keys=True) + "\n")
        return 0
    if of != version():
        print(f"\nThis is Python {version()}, the counts are those of {of or 'none'}: nothing here is a failure.")
        return 0
    if failed:
        print("\nA count moved by over 3 %, or memory by 10 %. If it is meant: python -m benchmarks guard --update")
    return int(failed)


def _check(case: str, stored: dict[str, Counts], *, update: bool) -> tuple[list[list[str]], bool]:
    """Rows for one case, and whether it failed; a case that never had figures may be impossible here."""
    try:
        counted = measure(case)
    except RuntimeError as error:
        return [[case, f"not counted: {error}"]], case in stored
    before = stored.get(case, {})
    verdicts = dict(compare(before, counted))
    rows = [
        [case, name, f"{before[name]:,.2f}" if name in before else "-", f"{value:,.2f}", verdicts[name]]
        for name, value in counted.items()
    ]
    if update:
        stored[case] = counted
    return rows, not {"same", "new"}.issuperset(verdicts.values())
