"""Cut: cancels a coroutine at its k-th scheduling point, for every k until it ends uncancelled."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import threading
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.waiting import PATIENCE

#: When the cancellation is asked for: as the task begins to wait, a round of the loop later, or just as what it waits
#: for has come but the task has not been told.
MOMENTS = ("at once", "a round later", "as it comes")

# Far above what any scenario here needs; one that goes on longer waits for something that does not come.
_MOST = 400


class Cut:
    """One run of a scenario, cancelled at one scheduling point."""

    def __init__(self, number: int, moment: str) -> None:
        self.number = number
        self.moment = moment
        self.struck = False
        self._seen = 0

    def __repr__(self) -> str:
        return f"<Cut {self.number}, {self.moment}>"

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run it in a task of its own, cancelled at the point; returns its result, or None when it was cancelled."""
        task = asyncio.get_running_loop().create_task(self.here(coroutine))
        await asyncio.wait([task], timeout=PATIENCE)
        assert task.done(), f"{self!r}: it goes on for ever"
        if task.cancelled():
            assert self.struck
            return None
        return task.result()

    async def here(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run it in this task, cancelled at the point."""
        return await self._drive(coroutine)

    @types.coroutine
    def _drive(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        while True:
            try:
                waiting = coroutine.send(None) if error is None else coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
            self._seen += 1
            if self._seen == self.number:
                self._strike(waiting)
            try:
                yield waiting
                error = None
            except BaseException as exc:
                error = exc

    def _strike(self, waiting: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.struck = True
        if self.moment == "at once":
            task.cancel()
        elif self.moment == "as it comes" and isinstance(waiting, asyncio.Future):
            waiting.add_done_callback(lambda _: task.cancel())
        else:
            asyncio.get_running_loop().call_soon(task.cancel)


async def sweep(scenario: Callable[[Cut], Awaitable[None]]) -> int:
    """Run a scenario for every cut that meets it; returns how many did. After each, nothing may be left."""
    cuts = 0
    await _run(scenario, Cut(0, "never"))  # makes what is made once and for all
    for moment in MOMENTS:
        for number in range(1, _MOST):
            cut = Cut(number, moment)
            with nothing_left(cut):
                await _run(scenario, cut)
            if not cut.struck:
                break
            cuts += 1
        else:
            raise AssertionError(f"more than {_MOST} scheduling points")
    return cuts


async def _run(scenario: Callable[[Cut], Awaitable[None]], cut: Cut) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            await scenario(cut)
    except Exception as exc:
        exc.add_note(repr(cut))
        raise


@contextlib.contextmanager
def nothing_left(cut: Cut) -> Iterator[None]:
    """Check that no task, descriptor or thread is left."""
    before = _descriptors(), _tasks(), _threads()
    yield
    assert _tasks() == before[1], f"{cut!r} leaves tasks"
    assert not _threads() - before[2], f"{cut!r} leaves threads"
    opened = _descriptors() - before[0]
    if opened:  # what waits for the collector is a leak as well, but tells more
        gc.collect()
        raise AssertionError(f"{cut!r} leaves descriptors: {opened}, collected later: {opened - _descriptors()}")


def _tasks() -> set[asyncio.Task[Any]]:
    with contextlib.suppress(RuntimeError):  # no loop runs
        return asyncio.all_tasks()
    return set()


def _threads() -> set[str]:
    """All but those in which the loop resolves names."""
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


def _descriptors() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{name}").exists()}


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds that some cuts have to wait for."""
    monkeypatch.setattr("asyncserver.servers.server.Server._cancel_grace", 0.05)
    monkeypatch.setattr("asyncserver.connections.lingering._PATIENCE", 0.05)


@pytest.fixture(autouse=True)
def no_errors(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    told = [record for record in caplog.get_records("call") if record.name == "asyncserver"]
    assert not [record.getMessage() for record in told if record.levelno >= logging.WARNING]
