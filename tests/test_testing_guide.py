"""docs/testing.md, tried as a reader would: its blocks saved as the files that they name, then pytest and unittest."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.kit.programs import ROOT
from tests.kit.pytest_runs import run_pytest

GUIDE = (ROOT / "docs/testing.md").read_text()
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?ms)^ *```python\n(.*?)^ *```", GUIDE)]


def test_guide_is_true(tmp_path: Path) -> None:
    """Each test in it passes, and there is no block that is not tried."""
    names = [block.partition("\n")[0].removeprefix("# ") for block in BLOCKS]
    assert names[0] == "app.py" and all(re.fullmatch(r"test_\w+\.py", name) for name in names[1:])
    for name, block in zip(names, BLOCKS, strict=True):
        (tmp_path / name).write_text(block)
    tests = sum(len(re.findall(r"def test_", block)) for block in BLOCKS)
    assert len(BLOCKS) == len(set(names)) == GUIDE.count("```") / 2
    # One of them has two parameters.
    assert f"{tests + 1} passed in" in run_pytest(tmp_path)
    command = [sys.executable, "-W", "error", "-m", "unittest", "test_with_unittest"]
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert "Ran 2 tests" in done.stderr and "OK" in done.stderr
