"""close() where one task receives and others answer: the receive ends when nothing is owed any more."""

from __future__ import annotations

import asyncio
import contextlib

import anyio
import pytest

from asyncserver import DrainReport, Stream
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until, within


class Answering:
    """A handler that answers in tasks of their own, when it is told to, and receives meanwhile."""

    def __init__(self, size: int, *, posts: bool) -> None:
        self.size, self.posts = size, posts
        self.asked = 0
        self.gate = asyncio.Event()

    async def __call__(self, stream: Stream) -> None:
        async with asyncio.TaskGroup() as group:
            with contextlib.suppress(anyio.IncompleteRead):
                while True:
                    await stream.receive_until(b"\n", 100)
                    self.asked += 1
                    group.create_task(self.answer(stream))

    async def answer(self, stream: Stream) -> None:
        await self.gate.wait()
        if self.posts:
            stream.post(bytes(self.size))
        else:
            await stream.send(bytes(self.size))


@pytest.mark.parametrize("posts", [False, True], ids=["send", "post"])
@pytest.mark.parametrize("size", [9, 3_000_000], ids=["small", "big"])
async def test_answer_of_another_task(transport: Transport, size: int, *, posts: bool) -> None:
    """It reaches the client whole, and then the connection ends, long before the deadline."""
    handler = Answering(size, posts=posts)
    async with transport.serve(handler) as server, transport.connect(server) as client:
        await client.send(b"hello\n")
        await until(lambda: handler.asked)
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: not server.sockets)
        assert not closing.done()
        handler.gate.set()
        assert await client.receive_exactly(size) == bytes(size)
        assert await client.rest() == b""
        assert await within(closing, PATIENCE / 2) == DrainReport(completed=1)


async def test_answer_that_is_under_way(transport: Transport) -> None:
    """The same where the client had no room for it when the drain began."""
    handler, size = Answering(8_000_000, posts=False), 8_000_000
    async with transport.serve(handler) as server, transport.connect(server) as client:
        handler.gate.set()
        await client.send(b"hello\n")
        assert await client.receive_exactly(9) == bytes(9)
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: not server.sockets)
        assert not closing.done()
        assert await client.receive_exactly(size - 9) == bytes(size - 9)
        assert await client.rest() == b""
        assert await within(closing, PATIENCE / 2) == DrainReport(completed=1)


async def test_answer_that_waits_behind_posts(transport: Transport) -> None:
    """It is kept, and so it is on its way: the receive need not wait until the client has taken all."""
    handler, size = Answering(9, posts=True), 8_000_000

    async def greet(stream: Stream) -> None:
        stream.post(bytes(size))
        await handler(stream)

    async with transport.serve(greet, max_unsent=2 * size) as server, transport.connect(server) as client:
        await client.send(b"hello\n")
        await until(lambda: handler.asked)
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: not server.sockets)
        handler.gate.set()
        await until(lambda: not server.connections)
        assert await client.receive_exactly(size + 9) == bytes(size + 9)
        assert await client.rest() == b""
        assert await within(closing, PATIENCE / 2) == DrainReport(completed=1)


async def test_answer_to_a_half_question_is_none(transport: Transport) -> None:
    """Where the next question has begun, the receive waits for its rest, whatever is sent meanwhile."""
    handler = Answering(9, posts=False)
    async with transport.serve(handler) as server, transport.connect(server) as client:
        await client.send(b"hello\nwor")
        await until(lambda: handler.asked)
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: not server.sockets)
        handler.gate.set()
        assert await client.receive_exactly(9) == bytes(9)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not closing.done()
        await client.send(b"ld\n")
        assert await client.receive_exactly(9) == bytes(9)
        assert await client.rest() == b""
        assert await within(closing, PATIENCE / 2) == DrainReport(completed=1)
