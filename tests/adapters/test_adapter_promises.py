"""What is promised to clients of protocols and callbacks where a drain, TLS, slow readers and pauses meet."""

from __future__ import annotations

import asyncio
import shutil
import time
from asyncio.subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, Any

import pytest

from asyncserver import DrainReport, from_callback, from_protocol
from asyncserver.net.socket_info import unread
from tests.kit.clients import TLSClient, open_socket
from tests.kit.handlers import Made, UpperProtocol
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until, within

if TYPE_CHECKING:
    from asyncserver import Server, Stream

MUCH = 1 << 23  # bytes, more than the kernel takes on both sides


async def begun(server: Server) -> asyncio.Task[DrainReport]:
    """A drain that has looked at every connection."""
    closing = asyncio.create_task(server.close(PATIENCE))
    for _ in range(20):
        await asyncio.sleep(0)
    return closing


class Pieces(UpperProtocol):
    """Answers in pieces, which the test writes."""

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"head ")


# -- a drain ends a connection between two answers, never within one


async def test_answer_of_a_callback_in_two_writes(transport: Transport) -> None:
    """The drain tells the reader, and leaves the end to the callback: also under TLS."""
    go_on = asyncio.Event()

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"head ")
        await go_on.wait()
        assert reader.at_eof()
        writer.write(b"body")
        writer.close()

    async with transport.serve(from_callback(callback)) as server:
        client = await transport.connect(server)
        await client.send(b"question\n")
        assert await client.receive_exactly(5) == b"head "
        closing = await begun(server)
        go_on.set()
        assert await client.receive_all() == b"body"
        client.close()
        assert await within(closing) == DrainReport(completed=1)


async def test_callback_that_has_returned(transport: Transport) -> None:
    """One that leaves its writer open is not waited for: nobody is left to see the end of its reader."""
    kept: list[asyncio.StreamWriter] = []

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.append(writer)
        writer.write((await reader.readline()).upper())

    async with transport.serve(from_callback(callback)) as server:
        client = await transport.connect(server)
        assert await client.ask(b"question\n") == b"QUESTION\n"
        assert await within(server.close(10 * PATIENCE)) == DrainReport(completed=1)
        assert await client.receive_all() == b""
        client.close()


