"""Waiter: it must be indistinguishable from a Future for whatever kind of task waits on it."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import weakref
from asyncio import tasks
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from asyncserver.net.waiter import Waiter
from tests.kit.interruptions import Interrupt
from tests.kit.waiting import blocked, within


def _plain(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(coroutine)


def _python(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = tasks._PyTask(coroutine, loop=asyncio.get_running_loop())  # type: ignore[attr-defined]
    return task


def _eager(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    if sys.version_info < (3, 12):
        raise AssertionError("no eager tasks here")
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), eager_start=True)


def _current(task: Any) -> asyncio.Task[Any] | None:
    """What current_task() says in a task: nothing from Python 3.14 on in one that is implemented in Python."""
    return task if sys.version_info < (3, 14) or isinstance(task, asyncio.Task) else None


KINDS = {"task": _plain, "python-task": _python}
if sys.version_info >= (3, 12):
    KINDS["eager-task"] = _eager


@pytest.fixture(params=list(KINDS))
def spawn(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]:
    """Start a task of each kind that there is."""
    return KINDS[request.param]


@pytest.fixture
async def waiter() -> Waiter:
    return Waiter(weakref.ref(asyncio.get_running_loop()), "testing")


async def _wait(waiter: Waiter) -> str:
    await waiter
    return "woken"


async def _step() -> None:
    """Let what is ready run."""
    for _ in range(3):
        await asyncio.sleep(0)


async def _from_io(function: Callable[[], object]) -> None:
    """Call it as the loop calls an I/O callback: no task is current."""
    called = asyncio.Event()

    def call() -> None:
        function()
        called.set()

    asyncio.get_running_loop().call_soon(call, context=contextvars.Context())
    await within(called.wait())


async def test_wake_runs_the_task_at_once(waiter: Waiter, spawn: Any) -> None:
    """The point of it all: the task has gone on before wake() returns."""
    steps = []

    async def wait() -> None:
        await waiter
        steps.append("task")

    def wake() -> None:
        assert waiter.wake()
        steps.append("callback")

    task = spawn(wait())
    await _step()
    await _from_io(wake)
    await within(task)
    assert steps == ["task", "callback"]


async def test_task_runs_in_its_own_context(waiter: Waiter, spawn: Any) -> None:
    """A task woken out of somebody else's callback sees its own variables, and is the current task."""
    variable = contextvars.ContextVar("variable", default="nobody's")
    seen = []

    async def wait() -> None:
        variable.set("mine")
        await waiter
        seen.append((variable.get(), asyncio.current_task()))

    task = spawn(wait())
    await _step()
    await _from_io(waiter.wake)
    await within(task)
    assert seen == [("mine", _current(task))]
    assert variable.get() == "nobody's"


async def test_wake_without_a_task(waiter: Waiter) -> None:
    """Waking nobody says so, and is not remembered."""
    assert not waiter.wake()
    waiter.wake_soon()
    task = await blocked(waiter)
    waiter.wake_soon()
    await within(task)


async def test_wake_soon_from_a_task(waiter: Waiter, spawn: Any) -> None:
    """wake_soon() may be called where a task is current; the other goes on in the loop's next round."""
    task = spawn(_wait(waiter))
    await _step()
    waiter.wake_soon()
    waiter.wake_soon()
    assert not task.done()
    assert await within(task) == "woken"


async def test_used_again_and_again(waiter: Waiter, spawn: Any) -> None:
    """One waiter serves one wait after another."""
    count = 0

    async def wait() -> None:
        nonlocal count
        for _ in range(100):
            await waiter
            count += 1

    task = spawn(wait())
    await _step()
    for _ in range(100):
        await _from_io(waiter.wake)
    await within(task)
    assert count == 100
    assert not waiter.busy


