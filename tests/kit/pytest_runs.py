"""pytest in a process of its own, where this project is installed: the tests of somebody who uses it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.kit.programs import ROOT

_SETTINGS = """
[pytest]
filterwarnings = error
asyncio_default_fixture_loop_scope = function
"""


def _install(folder: Path) -> None:
    """Let Python find what a wheel of this project says of itself; the environment's own may be older."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [line for group, points in groups.items() for line in (f"[{group}]", *map(" = ".join, points.items()))]
    about = folder / "asyncserver-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: asyncserver\nVersion: 0\n")
    (about / "RECORD").write_text("asyncserver/__init__.py,,\ncompat/__init__.py,,\npytest_asyncserver.py,,\n")
    (about / "entry_points.txt").write_text("\n".join(lines))


def run_pytest(folder: Path, *options: str) -> str:
    """Run the tests in a folder, with warnings as errors; returns what pytest says."""
    _install(folder)
    (folder / "pytest.ini").write_text(_SETTINGS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    return done.stdout + done.stderr
