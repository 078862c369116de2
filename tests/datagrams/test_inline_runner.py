"""One task for many datagrams: what their handlers can see of each other, which is nothing."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncserver
from asyncserver import Datagram
from tests.kit.checks import errors_in, is_balanced_for_datagrams
from tests.kit.datagrams import Place
from tests.kit.handlers import upper_datagram
from tests.kit.waiting import PATIENCE, until


@pytest.fixture(params=["ipv4", "unix"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = Place(request.param, tmp_path)
    yield place
    place.close()


async def burst(place: Place, server: asyncserver.Server, *words: bytes) -> list[bytes]:
    """Send all of these before the server can look, twice: the second time it has a task ready."""
    client = place.client(server)
    answers: list[bytes] = []
    for _ in range(2):
        for word in words:
            client.send(word)
        answers = [await client.receive() for _ in words]
    return answers


async def test_context_variable_does_not_reach_the_next_handler(place: Place) -> None:
    """Set by a handler that does not wait, by one that does, and to the value that it had."""
    variable: contextvars.ContextVar[bytes] = contextvars.ContextVar("variable", default=b"none")

    async def handler(datagram: Datagram) -> bytes:
        before = variable.get()
        variable.set(datagram.data)
        if datagram.data == b"wait":
            await asyncio.sleep(0)
        assert variable.get() == datagram.data
        return before

    async with place.serve(handler) as server:
        assert await burst(place, server, b"one", b"two", b"wait", b"none", b"three") == [b"none"] * 5


async def test_quick_handlers_share_a_task_and_one_that_waits_keeps_it(place: Place) -> None:
    """It is the current task from the handler's beginning to its end, and nobody else's."""
    go_on = asyncio.Event()
    seen: dict[bytes, list[Any]] = {}

    async def handler(datagram: Datagram) -> bytes:
        tasks = seen[datagram.data] = [asyncio.current_task()]
        if datagram.data == b"wait":
            await go_on.wait()
            tasks.append(asyncio.current_task())
        return datagram.data

    async with place.serve(handler) as server:
        client = place.client(server)
        assert await client.ask(b"first") == b"first"  # the server has a task ready from now on
        await until(lambda: server._endpoints[0]._next_batch.busy)  # type: ignore[attr-defined]
        for word in (b"a", b"b", b"wait", b"c"):
            client.send(word)
        assert [await client.receive() for _ in range(3)] == [b"a", b"b", b"c"]
        assert server.stats().active == 1
        go_on.set()
        assert await client.receive() == b"wait"
        begun, ended = seen[b"wait"]
        assert seen[b"a"] == seen[b"b"] == [begun]
        assert begun is ended
        assert seen[b"c"] != [begun]
        assert is_balanced_for_datagrams(server)


async def test_each_handler_is_told_while_it_runs(place: Place) -> None:
    """In `connections` and `stats()`, before it waits and after; one that has only returned is active, too."""
    seen: list[bool] = []

    async def handler(datagram: Datagram) -> bytes:
        for _ in range(2):
            now = server.stats()
            unsettled = now.datagrams_received - now.datagrams_answered
            seen.append(datagram in server.connections and now.active == unsettled)
            if datagram.data == b"wait":
                await asyncio.sleep(0)
        return datagram.data

    async with place.serve(handler) as server:
        await burst(place, server, b"a", b"b", b"wait")
    assert seen == [True] * 12


async def test_cancelling_its_own_task_hurts_no_other_handler(place: Place) -> None:
    """A handler that asks for it and ends without waiting may have its answer sent; the next one waits in peace."""

    async def handler(datagram: Datagram) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        if datagram.data == b"cancel":
            task.cancel()
        else:
            await asyncio.sleep(0)
        return datagram.data

    async with place.serve(handler) as server:
        client = place.client(server)
        for _ in range(3):
            client.send(b"cancel")
            client.send(b"other")
            while await client.receive() != b"other":
                pass
        assert server.stats().failed == 0


async def test_error_ends_its_own_handler_only(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Raised before and after a wait, in the middle of a batch."""

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data.startswith(b"late"):
            await asyncio.sleep(0)
        if datagram.data.endswith(b"error"):
            raise RuntimeError("as it should be")
        return datagram.data

    async with place.serve(handler) as server:
        client = place.client(server)
        for _ in range(2):
            for word in (b"a", b"error", b"b", b"late error", b"late", b"c"):
                client.send(word)
            assert {await client.receive() for _ in range(4)} == {b"a", b"b", b"c", b"late"}
        await until(lambda: server.stats().failed == 4)
        assert server.stats().datagrams_answered == 8
        assert is_balanced_for_datagrams(server)
    assert len(errors_in(caplog)) == 4
    caplog.clear()


@pytest.mark.parametrize("way", ["timeout", "group", "scope"])
async def test_structured_concurrency_works_in_a_shared_task(place: Place, way: str) -> None:
    """asyncio's and anyio's scopes belong to the current task, and are entered before the first wait."""

    async def handler(datagram: Datagram) -> bytes:
        if way == "timeout":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
        elif way == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
        else:
            with anyio.move_on_after(0.001):
                await anyio.sleep_forever()
        return datagram.data

    async with place.serve(handler) as server:
        words = [b"%d" % number for number in range(6)]
        assert sorted(await burst(place, server, *words)) == words
        assert server.stats().cancelled == 0


async def test_answers_keep_the_order_of_the_datagrams(place: Place) -> None:
    """What one handler returns goes out before what the next one sends with reply()."""

    async def handler(datagram: Datagram) -> bytes | None:
        if datagram.data[0] % 2:
            await datagram.reply(datagram.data)
            return None
        return datagram.data

    async with place.serve(handler) as server:
        words = [bytes([number]) for number in range(9)]
        assert await burst(place, server, *words) == words


@pytest.mark.parametrize("number", [8, 32, 64])
async def test_drain_ends_when_the_last_datagram_fills_a_batch(tmp_path: Path, number: int) -> None:
    """No event would tell that nothing is left."""
    place = Place("ipv4", tmp_path)
    async with place.serve(upper_datagram, max_pending=8 if number == 8 else 1024) as server:
        client = place.client(server)
        for _ in range(number):
            client.send(b"d")
        async with asyncio.timeout(PATIENCE / 2):
            assert await server.close(PATIENCE) == asyncserver.DrainReport(completed=number)
    place.close()


async def test_no_task_is_left_behind(place: Place) -> None:
    """Neither by a server that has served nor by one that has not, closed at once or politely."""
    before = asyncio.all_tasks()
    for timeout in (0, PATIENCE):
        for words in ((), (b"a", b"b")):
            async with place.serve(upper_datagram) as server:
                if words:
                    await burst(place, server, *words)
                await server.close(timeout)
                await server.wait_closed()
            assert asyncio.all_tasks() == before


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_interrupt_in_a_handler_ends_the_program(error: type[BaseException], tmp_path: Path, loop: str) -> None:
    """As in any task; what other handlers of the batch have returned is sent."""
    place = Place("ipv4", tmp_path)

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"end":
            raise error
        return datagram.data

    async def main() -> None:
        async with place.serve(handler) as server:
            client = place.client(server)
            await client.ask(b"first")
            client.send(b"last")
            client.send(b"end")
            await asyncio.Event().wait()

    factory = asyncio.new_event_loop if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with pytest.raises(error), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert place._clients[0].sock.recv(9) == b"last"
    place.close()
