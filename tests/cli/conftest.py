"""A folder of handlers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.cli import write_modules


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with modules of handlers."""
    write_modules(tmp_path)
    return tmp_path
