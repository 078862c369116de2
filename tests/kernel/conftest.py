"""A place for a server of datagrams, and programs with workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.datagrams import Place
from tests.kit.workers import start

__all__ = ["start"]


@pytest.fixture
def udp(tmp_path: Path) -> Iterator[Place]:
    """IPv4."""
    with contextlib.closing(Place("ipv4", tmp_path)) as place:
        yield place
