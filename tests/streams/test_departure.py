"""`wait_disconnected()`: a handler learns that its peer is gone, without receiving."""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Iterator

import anyio
import pytest

from asyncserver import Stream
from asyncserver.net.poller import Poller
from tests.kit.transports import Transport, fill, little_room
from tests.kit.waiting import blocked, until, within


@contextlib.contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Count how often the poller reports something."""
    reports: list[object] = []
    original = Poller._on_ready

    def on_ready(poller: Poller) -> None:
        reports.append(poller)
        original(poller)

    with patch.context() as patched:
        patched.setattr(Poller, "_on_ready", on_ready)
        yield reports


async def test_peer_that_closes(transport: Transport) -> None:
    """All tasks that wait return; nobody has received anything."""
    async with transport.pair() as (stream, client):
        waiting = [await blocked(stream.wait_disconnected()) for _ in range(2)]
        client.close()
        await within(asyncio.gather(*waiting))
        assert stream.bytes_received == 0
        await within(stream.wait_disconnected())  # and again, at once


async def test_peer_that_resets(transport: Transport) -> None:
    """A reset is an end, too; the error is left to the next receive."""
    async with transport.pair() as (stream, client):
        waiting = await blocked(stream.wait_disconnected())
        client.reset()
        await within(waiting)
        with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):
            await within(stream.receive())


async def test_unread_bytes(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that nobody receives neither end the wait nor keep the loop busy; they are there afterwards."""
    with counted(monkeypatch) as reports:
        async with transport.pair() as (stream, client):
            waiting = await blocked(stream.wait_disconnected())
            await client.send(b"unread")
            await until(stream._unread)
            before = len(reports)
            await asyncio.sleep(0.2)
            assert not waiting.done()
            assert len(reports) - before < 10
            client.close()
            await within(waiting)
            before = len(reports)
            await asyncio.sleep(0.2)
            assert len(reports) - before < 10  # an end that is known is not reported again and again
            assert await within(stream.receive()) == b"unread"


async def test_peer_that_ends_its_side(transport: Transport) -> None:
    """It looks like one that has closed, but gets its answer; under TLS only `receive()` sees such an end."""
    async with transport.pair() as (stream, client):
        await client.send(b"request")
        waiting = await blocked(stream.wait_disconnected())
        await client.send_eof()
        assert await within(stream.receive()) == b"request"
        if transport.tls:
            with pytest.raises(anyio.EndOfStream):
                await within(stream.receive())
            assert not waiting.done()
        else:
            await within(waiting)
        await stream.send(b"answer")
        closing = asyncio.ensure_future(stream.aclose())
        assert await client.receive_all() == b"answer"
        await within(closing)
        await asyncio.wait([waiting])
        assert isinstance(waiting.exception(), anyio.ClosedResourceError if transport.tls else None.__class__)


async def test_while_another_task_receives(transport: Transport) -> None:
    """The receiver takes what is left; then both learn of the end."""
    async with transport.pair() as (stream, client):
        waiting, receiving = await blocked(stream.wait_disconnected()), await blocked(stream.receive())
        await client.send(b"last")
        assert await within(receiving) == b"last"
        assert not waiting.done()
        receiving = await blocked(stream.receive())
        client.close()
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            await within(receiving)
        await within(waiting)


async def test_news_while_another_task_pauses(transport: Transport) -> None:
    """A task that has received for so long that others may run is not woken, and nothing fails."""
    async with transport.pair() as (stream, client):
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        await client.send(b"." * 200)
        client.close()
        await within(stream.wait_disconnected())
        waiting = asyncio.create_task(stream.wait_disconnected())
        await asyncio.sleep(0)
        for _ in range(200):
            assert await within(stream.receive(1)) == b"."
        await within(waiting)
        assert errors == []


async def test_while_another_task_sends(transport: Transport) -> None:
    """A send that is blocked goes on, and breaks by itself."""
    async with transport.pair() as (stream, client):
        little_room(stream, client)
        await fill(stream)
        if stream._is_torn:  # a cancelled send under TLS
            waiting = await blocked(stream.wait_disconnected())
            client.reset()
            await within(waiting)
            return
        sending, waiting = await blocked(stream.send(bytes(1 << 20))), await blocked(stream.wait_disconnected())
        client.reset()
        await within(waiting)
        with pytest.raises(anyio.BrokenResourceError):
            await within(sending)


async def test_cancelled(transport: Transport) -> None:
    """A wait that is cancelled leaves nothing, and does not end another one."""
    async with transport.pair() as (stream, client):
        first, second = await blocked(stream.wait_disconnected()), await blocked(stream.wait_disconnected())
        first.cancel()
        await asyncio.wait([first])
        assert stream._events & select.EPOLLRDHUP
        second.cancel()
        await asyncio.wait([second])
        assert not stream._events & select.EPOLLRDHUP
        await client.send(b"still")
        assert await within(stream.receive()) == b"still"


async def test_closed_on_this_side(transport: Transport) -> None:
    """A task that waits gets ClosedResourceError, and so does one that comes too late."""
    async with transport.pair() as (stream, _):
        waiting = await blocked(stream.wait_disconnected())
        await within(stream.aclose())
        with pytest.raises(anyio.ClosedResourceError):
            await within(waiting)
        with pytest.raises(anyio.ClosedResourceError):
            await stream.wait_disconnected()


async def test_broken_meanwhile(transport: Transport) -> None:
    """It returns when another task has found the connection broken, and at once from then on."""
    async with transport.pair() as (stream, client):
        client.reset()
        with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):
            while True:
                await within(stream.send(b"x"))
                await asyncio.sleep(0.001)
        await within(stream.wait_disconnected())


async def test_drain_does_not_end_the_wait(transport: Transport) -> None:
    """A peer that is there is not disconnected because the server closes."""
    outcome: list[str] = []

    async def wait(stream: Stream) -> None:
        gone = asyncio.ensure_future(stream.wait_disconnected())
        await stream.closing.wait()
        with contextlib.suppress(anyio.EndOfStream):
            await stream.receive()
        outcome.append("waits" if not gone.done() else "gone")
        await gone
        outcome.append("gone")

    async with transport.serve(wait, drain_timeout=20) as server, transport.connect(server) as client:
        await until(lambda: server.connections)
        closing = asyncio.ensure_future(server.close())
        await until(lambda: outcome)
        client.close()
        await within(closing)
    assert outcome == ["waits", "gone"]
