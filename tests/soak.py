"""Run all tests of faults, the long ones too, and print what they measured as a table.

    python -m tests.soak [--json FILE] [--markdown FILE] [-- PYTEST ARGUMENTS]

SOAK_MINUTES is how long the mixed load lasts on each loop (3). Everything else takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.kit.faults import FIGURES
from tests.kit.programs import LOOPS, ROOT


def table(figures: list[dict[str, str]]) -> list[list[str]]:
    """A line for each row of figures, with a column for each loop."""
    lines: dict[str, dict[str, str]] = {}
    for one in figures:
        line = lines.setdefault(one["row"], {"allowed": one["bound"]})
        line[one["loop"]] = one["value"]
    return [[row, *(line.get(loop, "-") for loop in LOOPS), line["allowed"]] for row, line in lines.items()]


def run(arguments: list[str]) -> tuple[int, list[dict[str, str]]]:
    """Run the tests; returns pytest's status and the figures."""
    with tempfile.NamedTemporaryFile("r", prefix="figures-") as file:
        # All of them: the last -m wins over the one in pyproject.toml.
        command = [sys.executable, "-m", "pytest", "-q", "-m", "soak or not soak", "tests/faults", *arguments]
        status = subprocess.run(command, cwd=ROOT, env=os.environ | {FIGURES: file.name}, check=False).returncode
        return status, [json.loads(line) for line in file]


def main() -> int:
    """Run, print and write; returns the status of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file, with the date and the machine")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options, arguments = parser.parse_known_args()
    begun = time.strftime("%Y-%m-%d")
    status, figures = run([one for one in arguments if one != "--"])
    machine = f"{begun}, {os.cpu_count()} cores, Linux {platform.release()}, CPython {platform.python_version()}"
    rows = table(figures)
    print(f"\n{machine}\n")
    for row, *values, bound in rows:
        print(row)
        for loop, value in zip(LOOPS, values, strict=True):
            print(f"    {loop:8} {value}")
        print(f"    {'allowed':8} {bound}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=1) + "\n")
    if options.markdown:
        header = ["what is done to it", *LOOPS, "allowed"]
        lines = ["| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows]]
        options.markdown.write_text(f"{machine}\n\n" + "\n".join(lines) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
