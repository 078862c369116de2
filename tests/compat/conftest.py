"""socketserver and compat side by side."""

import socketserver
from typing import Any

import pytest

import compat


@pytest.fixture(params=[socketserver, compat], ids=["socketserver", "compat"])
def ss(request: pytest.FixtureRequest) -> Any:
    """The module under test, or the one that it has to behave like."""
    return request.param
