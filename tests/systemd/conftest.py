"""A folder for a program, and a socket in the place of systemd's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.systemd import ACTIVATE, Systemd, write_app


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, for Unix sockets, with the handler's module."""
    with tempfile.TemporaryDirectory() as name:
        write_app(Path(name), 1)
        (Path(name) / "activate.py").write_text(ACTIVATE)
        yield Path(name)


@pytest.fixture
def systemd(request: pytest.FixtureRequest, folder: Path) -> Iterator[Systemd]:
    """With an abstract address where a test asks for it."""
    one = Systemd(f"\0{folder}" if getattr(request, "param", "") == "abstract" else str(folder / "notify"))
    yield one
    one.sock.close()
