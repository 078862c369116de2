"""Posts that meet another task's send, a close under way, or a broken connection."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from asyncserver import Stream
from asyncserver.net.poller import WRITE
from tests.kit.transports import Transport
from tests.kit.waiting import blocked, until, within
from tests.streams.test_posting import MUCH, ROOMY, post_until_it_waits


@pytest.mark.parametrize("posted_before", [False, True])
async def test_send_eof_during_a_send_loses_no_post(transport: Transport, posted_before: bool) -> None:
    """It is refused, and the send and what was posted behind it arrive as if it had not been."""
    async with transport.pair(max_unsent=ROOMY) as (stream, client):
        before = await post_until_it_waits(stream) if posted_before else 0
        assert len(await client.receive_exactly(before)) == before
        sending = await blocked(stream.send(MUCH))
        assert stream.post(b"behind")
        with pytest.raises(anyio.BusyResourceError):
            await stream.send_eof()
        assert await client.receive_exactly(len(MUCH) + 6) == MUCH + b"behind"
        await within(sending)


async def test_send_eof_while_a_send_waits_behind_posts(transport: Transport) -> None:
    """It is refused; the send keeps its turn."""
    async with transport.pair(max_unsent=ROOMY) as (stream, client):
        posted = await post_until_it_waits(stream)
        sending = await blocked(stream.send(b"sent"))
        with pytest.raises(anyio.BusyResourceError):
            await stream.send_eof()
        assert (await client.receive_exactly(posted + 4))[posted:] == b"sent"
        await within(sending)


async def test_a_post_to_one_who_is_being_closed(transport: Transport) -> None:
    """It is refused, and what was posted before still arrives."""
    posted = 0
    closing = asyncio.Event()

    async def post_and_close(stream: Stream) -> None:
        nonlocal posted
        posted = await post_until_it_waits(stream)
        closing.set()
        await stream.aclose()

    async with transport.serve(post_and_close, max_unsent=ROOMY) as server, transport.connect(server) as client:
        await within(closing.wait())
        (stream,) = server.connections
        with pytest.raises(anyio.ClosedResourceError):
            stream.post(b"late")
        assert server.broadcast(b"late") == 0
        assert len(await client.receive_exactly(posted)) == posted
        assert await client.receive() == b""


async def test_a_broken_connection_is_not_watched(tcp: Transport) -> None:
    """Nobody waits for its room any more: the loop would report its error again and again."""
    async with tcp.pair(max_unsent=ROOMY) as (stream, client):
        await post_until_it_waits(stream)
        client.reset()
        await until(lambda: stream._is_broken)
        assert not stream._events & WRITE
