"""Stream when the peer resets: a reader and a writer that see it at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select

import anyio
import pytest

from asyncserver import Stream
from tests.kit.checks import is_idle
from tests.kit.handlers import upper
from tests.kit.streams import RECEIVES, call, rest
from tests.kit.transports import Transport
from tests.kit.waiting import blocked, until, within


@pytest.mark.parametrize("operation", RECEIVES)
async def test_reset_while_reading(transport: Transport, operation: str) -> None:
    """Whoever waits for bytes gets BrokenResourceError with the system's error as its cause."""
    async with transport.pair() as (stream, client):
        await stream.send(b"unread")  # a Unix socket resets only if it had something to lose
        receiving = await blocked(call(RECEIVES[operation](stream)))
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
        await until(lambda: server.stats().completed == 50)


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
    async with tls.pair(idle_timeout=2) as (stream, client):
        size = 12 << 20
        sending = await blocked(stream.send(bytes(size)))
        received = 0
        while received < size:
            received += len(await client.receive_exactly(size // 24))
            await asyncio.sleep(0.1)  # slow is what this peer is
        await within(sending)


@pytest.mark.parametrize("first", ["receive", "send", "send_eof"])
async def test_broken_stays_broken(transport: Transport, first: str) -> None:
    """The kernel tells a reset once and then reports an end; the stream does not."""
    async with transport.pair() as (stream, client):
        await stream.send(b"unread")
        client.reset()
        await until(lambda: _hung_up(stream))
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
                await within(rest(stream))
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
        await until(lambda: stream._unread() == 10)
        client.reset()
        await until(lambda: _hung_up(stream))
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
        await until(lambda: _hung_up(stream))
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
        await until(lambda: server.stats().completed == 1)
        assert server.stats().failed == 0
        other = await transport.connect(server)
        assert await other.ask(b"q") == b"a"
        other.close()
    assert not errors
    assert not [record for record in caplog.records if record.name == "asyncserver"]


async def test_many_resets_leave_nothing(transport: Transport) -> None:
    """A hundred clients that vanish: no connection, no descriptor stays."""
    async with transport.serve(upper) as server:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(100):
            client = await transport.connect(server)
            await client.send(b"hello")
            client.reset()
        await until(lambda: is_idle(server) and server.stats().accepted == 100)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
