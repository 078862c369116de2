"""close() where nothing is answered: a handler says when a message is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from asyncserver import DrainReport, Stream
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until, within

#: How a message of five bytes is received.
WAYS: dict[str, Callable[[Stream], Awaitable[bytes]]] = {
    "receive": lambda stream: stream.receive(5),
    "receive_until": lambda stream: stream.receive_until(b"\n", 100),
    "receive_exactly": lambda stream: stream.receive_exactly(5),
}


@pytest.fixture(params=list(WAYS))
def receive(request: pytest.FixtureRequest) -> Callable[[Stream], Awaitable[bytes]]:
    """Each way to receive a message."""
    return WAYS[request.param]


async def test_client_that_is_not_answered_does_not_hold_the_drain(
    transport: Transport, receive: Callable[[Stream], Awaitable[bytes]]
) -> None:
    """It ends as soon as what had reached this host has been taken."""
    taken = []

    async def collect(stream: Stream) -> None:
        while True:
            taken.append(await receive(stream))
            stream.end_message()

    async with transport.serve(collect) as server, transport.connect(server) as client:
        await client.send(b"read\n")
        await until(lambda: taken)
        await client.send(b"late\n")  # perhaps still in the kernel
        assert await within(server.close(PATIENCE), PATIENCE / 2) == DrainReport(completed=1)
        assert await client.rest() == b""
    assert [one.rstrip(b"\n") for one in taken] in ([b"read", b"late"], [b"read"])


async def test_half_a_message_is_waited_for(transport: Transport) -> None:
    """What came behind a message that is over is the next one, and has until the deadline."""
    taken = []

    async def collect(stream: Stream) -> None:
        while True:
            taken.append(await stream.receive_until(b"\n", 100))
            stream.end_message()

    async with transport.serve(collect) as server, transport.connect(server) as client:
        await client.send(b"whole\nhalf ")
        await until(lambda: server.stats().bytes_received == 11)
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: not server.sockets)
        assert not closing.done()
        await client.send(b"and whole\n")
        assert await within(closing, PATIENCE / 2) == DrainReport(completed=1)
    assert taken == [b"whole", b"half and whole"]


async def test_other_task_ends_the_message(transport: Transport) -> None:
    """A receive that waits in a drain comes to its end when another task says that nothing is owed."""
    streams = []

    async def collect(stream: Stream) -> None:
        streams.append(stream)
        async for _ in stream:
            pass

    async with transport.serve(collect) as server, transport.connect(server) as client:
        await client.send(b"hello")
        await until(lambda: server.stats().bytes_received == 5)
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: not server.sockets)
        assert not closing.done()
        streams[0].end_message()
        assert await within(closing, PATIENCE / 2) == DrainReport(completed=1)
        streams[0].end_message()  # after the end, it is nothing to complain about


async def test_answers_and_none_in_turns(transport: Transport) -> None:
    """Only what is not said to be over is waited for."""

    async def answer_questions(stream: Stream) -> None:
        while True:
            line = await stream.receive_until(b"\n", 100)
            if line.endswith(b"?"):
                await stream.send(b"yes\n")
            else:
                stream.end_message()

    async with transport.serve(answer_questions) as server, transport.connect(server) as client:
        await client.send(b"well\nis it?\nfine\n")
        assert await client.receive_exactly(4) == b"yes\n"
        assert await within(server.close(PATIENCE), PATIENCE / 2) == DrainReport(completed=1)
        assert await client.rest() == b""
