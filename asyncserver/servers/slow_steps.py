"""reporting_slow_steps: in asyncio's debug mode, say which handler has kept the loop from everything else.

asyncio reports the callback that took too long. For a handler that is one of ours, or (on uvloop) nobody's.
"""

from __future__ import annotations

import types
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .._logger import logger as _logger
from ..net.addresses import format_address
from .logs import about

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from .server import Server


def reporting_slow_steps(handler: Callable[[Any], Coroutine[Any, Any, Any]], server: Server) -> Any:
    """Make a handler whose steps, from one wait to the next, are timed.

    One that takes longer than the loop's `slow_callback_duration` (0.1 s, unless the program has set it)
    is logged, with the handler and the peer.
    """
    loop: Any = server.loop  # AbstractEventLoop does not promise the attribute, all loops have it
    name = getattr(handler, "__qualname__", None) or repr(handler)

    async def run(source: Any) -> Any:
        def report(seconds: float) -> None:
            if seconds > loop.slow_callback_duration:
                peer = format_address(source.peer_address)
                message = "handler %s of %s kept the event loop busy for %.3f s, and all others waiting"
                _logger.warning(message, name, peer, seconds, extra=about(server, source, duration=seconds))

        return await _timed_steps(handler(source), report)

    return run


@types.coroutine
def _timed_steps(coroutine: Any, report: Callable[[float], None]) -> Generator[Any, Any, Any]:
    """Run a coroutine as `yield from` does (PEP 380), and report how long each of its steps took."""
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
