"""The cells of the table are no test modules; their assertions tell what they have seen, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.workers import start
from tests.servers.conftest import short_grace

__all__ = ["short_grace", "start"]  # fixtures

pytest.register_assert_rewrite(
    *(f"tests.crossings.{path.stem}" for path in Path(__file__).parent.glob("*.py") if path.stem != "conftest")
)