async def test_answer_of_a_protocol_in_two_writes(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may let a while pass between them: in less there is no end, on a machine so busy it is tried again."""
    for pause in (0.5, 3.0, 15.0):
        monkeypatch.setattr("asyncserver.adapters.protocol_connection._PAUSE", pause)
        asked = time.monotonic()
        made = Made(Pieces)
        async with transport.serve(from_protocol(made)) as server, transport.connect(server) as client:
            assert await client.ask(b"12345") == b"head "
            closing = await begun(server)
            (protocol,) = made.protocols
            if "eof_received" not in protocol.calls:
                protocol.transport.write(b"body")
                assert await client.receive_all() == b"body"
                assert await within(closing) == DrainReport(completed=1)
                return
            assert time.monotonic() - asked > pause
    raise AssertionError("the second write was never in time")


@pytest.mark.usefixtures("short_pause")
async def test_protocol_that_has_been_silent_for_a_while(transport: Transport) -> None:
    """Whoever has paused for longer is between two messages; true from eof_received() says that it is not."""

    class Stays(Pieces):
        def eof_received(self) -> bool:
            super().eof_received()
            return True

    ends, stays = Made(Pieces), Made(Stays)
    factories = iter((ends, stays))
    async with transport.serve(from_protocol(lambda: next(factories)())) as server:
        clients = [await transport.connect(server) for _ in range(2)]
        for client in clients:
            assert await client.ask(b"12345") == b"head "
        closing = await begun(server)
        assert await clients[0].receive_all() == b""
        await until(lambda: "eof_received" in stays.protocols[0].calls)
        assert not closing.done()
        stays.protocols[0].transport.write(b"body")
        stays.protocols[0].transport.close()
        assert await clients[1].receive_all() == b"body"
        assert await within(closing) == DrainReport(completed=2)
        for client in clients:
            client.close()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has written is not given time to write more, merely because it has just written."""
    monkeypatch.setattr("asyncserver.adapters.protocol_connection._PAUSE", 0.0)


@pytest.mark.usefixtures("no_pause")
async def test_protocol_that_waits_for_its_reader(transport: Transport) -> None:
    """Between pause_writing() and resume_writing() it is within an answer, however long that takes."""

    class Floods(UpperProtocol):
        def data_received(self, data: bytes) -> None:
            self.transport.write(bytes(MUCH))

        def pause_writing(self) -> None:
            self.calls.append("pause_writing")

        def resume_writing(self) -> None:
            self.transport.write(b"end")

    made = Made(Floods)
    async with transport.serve(from_protocol(made)) as server:
        client = await transport.connect(server)
        await client.send(b"question")
        await until(lambda: made.protocols and "pause_writing" in made.protocols[0].calls)
        closing = await begun(server)
        assert "eof_received" not in made.protocols[0].calls
        assert (await client.receive_all()).endswith(b"\0end")
        client.close()
        assert await within(closing) == DrainReport(completed=1)


@pytest.mark.usefixtures("no_pause")
async def test_protocol_that_works_while_it_has_paused_reading(transport: Transport) -> None:
    """Whoever takes no more questions for now has not answered yet."""
    made = Made(Pieces)
    async with transport.serve(from_protocol(made)) as server:
        client = await transport.connect(server)
        assert await client.ask(b"12345") == b"head "
        protocol = made.protocols[0]
        protocol.transport.pause_reading()
        closing = await begun(server)
        protocol.transport.write(b"body")
        assert "eof_received" not in protocol.calls
        protocol.transport.resume_reading()
        assert await client.receive_all() == b"body"
        client.close()
        assert await within(closing) == DrainReport(completed=1)


@pytest.mark.usefixtures("no_pause")
async def test_protocol_that_has_paused_reading(transport: Transport) -> None:
    """What had reached this host by then is answered, when it reads on; nothing is ended before."""
    made = Made()
    async with transport.serve(from_protocol(made)) as server:
        client = await transport.connect(server)
        assert await client.ask(b"one") == b"ONE"
        (protocol,), (connection,) = made.protocols, server.connections
        protocol.transport.pause_reading()
        await client.send(b"two")
        await until(lambda: unread(protocol.transport.get_extra_info("socket").fileno()))
        closing = await begun(server)
        assert connection.bytes_received == len(b"one")
        protocol.transport.resume_reading()
        assert await client.receive_all() == b"TWO"
        client.close()
        assert await within(closing) == DrainReport(completed=1)


# -- what was written arrives, as long as the client reads


@pytest.mark.parametrize("fails", [False, True])
async def test_what_was_written_before_close(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    """All of it, though the client takes its time: it must only not stop when the protocol has failed."""
    # Not less: the client is in this process, so whatever stops this stops the client.
    may_stop = 1.2 if fails else 0.3
    monkeypatch.setattr("asyncserver.adapters.protocol_connection._CLOSE_TIMEOUT", may_stop)

    class Answers(UpperProtocol):
        def data_received(self, data: bytes) -> None:
            self.transport.write(bytes(MUCH))
            self.transport.close()
            if fails:
                raise ValueError("after the answer")

    async with transport.serve(from_protocol(Answers)) as server:
        client = await transport.connect(server)
        await client.send(b"question")
        received, pauses = 0, 12
        while data := await client.receive_exactly(min(1 << 16, MUCH - received)):
            received += len(data)
            if received * 12 > (12 - pauses) * MUCH and pauses:
                pauses -= 1
                await asyncio.sleep(may_stop / 6)  # twelve times, twice as long as it may stop
            if received == MUCH:
                break
        assert await client.receive_all() == b""
        client.close()
        await until(lambda: not server.stats().active)


async def test_bytes_count_when_they_leave(transport: Transport) -> None:
    """So an idle timeout looks at what the client takes, not at what the protocol has written long ago."""
    made = Made()
    async with transport.serve(from_protocol(made)) as server:
        client = await transport.connect(server)
        assert await client.ask(b"1") == b"1"
        (connection,) = server.connections
        made.protocols[0].transport.write(bytes(MUCH))
        sent = connection.bytes_sent
        assert sent + made.protocols[0].transport.get_write_buffer_size() == 1 + MUCH
        assert sent < MUCH
        await client.receive_exactly(MUCH // 2)
        await until(lambda: connection.bytes_sent > sent)
        await client.receive_exactly(MUCH // 2)
        assert connection.bytes_sent == 1 + MUCH
        client.close()


# -- a drain and TLS


async def upper(stream: Stream) -> None:
    async for data in stream:
        await stream.send(data.upper())


@pytest.mark.parametrize("handler", [upper, from_protocol(UpperProtocol)], ids=["stream", "protocol"])
async def test_silent_after_its_handshake(tls: Transport, handler: Any) -> None:
    """Who comes through its handshake while the server drains has as long for its first words as others."""
    async with tls.serve(handler) as server:
        sock = await open_socket(server.addresses[0])
        await until(lambda: server.stats().entering == 1)
        client = TLSClient(sock, tls.client_context)
        shaking = asyncio.create_task(client.handshake())
        closing = asyncio.create_task(server.close(10 * PATIENCE))
        await within(shaking)
        assert (await within(closing)).completed == 1
        assert await client.receive_all() == b""
        client.close()


class Pausing(UpperProtocol):
    """Reads only when told to, after its first answer."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.pause_reading()


@pytest.mark.usefixtures("short_pause")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
@pytest.mark.parametrize("kind", ["stream", "protocol"])
async def test_key_update_is_no_question(tls: Transport, kind: str) -> None:
    """TLS's own records that nobody has read when the drain begins are not waited to be answered."""
    made, read_on = Made(Pausing), asyncio.Event()

    async def handler(stream: Stream) -> None:
        await stream.send((await stream.receive()).upper())
        await read_on.wait()
        async for data in stream:
            await stream.send(data.upper())

    chosen: Any = handler if kind == "stream" else from_protocol(made)
    async with tls.serve(chosen) as server:
        host, port = server.addresses[0][:2]
        command = ("openssl", "s_client", "-connect", f"{host}:{port}", "-tls1_3")
        client = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"hello\n")
        await within(client.stdout.readuntil(b"HELLO\n"))
        client.stdin.write(b"k\n")
        (connection,) = server.connections
        await until(lambda: connection._unread())
        closing = await begun(server)
        read_on.set()
        if kind == "protocol":
            made.protocols[0].transport.resume_reading()
        assert await within(closing, PATIENCE / 2) == DrainReport(completed=1)
        client.stdin.close()
        await within(client.communicate())
