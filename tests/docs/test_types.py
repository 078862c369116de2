"""Each block of Python in the documentation, each example in a docstring agrees with the types of the packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import blocks
from tests.docs.examples import examples
from tests.kit.programs import ROOT
from tests.kit.waiting import PATIENCE

OPTIONS = ["--check-untyped-defs", "--ignore-missing-imports", "--follow-imports=silent", "--explicit-package-bases"]
# Handlers in the pages have no annotations, which is no mistake.
OPTIONS += ["--allow-untyped-defs", "--disable-error-code=var-annotated", "--disable-error-code=method-assign"]


def check(sources: dict[str, str], folder: Path) -> str:
    """Run mypy over all of them at once; returns what it says."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    for name, source in sources.items():
        file = folder / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)
    cache = f"--cache-dir={ROOT / '.mypy_cache/docs'}"
    command = [sys.executable, "-m", "mypy", "--config-file=", cache, *OPTIONS, "."]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=4 * PATIENCE
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_all_code_of_the_documentation(tmp_path: Path) -> None:
    """Pages and docstrings together, for mypy takes its time to begin."""
    shown = {f"{re.sub(r'[^a-z]', '_', block.page)}/{block.module}": block.text for block in blocks("python")}
    assert len(shown) == len(blocks("python")), "two blocks of one name"
    assert check(shown | examples(), tmp_path) == ""


def test_a_mistake_is_found(tmp_path: Path) -> None:
    """An argument that there is not, and a method."""
    source = "import asyncserver\nasyncserver.run(works=2)\nasync def f(s: asyncserver.Stream):\n    s.sent()\n"
    told = check({"mistaken": source}, tmp_path)
    assert 'Unexpected keyword argument "works"' in told
    assert 'has no attribute "sent"' in told
