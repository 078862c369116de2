"""Stream when things go wrong: interrupted operations, resets, a reader and a writer that see them at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import asyncserver.stream
from tests.support import Interrupt, Transport, blocked, eventually, within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncserver import Stream

RECEIVES: dict[str, Callable[[Stream], Callable[[], Awaitable[bytes]]]] = {
    "receive": lambda stream: stream.receive,
    "receive_exactly": lambda stream: lambda: stream.receive_exactly(10),
    "receive_until": lambda stream: lambda: stream.receive_until(b";", 100),
    "async for": lambda stream: stream.__anext__,
}


async def _upper(stream: Stream) -> None:
    async for data in stream:
        await stream.send(data.upper())


async def _rest(stream: Stream) -> bytes:
    return b"".join([data async for data in stream])


# -- interrupted


@pytest.mark.parametrize("operation", RECEIVES)
async def test_interrupted_receive_loses_nothing(transport: Transport, operation: str, interrupt: Interrupt) -> None:
    """Whatever had come, and whatever comes later, is received after all."""
    async with transport.pair() as (stream, client):
        if operation.startswith("receive_"):
            await client.send(b"part")
        await within(interrupt(lambda: _call(RECEIVES[operation](stream))))
        await client.send(b"56789;")
        await client.send_eof()
        before = b"part" if operation.startswith("receive_") else b""
        assert await within(_rest(stream)) == before + b"56789;"


async def _call(operation: Callable[[], Awaitable[bytes]]) -> bytes:
    return await operation()


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
    monkeypatch.setattr(asyncserver.stream, "_SPIN_LIMIT", 1)  # every attempt that need not wait pauses
    async with tls.pair(drain_timeout=0.1) as (stream, client):
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
            await within(stream.send(b"b" * 1000), 1)
        assert (await client.receive_exactly(before)).strip(b"a") == b""


async def test_interrupted_aclose_closes_at_once(
    transport: Transport, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aclose() that waits for a peer to end and is interrupted leaves nothing open."""
    async with transport.pair() as (stream, client):
        await client.send(bytes(100_000))
        await eventually(lambda: stream._unread() >= 100_000)
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
        await eventually(lambda: stream._unread())
        await within(stream.aclose())
        assert await client.receive_all() == b""


# -- reset


@pytest.mark.parametrize("operation", RECEIVES)
async def test_reset_while_reading(transport: Transport, operation: str) -> None:
    """Whoever waits for bytes gets BrokenResourceError with the system's error as its cause."""
    async with transport.pair() as (stream, client):
        await stream.send(b"unread")  # a Unix socket resets only if it had something to lose
        receiving = await blocked(_call(RECEIVES[operation](stream)))
        client.reset()
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await within(receiving)
        assert isinstance(caught.value.__cause__, OSError)
        assert repr(stream.peer_address) in str(caught.value)


async def test_reset_while_writing(transport: Transport) -> None:
    """Whoever waits for room gets BrokenResourceError with the system's error as its cause."""
    async with transport.pair() as (stream, client):
        sending = await blocked(stream.send(bytes(1 << 24)))
        client.reset()
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await within(sending)
        assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"more")


async def test_reset_while_reading_and_writing(transport: Transport) -> None:
    """A reader and a writer that wait both get it: the reader does not take it for the end of the stream."""
    async with transport.pair() as (stream, client):
        sending = await blocked(stream.send(bytes(1 << 24)))
        receiving = await blocked(stream.receive())
        client.reset()
        for task in (sending, receiving):
            with pytest.raises(anyio.BrokenResourceError):
                await within(task)


async def test_reset_behind_data(transport: Transport) -> None:
    """A reader that waits gets the bytes that lay before the reset, and then the reset."""
    async with transport.pair() as (stream, client):
        await stream.send(b"unread")
        received = b""

        async def receive() -> None:
            nonlocal received
            async for data in stream:
                received += data

        receiving = await blocked(receive())
        await client.send(b"0123456789" * 10)
        client.reset()
        with pytest.raises(anyio.BrokenResourceError):
            await within(receiving, 5)
        assert received == b"0123456789" * 10


async def test_reset_right_behind_the_first_bytes(transport: Transport) -> None:
    """Clients that connect, speak and vanish while the server is still busy with the connection before."""

    async def listen(stream: Stream) -> None:
        await stream.send(b"unread")
        async for _ in stream:
            pass

    async with transport.serve(listen) as server:
        for _ in range(50):
            client = await transport.connect(server)
            await client.send(b"hello")
            client.reset()
        await eventually(lambda: server.stats().completed == 50)


async def test_sender_sees_the_reset_first(transport: Transport) -> None:
    """A reader that waits is told, too, when another task's send finds the connection broken."""
    async with transport.pair() as (stream, client):
        await stream.send(b"unread")
        receiving = await blocked(stream.receive())
        client.reset()
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"x")
        with pytest.raises(anyio.BrokenResourceError):
            await within(receiving, 5)


