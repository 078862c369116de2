"""Stream when an operation is interrupted: nothing is lost, and what is torn is closed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import anyio
import pytest

from asyncserver import Stream
from tests.kit.interruptions import Interrupt
from tests.kit.streams import RECEIVES, call, rest
from tests.kit.transports import Transport, little_room
from tests.kit.waiting import blocked, until, within

# -- interrupted


@pytest.mark.parametrize("operation", RECEIVES)
async def test_interrupted_receive_loses_nothing(transport: Transport, operation: str, interrupt: Interrupt) -> None:
    """Whatever had come, and whatever comes later, is received after all."""
    async with transport.pair() as (stream, client):
        if operation.startswith("receive_"):
            await client.send(b"part")
        await within(interrupt(lambda: call(RECEIVES[operation](stream))))
        await client.send(b"56789;")
        await client.send_eof()
        before = b"part" if operation.startswith("receive_") else b""
        assert await within(rest(stream)) == before + b"56789;"


async def test_interrupted_again_and_again(transport: Transport, interrupt: Interrupt) -> None:
    """One message, a byte at a time, with an interruption after each."""
    async with transport.pair() as (stream, client):
        for number in range(3):
            await client.send(b"%d" % number)
            await within(interrupt(lambda: stream.receive_exactly(4)))
        await client.send(b"3")
        assert await within(stream.receive_exactly(4)) == b"0123"


async def test_cancel_then_data(transport: Transport) -> None:
    """Bytes that arrive between cancel() and the task's next step stay in the stream."""
    async with transport.pair() as (stream, client):
        for _ in range(20):
            receiving = await blocked(stream.receive())
            receiving.cancel()
            await client.send(b"abc")
            with pytest.raises(asyncio.CancelledError):
                await within(receiving)
            assert await within(stream.receive()) == b"abc"


async def test_data_then_cancel(transport: Transport) -> None:
    """Bytes that are there when cancel() is called are received by that task, or by the next."""
    async with transport.pair() as (stream, client):
        for steps in range(12):
            receiving = await blocked(stream.receive())
            sending = asyncio.create_task(client.send(b"abc"))
            for _ in range(steps):
                await asyncio.sleep(0)
            receiving.cancel()
            await sending
            try:
                data = await within(receiving)
            except asyncio.CancelledError:
                data = await within(stream.receive())
            assert data == b"abc"


async def test_cancel_that_is_swallowed(transport: Transport) -> None:
    """A task that goes on after its cancellation receives as before."""
    async with transport.pair() as (stream, client):

        async def stubborn() -> bytes:
            with contextlib.suppress(asyncio.CancelledError):
                await stream.receive()
            return await stream.receive()

        task = await blocked(stubborn())
        task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        await client.send(b"abc")
        assert await within(task) == b"abc"


async def test_timeouts_around_a_receive_that_succeeds(transport: Transport) -> None:
    """Limits that are not reached do not show."""
    async with transport.pair() as (stream, client):
        for _ in range(10):
            await client.send(b"abc")
            async with asyncio.timeout(10), asyncio.TaskGroup() as group:
                receiving = group.create_task(asyncio.wait_for(stream.receive(), 10))
                with anyio.fail_after(10), anyio.CancelScope():
                    assert await receiving == b"abc"


async def test_interrupted_send(transport: Transport, interrupt: Interrupt) -> None:
    """A send that waits for room ends; what was sent is a beginning of it, and the receiving side is unharmed."""
    async with transport.pair(drain_timeout=0.1) as (stream, client):
        data = bytes(range(256)) * (1 << 16)
        await within(interrupt(lambda: stream.send(data)))
        assert 0 < stream.bytes_sent < len(data)
        await client.send(b"question")
        assert await within(stream.receive()) == b"question"
        received = await client.receive_exactly(stream.bytes_sent)
        assert received == data[: stream.bytes_sent]
        try:
            await stream.send(b"more")
        except anyio.BrokenResourceError as exc:  # in the middle of a record
            assert transport.tls
            assert "TLS was interrupted" in str(exc)
            with pytest.raises(anyio.BrokenResourceError, match="TLS was interrupted"):
                await stream.send_eof()
        else:
            assert await client.receive() == b"more"


async def test_tls_send_cancelled_at_a_pause_is_torn(tls: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that OpenSSL has begun must be finished: after a cancel between two attempts none may follow."""
    # Every attempt that need not wait pauses.
    monkeypatch.setattr("asyncserver.connections.connection.Connection._SPIN_LIMIT", 1)
    async with tls.pair(drain_timeout=0.1) as (stream, client):
        little_room(stream, client)
        record = b"a" * 1000
        for _ in range(100_000):
            before = stream.bytes_sent
            sending = asyncio.create_task(stream.send(record))
            await asyncio.sleep(0)
            if stream.bytes_sent == before:  # would block: cancelled at the pause before the second attempt
                sending.cancel()
                break
            await sending
        with pytest.raises(asyncio.CancelledError):
            await sending
        with pytest.raises(anyio.BrokenResourceError, match="TLS was interrupted"):
            await within(stream.send(b"b" * 1000))
        assert (await client.receive_exactly(before)).strip(b"a") == b""


async def test_interrupted_aclose_closes_at_once(
    transport: Transport, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aclose() that waits for a peer to end and is interrupted leaves nothing open."""
    async with transport.pair() as (stream, client):
        await client.send(bytes(100_000))
        await until(lambda: stream._unread())
        await within(interrupt(stream.aclose))
        assert stream._fd == -1
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()
        await stream.aclose()
        with contextlib.suppress(ConnectionResetError):
            assert await client.receive_all() == b""


async def test_unread_tls_bytes_do_not_spoil_aclose(tls: Transport) -> None:
    """close_notify that crosses data is sent all the same: the peer's stream ends cleanly."""
    async with tls.pair() as (stream, client):
        await client.send(b"unread")
        await until(lambda: stream._unread())
        await within(stream.aclose())
        assert await client.receive_all() == b""


# -- and the server


async def test_interrupted_stream_is_closed_by_the_server(transport: Transport, caplog: Any) -> None:
    """A handler cancelled in the middle of a send: the connection is closed, the server goes on."""
    handling = asyncio.Event()

    async def handle(stream: Stream) -> None:
        if await stream.receive_exactly(1) == b"q":
            await stream.send(b"a")
            return
        handling.set()
        async with asyncio.timeout(0.05):
            await stream.send(bytes(1 << 24))

    async with transport.serve(handle) as server, transport.connect(server) as client:
        await client.send(b"!")
        await within(handling.wait())
        await until(lambda: server.stats().timed_out == 1)
        other = await transport.connect(server)
        assert await other.ask(b"q") == b"a"
        other.close()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncserver"]
