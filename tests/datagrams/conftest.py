"""Places for servers of datagrams, with clients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.datagrams import FAMILIES, Place


@pytest.fixture(params=FAMILIES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each family."""
    with contextlib.closing(Place(request.param, tmp_path)) as place:
        yield place


@pytest.fixture
def udp(tmp_path: Path) -> Iterator[Place]:
    """IPv4, where nothing else is to be learnt from the others."""
    with contextlib.closing(Place("ipv4", tmp_path)) as place:
        yield place


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[Place]:
    """A Unix socket."""
    with contextlib.closing(Place("unix", tmp_path)) as place:
        yield place
