"""`python -m benchmarks guard`: has a hot path become longer?

It compares counts that do not depend on the clock with those stored in guard.json, and fails when one has moved by more
than the tolerance, in either direction: what became cheaper should be stored too, or it may be lost again unseen. Of
the Python code, with the compiled extension switched off, it counts bytecodes, calls and memory (counting.py); of the
extension, where that and valgrind are there, instructions (instructions.py).

When a change is meant, run `python -m benchmarks guard --update` under each supported Python that has figures, commit
guard.json with the change, and say in the commit message what was bought with the difference.

Patch versions of a minor version differ in the stock loop, and compilers in their instructions: where the counts of
another one are stored, what has moved is told, but is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from benchmarks import instructions, tables
from benchmarks.load import HERE

if TYPE_CHECKING:
    from collections.abc import Iterator

Counts = dict[str, float]

STORE = HERE / "guard.json"
COMPILED = "compiled"  # where the store has the instructions; beside it are versions of Python
# Bytecodes and calls repeat exactly on one patch version of Python. Memory differs by up to 5 % between environments,
# such as one with and one without coverage; instructions between runs by 0.4 % (a message) to 6 % (a connection).
TOLERANCE = {"bytecodes": 0.03, "calls": 0.03, "bytes": 0.1, "blocks": 0.1, "instructions": 0.08}
LOOPS = ("asyncio", "uvloop")
CASES = (
    *(f"asyncserver {kind} {loop}" for kind in instructions.KINDS for loop in LOOPS),
    *(f"asyncserver idle {loop}" for loop in LOOPS),
    *(f"compat {kind} asyncio" for kind in instructions.KINDS),
)
# On one loop, since under callgrind a start takes seconds, and what is compiled is the same on both.
COMPILED_CASES = tuple(f"{COMPILED} {kind} uvloop" for kind in instructions.KINDS)


class Stored:
    """Stored counts, named after what they depend on; of each minor version of Python there is one."""

    def __init__(self, entries: dict[str, dict[str, Counts]], key: str) -> None:
        self.key = key
        self.of = key if key in entries else next((one for one in entries if _minor(one) == _minor(key)), None)
        self._entries = entries
        self._counts = entries.get(self.of, {}) if self.of else {}

    def __contains__(self, case: str) -> bool:
        return case in self._counts

    def check(self, case: str, counted: Counts) -> tuple[list[list[str]], bool]:
        """Rows of the table for one case, and whether it has moved."""
        before = self._counts.get(case, {})
        verdicts = dict(compare(before, counted))
        rows = [
            [case, name, f"{before[name]:,.2f}" if name in before else "-", f"{value:,.2f}", verdicts[name]]
            for name, value in counted.items()
        ]
        return rows, not {"same", "new"}.issuperset(verdicts.values())

    def update(self, case: str, counted: Counts) -> None:
        """Put new counts in the place of those of this minor version."""
        self._counts[case] = counted
        if self.of is not None:
            del self._entries[self.of]
        self._entries[self.key] = self._counts
        self.of = self.key


def _minor(key: str) -> str:
    return ".".join(key.split(" ", maxsplit=1)[0].split(".")[:2])


def version() -> str:
    """What bytecodes, calls and memory depend on."""
    return platform.python_version()


def measure(case: str) -> Counts:
    """The counts of one case, in a process of its own.

    Raises:
        RuntimeError: The case failed; the text is the last thing it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.counting", case],
        env={**os.environ, **instructions.AS_EVER, "ASYNCSERVER_PURE": "1"},
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
    parser.add_argument("--case", action="append", choices=[*CASES, *COMPILED_CASES], help="only this one; repeatable")
    options = parser.parse_args(words)
    store: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}
    compiled = store.pop(COMPILED, {})
    wanted = options.case or [*CASES, *COMPILED_CASES]
    failed = _count_python([case for case in wanted if case in CASES], store, update=options.update)
    if cases := [case for case in wanted if case in COMPILED_CASES]:
        failed = _count_compiled(cases, compiled, update=options.update) or failed
    if options.update:
        STORE.write_text(json.dumps({**store, COMPILED: compiled}, indent=1, sort_keys=True) + "\n")
        return 0
    if failed:
        print("\nA count moved by over 3 %, or memory by 10 %, or instructions by 8 %. ", end="")
        print("If it is meant: python -m benchmarks guard --update")
    return int(failed)


def _count_python(cases: list[str], store: dict[str, dict[str, Counts]], *, update: bool) -> bool:
    """Count without the extension; whether something failed."""
    if not cases:
        return False
    if sys.version_info < (3, 12):
        print("Python code: not counted, which needs sys.monitoring, that is Python 3.12 or newer")
        return False
    counted: dict[str, Counts] = {}
    errors: dict[str, str] = {}
    for case in cases:
        try:
            counted[case] = measure(case)
        except RuntimeError as error:
            errors[case] = str(error)
    return _judge(Stored(store, version()), counted, errors, update=update)


def _count_compiled(cases: list[str], store: dict[str, dict[str, Counts]], *, update: bool) -> bool:
    """Count the extension's instructions, if that can be done here; whether something failed."""
    if reason := instructions.missing():
        print(f"Compiled extension: not counted, {reason}")
        return False
    counted: dict[str, Counts] = {}
    errors: dict[str, str] = {}
    try:
        measured = instructions.measure("uvloop", [case.split()[1] for case in cases])
        counted = {f"{COMPILED} {kind} uvloop": {"instructions": value} for kind, value in measured.items()}
    except (RuntimeError, OSError) as error:  # OSError: it died meanwhile, or does not come to rest
        errors = dict.fromkeys(cases, str(error))
    return _judge(Stored(store, instructions.build()), counted, errors, update=update)


def _judge(stored: Stored, counted: dict[str, Counts], errors: dict[str, str], *, update: bool) -> bool:
    """Show counts beside the stored ones, and keep them if so told; whether something failed."""
    # A case that never had figures may be impossible here.
    rows, failed = [["case", "count", "stored", "now", ""]], any(case in stored for case in errors)
    of = stored.of
    for case, counts in counted.items():
        more, moved = stored.check(case, counts)
        rows += more
        failed = failed or moved
        if update:
            stored.update(case, counts)
    print(tables.text_table(rows + [[case, f"not counted: {error}"] for case, error in errors.items()], left=2))
    if update or of == stored.key:
        return failed
    print(f"\nThis is Python {stored.key}, the counts are those of {of or 'none'}: nothing here is a failure.\n")
    return False
