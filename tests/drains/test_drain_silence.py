"""close() where nothing is answered: a handler says when a message is over."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asyncserver import DrainReport, Stream, from_callback, from_protocol
from asyncserver.adapters import silent_connection
from compat import hosted
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


# -- handlers that cannot say so: `answers=False`

Style = Callable[[list[bytes], bool], Any]


def protocol(taken: list[bytes], answers: bool) -> Any:
    class Collect(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            taken.append(data)

    return from_protocol(Collect, answers=answers)


def buffered_protocol(taken: list[bytes], answers: bool) -> Any:
    class Collect(asyncio.BufferedProtocol):
        def get_buffer(self, sizehint: int) -> bytearray:
            self.buffer = bytearray(1000)
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            taken.append(bytes(self.buffer[:nbytes]))

    return from_protocol(Collect, answers=answers)


def callback(taken: list[bytes], answers: bool) -> Any:
    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            taken.append(line)
        writer.close()

    return from_callback(collect, answers=answers)


def hosted_lines(taken: list[bytes], answers: bool) -> Any:
    class Collect(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            taken.extend(self.rfile)

    return hosted(Collect, answers=answers)


def hosted_bytes(taken: list[bytes], answers: bool) -> Any:
    class Collect(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(1000):
                taken.append(data)

    return hosted(Collect, answers=answers)


STYLES: list[Style] = [protocol, buffered_protocol, callback, hosted_lines, hosted_bytes]
OF_LINES = STYLES[2:4]


@pytest.fixture(params=STYLES, ids=lambda style: style.__name__)
def style(request: pytest.FixtureRequest) -> Style:
    """Each kind of handler that has no `end_message()`."""
    made: Style = request.param
    return made


async def test_silent_handler_does_not_hold_the_drain(transport: Transport, style: Style) -> None:
    """All that had reached this host is taken first."""
    taken: list[bytes] = []
    sent = b"".join(b"line %d\n" % number for number in range(3000))
    async with transport.serve(style(taken, False)) as server, transport.connect(server) as client:
        await client.send(b"first\n")
        await until(lambda: taken)
        await client.send(sent)  # much of it is still in the kernel
        report = await within(server.close(PATIENCE), PATIENCE / 2)
        assert report == DrainReport(completed=1)
        assert await client.rest() == b""
    assert b"".join(taken) == b"first\n" + sent


async def test_silent_handler_that_takes_nothing_more_ends_at_once(transport: Transport, style: Style) -> None:
    """What was taken long ago is done with; a client that has said nothing is no other than elsewhere."""
    taken: list[bytes] = []
    serving, connect = transport.serve(style(taken, False)), transport.connect
    async with serving as server, connect(server) as client, connect(server) as quiet:
        await client.send(b"first\n")
        await until(lambda: taken and len(server.connections) == 2)
        assert await within(server.close(PATIENCE), PATIENCE / 2) == DrainReport(completed=2)
        assert await client.rest() == await quiet.rest() == b""


async def test_silence_alone_says_nothing(transport: Transport, style: Style) -> None:
    """Without the option the drain waits for an answer, until its deadline."""
    taken: list[bytes] = []
    async with transport.serve(style(taken, True)) as server, transport.connect(server) as client:
        await client.send(b"first\n")
        await until(lambda: taken)
        report = await within(server.close(0.2))
        assert report.completed == 0
        assert report.cancelled + report.aborted == 1


@pytest.mark.parametrize("style", OF_LINES, indirect=True, ids=lambda style: style.__name__)
async def test_silent_handler_gets_the_rest_of_a_line(
    transport: Transport, style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where we see that it has not taken a part yet, the drain waits for the rest."""
    monkeypatch.setattr(silent_connection, "_LOOK_AGAIN", 0)
    taken: list[bytes] = []
    async with transport.serve(style(taken, False)) as server, transport.connect(server) as client:
        await client.send(b"whole\nhalf ")
        await until(lambda: server.stats().bytes_received == 11 and taken)
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: not server.sockets)
        for _ in range(20):  # looks, if it looks at all
            await asyncio.sleep(0)
        assert not closing.done()
        await client.send(b"and whole\n")
        assert await within(closing, PATIENCE / 2) == DrainReport(completed=1)
    assert taken == [b"whole\n", b"half and whole\n"]


async def test_silent_thread_at_work_ends_when_it_asks_for_more(transport: Transport) -> None:
    """A drain that begins while it works on what it has taken."""
    taken: list[bytes] = []
    go_on = threading.Event()

    class Collect(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(1000):
                taken.append(data)
                go_on.wait(PATIENCE)

    async with transport.serve(hosted(Collect, answers=False)) as server, transport.connect(server) as client:
        await client.send(b"work")
        await until(lambda: taken)
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: not server.sockets)
        assert not closing.done()
        go_on.set()
        assert await within(closing, PATIENCE / 2) == DrainReport(completed=1)
    assert taken == [b"work"]
