"""Ways to interrupt an operation that waits: each starts it, interrupts it, and returns when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio

from tests.kit.waiting import blocked, within

Interrupt: TypeAlias = "Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]"


async def _by_cancel(operation: Callable[[], Awaitable[object]]) -> None:
    task = await blocked(operation())
    assert task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await within(task)
    assert task.cancelled()


async def _by_cancelling_twice(operation: Callable[[], Awaitable[object]]) -> None:
    task = await blocked(operation())
    assert task.cancel()
    assert task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await within(task)
    assert task.cancelled()
    assert task.cancelling() == 2


async def _by_timeout(operation: Callable[[], Awaitable[object]]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.02) as scope:
            await operation()
    assert scope.expired()


async def _by_wait_for(operation: Callable[[], Awaitable[object]]) -> None:
    try:
        await asyncio.wait_for(operation(), 0.02)
    except TimeoutError:
        return
    raise AssertionError("expected to time out")


async def _by_move_on_after(operation: Callable[[], Awaitable[object]]) -> None:
    with anyio.move_on_after(0.02) as scope:
        await operation()
    assert scope.cancelled_caught


async def _by_fail_after(operation: Callable[[], Awaitable[object]]) -> None:
    try:
        with anyio.fail_after(0.02):
            await operation()
    except TimeoutError:
        return
    raise AssertionError("expected to time out")


async def _by_cancel_scope(operation: Callable[[], Awaitable[object]]) -> None:
    async def run() -> None:
        with scope:
            await operation()

    scope = anyio.CancelScope()
    task = await blocked(run())
    scope.cancel()
    await within(task)
    assert scope.cancelled_caught


INTERRUPTIONS: dict[str, Interrupt] = {
    "cancel": _by_cancel,
    "cancel-twice": _by_cancelling_twice,
    "asyncio.timeout": _by_timeout,
    "asyncio.wait_for": _by_wait_for,
    "anyio.move_on_after": _by_move_on_after,
    "anyio.fail_after": _by_fail_after,
    "anyio.CancelScope": _by_cancel_scope,
}
