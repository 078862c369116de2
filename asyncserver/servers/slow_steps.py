"""with_timed_steps: how long each step of a handler takes, from one wait to the next."""

from __future__ import annotations

import functools
import types
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator


def with_timed_steps(
    handler: Callable[[Any], Coroutine[Any, Any, Any]], report: Callable[[str, Any, float], object]
) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    """Make a handler that calls `report(name, source, seconds)` after each of its steps."""
    name = getattr(handler, "__qualname__", None) or repr(handler)

    async def run(source: Any) -> Any:
        return await _timed_steps(handler(source), functools.partial(report, name, source))

    return run


@types.coroutine
def _timed_steps(coroutine: Any, report: Callable[[float], object]) -> Generator[Any, Any, Any]:
    """Run a coroutine as `yield from` does (PEP 380), and report how long each step took."""
    step, argument = coroutine.send, None
    while True:
        begun = perf_counter()
        try:
            awaited = step(argument)
        except StopIteration as end:
            return end.value
        finally:
            report(perf_counter() - begun)
        try:
            argument = yield awaited
            step = coroutine.send
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as exc:
            step, argument = coroutine.throw, exc
