"""State machines: a loop of their own, and a run with so many examples."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.kit.waiting import PATIENCE


class LoopMachine(RuleBasedStateMachine):
    """A machine whose rules run coroutines, on a loop of the kind that `loop_name` says."""

    loop_name: str

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore] # typed in some versions of hypothesis
        factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
        if self.loop_name == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop
        self.loop = factory()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run it to its end, which has to come."""

        async def bounded() -> Any:
            async with asyncio.timeout(PATIENCE):
                return await coroutine

        return self.loop.run_until_complete(bounded())


def check(machine: type[LoopMachine], examples: int, steps: int, *, derandomize: bool = True, **kind: str) -> None:
    """Run so many examples of so many steps at most; `kind` are the attributes of the machine's class."""
    run_state_machine_as_test(
        type("Machine", (machine,), dict(kind)),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=derandomize,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
