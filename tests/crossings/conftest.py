"""The cells of the table are no test modules; their assertions tell what they have seen, too."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    *(f"tests.crossings.{path.stem}" for path in Path(__file__).parent.glob("*.py") if path.stem != "conftest")
)
