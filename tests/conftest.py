"""Both loops for every asynchronous test, in debug mode; servers and certificates to test with."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

try:
    import uvloop
except ModuleNotFoundError:
    uvloop = None  # type: ignore[assignment]


def _debugged(factory: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[], asyncio.AbstractEventLoop]:
    def make() -> asyncio.AbstractEventLoop:
        loop = factory()
        loop.set_debug(True)
        loop.slow_callback_duration = 5.0  # a busy machine is not what these tests are about
        return loop

    return make


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each asynchronous test on the standard library's loop, and on uvloop where it is installed."""
    factories = {"asyncio": _debugged(asyncio.new_event_loop)}
    if uvloop is not None and "ASYNCSERVER_TESTS_WITHOUT_UVLOOP" not in os.environ:
        factories["uvloop"] = _debugged(uvloop.new_event_loop)
    return factories