async def test_second_task_is_refused(waiter: Waiter, spawn: Any) -> None:
    """A second task gets the error, the first one is still woken."""
    first = spawn(_wait(waiter))
    await _step()
    with pytest.raises(anyio.BusyResourceError, match="testing"):
        await waiter
    await _from_io(waiter.wake)
    assert await within(first) == "woken"


async def test_cancel(waiter: Waiter, spawn: Any) -> None:
    """A cancelled wait raises CancelledError with its message, once; the next wait is a fresh one."""

    async def wait() -> str:
        try:
            await waiter
        except asyncio.CancelledError as exc:
            message = exc.args
        await waiter
        return f"then woken, {message}"

    task = spawn(wait())
    await _step()
    assert task.cancel("enough")
    assert task.cancelling() == 1
    await _step()
    assert not task.done()
    await _from_io(waiter.wake)
    assert await within(task) == "then woken, ('enough',)"


async def test_cancel_wins_over_a_later_wake(waiter: Waiter, spawn: Any) -> None:
    """After cancel() nothing else can wake the task: the wake-up finds nobody."""
    task = spawn(_wait(waiter))
    await _step()
    task.cancel()
    assert not waiter.wake()
    waiter.wake_soon()
    with pytest.raises(asyncio.CancelledError):
        await within(task)


async def test_cancel_after_wake_soon(waiter: Waiter, spawn: Any) -> None:
    """As with a Future that has its result already: the task is cancelled at its next step."""
    task = spawn(_wait(waiter))
    await _step()
    waiter.wake_soon()
    assert task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    assert not waiter.busy
    again = spawn(_wait(waiter))
    await _step()
    waiter.wake_soon()
    assert await within(again) == "woken"


async def test_cancelled_before_it_waits(waiter: Waiter) -> None:
    """A task that is cancelled before its first step, or just before the wait, never waits."""

    async def wait() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await waiter

    with pytest.raises(asyncio.CancelledError):
        await within(asyncio.get_running_loop().create_task(wait()))
    assert not waiter.busy


async def test_cancelled_twice(waiter: Waiter, spawn: Any) -> None:
    """Two cancels before the task runs are one CancelledError and a count of two."""
    task = spawn(_wait(waiter))
    await _step()
    task.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    assert task.cancelling() == 2


async def test_interruptions(waiter: Waiter, interrupt: Interrupt) -> None:
    """Timeouts and scopes of both vocabularies end the wait; afterwards the waiter is free and works."""
    await within(interrupt(lambda: _wait(waiter)))
    assert not waiter.busy
    task = await blocked(waiter)
    await _from_io(waiter.wake)
    await within(task)


async def test_task_group(waiter: Waiter) -> None:
    """A sibling's error cancels the wait."""
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(_wait(waiter))
            await asyncio.sleep(0)
            raise ValueError("of a sibling")
    assert waiting.cancelled()
    assert [type(exc) for exc in caught.value.exceptions] == [ValueError]


async def test_dead_coroutine_is_not_woken(waiter: Waiter) -> None:
    """A coroutine that was closed while it waited leaves nothing behind."""
    coroutine = _wait(waiter)
    coroutine.send(None)
    woken: list[Waiter] = []
    waiter.add_done_callback(woken.append, context=contextvars.copy_context())
    coroutine.close()
    assert not waiter.wake()
    assert not woken
    assert not waiter.busy


async def test_error_of_the_task_stays_in_the_task(waiter: Waiter, spawn: Any) -> None:
    """What the woken task raises does not come out of wake()."""

    async def wait() -> None:
        await waiter
        raise ValueError("mine")

    task = spawn(wait())
    await _step()
    await _from_io(waiter.wake)
    with pytest.raises(ValueError, match="mine"):
        await within(task)


async def test_another_loops_waiter_is_refused(waiter: Waiter) -> None:
    """A task of another loop gets the same RuntimeError as with a Future."""

    def elsewhere() -> None:
        asyncio.run(_wait(waiter))

    with pytest.raises(RuntimeError, match="attached to a different loop"):
        await asyncio.to_thread(elsewhere)
