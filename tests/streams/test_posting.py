"""Stream.post(): never waits, keeps the order, and gives up who is too slow."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import anyio
import pytest

import asyncserver
from asyncserver import Stream
from tests.kit.clients import TLSClient
from tests.kit.handlers import upper
from tests.kit.transports import Transport
from tests.kit.waiting import blocked, until, within

MUCH = bytes(range(256)) * 64_000  # 16 MB: more than the buffers of both sides ever grow to
ROOMY = 64 << 20


async def post_until_it_waits(stream: Stream, line: bytes = MUCH) -> int:
    """Post until the kernel takes no more, and something is kept; returns the bytes posted."""
    posted = 0
    while not stream._outbox:
        assert stream.post(line)
        posted += len(line)
    return posted


# -- what arrives


async def test_posts_arrive(transport: Transport) -> None:
    """All kinds of bytes, at once where there is room."""
    async with transport.pair() as (stream, client):
        assert stream.post(b"abc")
        assert stream.post(bytearray(b"def"))
        assert stream.post(memoryview(b"ghi"))
        assert stream.post(b"")
        assert await client.receive_exactly(9) == b"abcdefghi"
        assert stream.bytes_sent == 9


async def test_posts_that_wait_arrive_in_order(transport: Transport) -> None:
    """What the kernel has no room for is kept; many small ones as well as a big one."""
    lines = [b"%d\n" % number for number in range(20_000)]
    async with transport.pair(max_unsent=ROOMY) as (stream, client):
        posted = await post_until_it_waits(stream)
        assert all(map(stream.post, lines))
        left = bytearray(await client.receive_exactly(posted + len(b"".join(lines))))
        assert left[posted:] == b"".join(lines)
        assert stream.bytes_sent == len(left)
        assert stream.post(b"again")
        assert await client.receive_exactly(5) == b"again"


async def test_a_buffer_that_changes_after_the_post(transport: Transport) -> None:
    """A copy is kept: the program may use its buffer again."""
    async with transport.pair(max_unsent=ROOMY) as (stream, client):
        posted = await post_until_it_waits(stream)
        buffer = bytearray(b"before")
        stream.post(buffer)
        buffer[:] = b"after!"
        assert (await client.receive_exactly(posted + 6))[posted:] == b"before"


async def test_posts_and_sends_keep_their_order(transport: Transport) -> None:
    """A post behind a send that is under way, a send behind posts, and a post behind that."""
    async with transport.pair(max_unsent=ROOMY) as (stream, client):
        first = await blocked(stream.send(MUCH))
        assert stream.post(b"2" * 100_000)
        receiving = asyncio.create_task(client.receive_exactly(len(MUCH) + 300_000))
        await within(first)
        second = asyncio.create_task(stream.send(b"3" * 100_000))
        await asyncio.sleep(0)
        assert stream.post(b"4" * 100_000)
        received = await within(receiving)
        await within(second)
        assert received == MUCH + b"2" * 100_000 + b"3" * 100_000 + b"4" * 100_000


async def test_a_send_behind_posts_is_cancelled(transport: Transport) -> None:
    """It leaves its place, having sent nothing; what was posted before and after it arrives."""
    async with transport.pair(max_unsent=ROOMY) as (stream, client):
        posted = await post_until_it_waits(stream)
        sending = await blocked(stream.send(b"never"))
        with pytest.raises(anyio.BusyResourceError):
            await stream.send(b"second")
        assert stream.post(b"behind")
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert (await client.receive_exactly(posted + 6))[posted:] == b"behind"
        await stream.send(b"sent")
        assert await client.receive_exactly(4) == b"sent"


async def test_a_send_in_its_turn_is_cancelled() -> None:
    """What is posted behind it arrives behind what it has sent."""
    async with Transport("tcp", None).pair(max_unsent=ROOMY) as (stream, client):  # type: ignore[arg-type]
        sending = await blocked(stream.send(MUCH))
        assert stream.post(b"behind")
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        sent = stream.bytes_sent
        assert await client.receive_exactly(sent + 6) == MUCH[:sent] + b"behind"


async def test_send_eof_waits_for_posts(transport: Transport) -> None:
    """The end of our side comes behind what was posted; then posting is refused."""
    async with transport.pair(max_unsent=ROOMY) as (stream, client):
        posted = await post_until_it_waits(stream)
        ending = await blocked(stream.send_eof())
        assert len(await client.receive_exactly(posted)) == posted
        await within(ending)
        assert await client.receive() == b""
        with pytest.raises(anyio.ClosedResourceError, match="send_eof"):
            stream.post(b"late")


async def test_posts_before_start_tls_go_plain(tcp: Transport) -> None:
    """TLS starts behind them, as behind a send."""
    async with tcp.pair(max_unsent=ROOMY) as (stream, client):
        posted = await post_until_it_waits(stream)
        securing = await blocked(stream.start_tls(tcp.server_context))
        await client.receive_exactly(posted)
        secure = TLSClient(client.sock, tcp.client_context)
        await secure.handshake()
        await within(securing)
        assert stream.post(b"secret")
        assert await secure.receive_exactly(6) == b"secret"


async def test_detach_does_not_lose_posts(transport: Transport) -> None:
    """It is refused while posted bytes wait."""
    async with transport.pair(max_unsent=ROOMY) as (stream, _):
        await post_until_it_waits(stream)
        with pytest.raises(RuntimeError, match="posted bytes wait"):
            stream.detach()


# -- the end


async def test_handler_that_posts_and_returns(transport: Transport) -> None:
    """What is kept is delivered before the connection is closed, at a handler's end and in a drain."""

    async def push(stream: Stream) -> None:
        for _ in range(3):
            assert stream.post(MUCH)

    async with transport.serve(push, drain_timeout=60, max_unsent=ROOMY) as server, transport.connect(server) as client:
        await until(lambda: not server.connections)
        closing = asyncio.create_task(server.close())
        received = await within(client.receive_exactly(3 * len(MUCH)), 60)  # 48 MB: 2 s of work under TLS, not a moment
        assert received == 3 * MUCH
        assert await client.receive() == b""
        await within(closing)
        stats = server.stats()
        assert (stats.completed, stats.undelivered, stats.bytes_sent) == (1, 0, 3 * len(MUCH))


