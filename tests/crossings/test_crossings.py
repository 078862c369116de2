"""The table of what can meet: each way to serve, and each thing that can happen to it, with the promise for both.

A cell is a function of `drains`, `introductions`, `peers`, `limits` or `handlers`, tried on one of the `ways`.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.crossings import drains, handlers, introductions, limits, peers
from tests.crossings.datagrams import DATAGRAMS, DatagramCrossing, DatagramWay
from tests.crossings.datagrams import STYLES as DATAGRAM_STYLES
from tests.crossings.happenings import HAPPENINGS, Happening, text_of
from tests.crossings.known import reason_of
from tests.crossings.ways import STYLES, WIRES, Crossing, Way
from tests.kit.datagrams import FAMILIES
from tests.kit.transports import Transport

__all__ = ["drains", "handlers", "introductions", "limits", "peers"]

CELLS: list[Any] = [pytest.param(one, way, id=f"{one.name}-{way}") for one in HAPPENINGS for way in one.on]


@pytest.mark.parametrize(("happening", "way"), CELLS)
async def test_promise_holds(
    happening: Happening,
    way: Way,
    request: pytest.FixtureRequest,
    tls: Transport,
) -> None:
    """Where the two meet, what comes of it is what was promised."""
    expect_what_is_known(request, happening, way)
    await happening.run(Crossing(way, tls.server_context, tls.client_context, tls.directory))


DATAGRAM_CELLS: list[Any] = [pytest.param(one, way, id=f"{one.name}-{way}") for one in DATAGRAMS for way in one.on]


@pytest.mark.parametrize(("happening", "way"), DATAGRAM_CELLS)
async def test_promise_holds_for_datagrams(
    happening: Happening, way: DatagramWay, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The same for datagrams."""
    expect_what_is_known(request, happening, way)
    await happening.run(DatagramCrossing(way, tmp_path))


def expect_what_is_known(request: pytest.FixtureRequest, happening: Happening, way: Way | DatagramWay) -> None:
    """Expect a cell to fail that is known for that."""
    if reason := reason_of(happening.name, way, type(asyncio.get_running_loop()).__module__.partition(".")[0]):
        request.applymarker(pytest.mark.xfail(reason=reason, raises=(AssertionError, OSError)))


@pytest.mark.parametrize("happening", HAPPENINGS + DATAGRAMS, ids=lambda one: one.name)
def test_promise_is_given(happening: Happening) -> None:
    """What is tested is what people are told, in these words."""
    assert happening.promise in text_of(happening.source)


def test_every_two_meet() -> None:
    """Styles, wires and proxies; and each happening is tried with and without a proxy, unless it needs one."""
    assert {way for one in HAPPENINGS for way in one.on} == {
        Way(*values) for values in itertools.product(STYLES, WIRES, (False, True))
    }
    assert {way for one in DATAGRAMS for way in one.on} == {
        DatagramWay(*values) for values in itertools.product(DATAGRAM_STYLES, FAMILIES, (False, True))
    }
    for one in HAPPENINGS + DATAGRAMS:
        needs_one = all(way.proxied for way in one.on)
        assert needs_one or len(one.on) < 3 or {way.proxied for way in one.on} == {False, True}, one.name
