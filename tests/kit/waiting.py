"""Waiting for what has to come, and what is waited for: with an end, so that a test fails instead of hanging."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Case = TypeVar("Case")

#: Seconds for what takes milliseconds; a test that waits so long has failed.
PATIENCE = 20.0


async def until(reached: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Poll, where no event tells."""
    async with asyncio.timeout(seconds):
        pause = 0.002
        while not reached():
            await asyncio.sleep(pause)
            pause = min(1.1 * pause, 0.02)  # what lasts is looked at less often


def wait_until(reached: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Poll, where no loop runs."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        time.sleep(0.005)


async def within(awaitable: Awaitable[T], seconds: float = PATIENCE) -> T:
    """Await, but fail instead of hanging."""
    async with asyncio.timeout(seconds):
        return await awaitable


def side_by_side(check: Callable[[Case], object], cases: Iterable[Case]) -> None:
    """Check each case in a thread of its own, where checking is waiting.

    Raises:
        BaseExceptionGroup: of what went wrong, each with its case in a note.
    """
    listed, errors = list(cases), []
    with ThreadPoolExecutor(len(listed)) as executor:
        for case, done in [(case, executor.submit(check, case)) for case in listed]:
            if (error := done.exception()) is not None:
                error.add_note(f"in the case {case!r}")
                errors.append(error)
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} of {len(listed)} cases", errors)


async def blocked(operation: Awaitable[T]) -> asyncio.Task[T]:
    """Start an operation in a task, and come back when it waits."""

    async def run() -> T:
        return await operation

    task = asyncio.get_running_loop().create_task(run())
    for _ in range(10_000):
        await asyncio.sleep(0)  # not there yet: its first steps, or a pause for others
        if task.done() or task._fut_waiter is not None:  # type: ignore[attr-defined]
            break
    assert not task.done(), f"expected to wait, but it ended: {task!r}"
    return task