async def test_posts_that_are_not_taken_are_told() -> None:
    """In a drain at its deadline: aborted, and counted as undelivered."""

    async def push(stream: Stream) -> None:
        assert stream.post(MUCH)

    transport = Transport("tcp", None)  # type: ignore[arg-type]
    async with transport.serve(push, max_unsent=ROOMY) as server, transport.connect(server):
        await until(lambda: not server.connections)
        report = await within(server.close(0.1))
        assert report == asyncserver.DrainReport(aborted=1)
        assert server.stats().undelivered == 1


async def test_abort_throws_posts_away(transport: Transport) -> None:
    """And posting afterwards is refused, as on any closed stream."""
    async with transport.pair(max_unsent=ROOMY) as (stream, _):
        await post_until_it_waits(stream)
        stream.abort()
        assert stream._outbox is None
        with pytest.raises(anyio.ClosedResourceError):
            stream.post(b"late")
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(b"late")


async def test_close_ends_a_send_behind_posts(transport: Transport) -> None:
    """It gets ClosedResourceError; the posts are delivered."""
    async with transport.pair(max_unsent=ROOMY) as (stream, client):
        posted = await post_until_it_waits(stream)
        sending = await blocked(stream.send(b"never"))
        closing = await blocked(stream.aclose())
        with pytest.raises(anyio.ClosedResourceError):
            await within(sending)
        assert len(await client.receive_exactly(posted)) == posted
        assert await client.receive() == b""
        await within(closing)


# -- who is gone, and who is too slow


async def test_posting_to_a_broken_connection_is_no_error(tcp: Transport) -> None:
    """Whoever posts to many need not care: the handler of that connection is told."""
    async with tcp.pair(max_unsent=ROOMY) as (stream, client):
        await post_until_it_waits(stream)
        receiving = await blocked(stream.receive())
        client.reset()
        with pytest.raises(anyio.BrokenResourceError):
            await within(receiving)
        assert not stream.post(b"late")
        assert not stream._outbox


async def test_slow_consumer_is_given_up(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """When more than max_unsent bytes wait: aborted, counted, told once; its handler learns it."""
    ended: asyncio.Queue[BaseException] = asyncio.Queue()
    streams: asyncio.Queue[Stream] = asyncio.Queue()

    async def wait(stream: Stream) -> None:
        streams.put_nowait(stream)
        try:
            await stream.receive()
        except BaseException as exc:
            ended.put_nowait(exc)
            raise

    async with transport.serve(wait, max_unsent=1000) as server:
        for number in range(3):
            async with transport.connect(server):
                stream = await within(streams.get())
                with caplog.at_level(logging.WARNING, "asyncserver"):
                    assert not stream.post(MUCH)
                assert isinstance(await within(ended.get()), anyio.ClosedResourceError)
                assert not stream.post(b"late")
                assert server.stats().slow_consumers == number + 1
        await until(lambda: not server.connections)
        assert (server.stats().failed, server.stats().undelivered) == (0, 3)
    told = [record.getMessage() for record in caplog.records if "max_unsent" in record.getMessage()]
    assert len(told) == 1


async def test_small_posts_count_as_the_memory_that_they_take(tcp: Transport) -> None:
    """A million posts of two bytes are given up long before two million bytes wait."""
    async with tcp.pair(max_unsent=1 << 20) as (stream, _):
        while not stream._outbox:
            assert stream.post(bytes(65536))
        before = stream._outbox.size
        posts = sum(1 for _ in iter(lambda: stream.post(b"ab"), False))
        assert before + 2 * posts < 1 << 20 <= before + 50 * posts + 100


async def test_max_unsent_nothing(tcp: Transport) -> None:
    """With 0 the kernel's buffer is all there is."""
    async with tcp.pair(max_unsent=0) as (stream, client):
        assert stream.post(b"abc")
        assert await client.receive() == b"abc"
        assert not stream.post(MUCH)


@pytest.mark.parametrize(("wrong", "error"), [("abc", TypeError), (3, TypeError), (None, TypeError)])
async def test_wrong_data(tcp: Transport, wrong: Any, error: type[Exception]) -> None:
    """The call is named, and the stream stays as it was."""
    async with tcp.pair() as (stream, client):
        with pytest.raises(error, match=r"post\(\) takes bytes"):
            stream.post(wrong)
        assert stream.post(b"abc")
        assert await client.receive() == b"abc"


@pytest.mark.parametrize("wrong", [-1, 1.5, "1"])
def test_wrong_limit(wrong: Any) -> None:
    """max_unsent is a number of bytes."""
    with pytest.raises((TypeError, ValueError), match="max_unsent"):
        asyncserver.serve(upper, "127.0.0.1", 0, max_unsent=wrong)