async def test_slow_tls_download_is_not_idle(tls: Transport) -> None:
    """A peer that takes a large send little by little keeps the idle timeout away."""
    async with tls.pair(idle_timeout=0.3) as (stream, client):
        size = 12 << 20
        sending = await blocked(stream.send(bytes(size)))
        received = 0
        while received < size:
            received += len(await client.receive_exactly(size // 24))
            await asyncio.sleep(0.03)  # slow is what this peer is
        await within(sending)


@pytest.mark.parametrize("first", ["receive", "send", "send_eof"])
async def test_broken_stays_broken(transport: Transport, first: str) -> None:
    """The kernel tells a reset once and then reports an end; the stream does not."""
    async with transport.pair() as (stream, client):
        await stream.send(b"unread")
        client.reset()
        await eventually(lambda: _hung_up(stream))
        with contextlib.suppress(anyio.BrokenResourceError):
            if first == "receive":
                await stream.receive()
            elif first == "send":
                await stream.send(b"x")
            else:
                await stream.send_eof()
        for _ in range(3):
            with pytest.raises(anyio.BrokenResourceError):
                await within(stream.receive())
            with pytest.raises(anyio.BrokenResourceError):
                await within(_rest(stream))
            with pytest.raises(anyio.BrokenResourceError):
                await within(stream.receive_exactly(1))
            if first != "send_eof":
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.send(b"x")
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.send_eof()


def _hung_up(stream: Stream) -> bool:
    poll = select.poll()
    poll.register(stream._fd, 0)
    return bool(poll.poll(0))


@pytest.mark.parametrize("sent_first", [False, True], ids=["read", "write-then-read"])
async def test_what_came_before_a_reset_is_received(tcp: Transport, sent_first: bool) -> None:
    """Bytes that had reached us are received before the break is told, also by a handler that has sent into it."""
    async with tcp.pair() as (stream, client):
        await client.send(b"0123456789")
        await eventually(lambda: stream._unread() == 10)
        client.reset()
        await eventually(lambda: _hung_up(stream))
        if sent_first:
            with pytest.raises(anyio.BrokenResourceError):
                await stream.send(b"x")
        assert await within(stream.receive(4)) == b"0123"
        assert await within(stream.receive_exactly(6)) == b"456789"
        with pytest.raises(anyio.BrokenResourceError):
            await within(stream.receive())


async def test_buffered_bytes_survive_a_reset(transport: Transport) -> None:
    """What the stream had taken over from the kernel is still received."""
    async with transport.pair() as (stream, client):
        await stream.send(b"unread")
        await client.send(b"line\nrest")
        assert await stream.receive_until(b"\n", 100) == b"line"
        client.reset()
        await eventually(lambda: _hung_up(stream))
        assert await stream.receive_exactly(4) == b"rest"
        with pytest.raises(anyio.BrokenResourceError):
            await within(stream.receive_until(b"\n", 100))


async def test_send_after_the_peer_has_closed(transport: Transport) -> None:
    """A peer that has closed for good: sending breaks, and the end of its stream is still an end."""
    async with transport.pair() as (stream, client):
        await client.send_eof()
        client.close()
        with pytest.raises(anyio.BrokenResourceError):
            for _ in range(1000):
                await stream.send(b"x")
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("moment", ["reading", "writing", "handling"])
async def test_resets_are_nobodys_error(transport: Transport, moment: str, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that lets them pass ends as completed; nothing is logged, on_error is not called, others go on."""
    reached = asyncio.Event()
    reset = asyncio.Event()
    errors: list[BaseException] = []

    async def handle(stream: Stream) -> None:
        if await stream.receive_exactly(1) == b"q":
            await stream.send(b"a")
            return
        await stream.send(b"unread")
        reached.set()
        if moment == "writing":
            await stream.send(bytes(1 << 24))
        elif moment == "handling":
            await reset.wait()
        await stream.receive()
        raise AssertionError("unreachable")

    async with transport.serve(handle, on_error=lambda exc, _: errors.append(exc)) as server:
        client = await transport.connect(server)
        await client.send(b"!")
        await within(reached.wait())
        client.reset()
        reset.set()
        await eventually(lambda: server.stats().completed == 1)
        assert server.stats().failed == 0
        other = await transport.connect(server)
        assert await other.ask(b"q") == b"a"
        other.close()
    assert not errors
    assert not [record for record in caplog.records if record.name == "asyncserver"]


async def test_many_resets_leave_nothing(transport: Transport) -> None:
    """A hundred clients that vanish: no connection, no descriptor stays."""
    async with transport.serve(_upper) as server:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(100):
            client = await transport.connect(server)
            await client.send(b"hello")
            client.reset()
        await eventually(lambda: not server.stats().active and server.stats().accepted == 100)
        await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


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

    async with transport.serve(handle) as server:
        client = await transport.connect(server)
        await client.send(b"!")
        await within(handling.wait())
        await eventually(lambda: server.stats().failed == 1)
        other = await transport.connect(server)
        assert await other.ask(b"q") == b"a"
        other.close()
        client.close()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncserver"]
