"""from_protocol and from_callback: what was written for asyncio runs unchanged, under our limits."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from asyncserver import ProtocolHandler, from_callback, from_protocol
from tests.kit.checks import records
from tests.kit.clients import Client, TLSClient, open_socket
from tests.kit.handlers import HANDLERS, Made, UpperProtocol, upper_callback
from tests.kit.transports import Transport
from tests.kit.waiting import until, within

# -- they work


async def test_echo(transport: Transport, handler: ProtocolHandler) -> None:
    """Questions and answers, counted; the end of the questions is the end of the connection."""
    async with transport.serve(handler) as server:
        client = await transport.connect(server)
        for number in range(50):
            question = b"question %d" % number
            assert await client.ask(question) == question.upper()
        (connection,) = server.connections
        assert connection.bytes_received == connection.bytes_sent == server.stats().bytes_sent
        await client.send_eof()
        assert await client.receive_all() == b""
        client.close()
        await until(lambda: server.stats().completed == 1)
        assert (
            server.stats().bytes_received
            == server.stats().bytes_sent
            == sum(len(b"question %d" % n) for n in range(50))
        )
        assert server.stats().active == 0


@pytest.mark.parametrize("style", HANDLERS)
async def test_much_data(transport: Transport, style: str) -> None:
    """Ten megabytes each way arrive whole; over TLS, or through a small buffer, some."""
    async with transport.serve(HANDLERS[style]()) as server, transport.connect(server) as client:
        much = style != "BufferedProtocol" and not transport.tls
        data = b"abcdefghijklmnopqrstuvwxyz" * (400_000 if much else 50_000)
        sending = asyncio.create_task(client.send(data))
        assert await client.receive_exactly(len(data)) == data.upper()
        await within(sending)


async def test_calls_of_a_protocol(transport: Transport) -> None:
    """start -> connection_made [-> data_received*] [-> eof_received] -> connection_lost -> end."""
    made = Made()
    async with transport.serve(from_protocol(made)) as server:
        client = await transport.connect(server)
        await client.ask(b"hello")
        await client.send_eof()
        assert await client.receive_all() == b""
        client.close()
        (protocol,) = made.protocols
        assert await within(protocol.lost) is None
    assert protocol.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]


async def test_plain_function_as_callback(transport: Transport) -> None:
    """As in asyncio.start_server, a callback need not be a coroutine function."""
    tasks = set()

    def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.get_running_loop().create_task(upper_callback(reader, writer)))

    async with transport.serve(from_callback(callback)) as server, transport.connect(server) as client:
        assert await client.ask(b"hello") == b"HELLO"
        await client.send_eof()
        assert await client.receive_all() == b""
    await within(asyncio.gather(*tasks))


async def test_callback_that_returns_early(transport: Transport) -> None:
    """The connection stays open until the writer is closed, as in asyncio.start_server."""
    writers: list[asyncio.StreamWriter] = []

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    async with transport.serve(from_callback(callback)) as server:
        client = await transport.connect(server)
        await until(lambda: writers)
        writers[0].write(b"later")
        assert await client.receive() == b"later"
        assert server.stats().active == 1
        writers[0].close()
        assert await client.receive_all() == b""
        client.close()
        await until(lambda: server.stats().completed == 1)


async def test_readers_limit(tcp: Transport) -> None:
    """`limit` is the StreamReader's."""

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ValueError):
            await reader.readline()
            raise AssertionError("the line was longer than the limit")
        writer.write(b"too long")
        writer.close()

    async with tcp.serve(from_callback(callback, limit=10)) as server, tcp.connect(server) as client:
        await client.send(b"x" * 100)
        assert await client.receive_all() == b"too long"


# -- limits


async def test_max_connections(transport: Transport, handler: ProtocolHandler) -> None:
    """Who is over the limit waits, and is served when another has gone."""
    async with transport.serve(handler, max_connections=1) as server:
        first = await transport.connect(server)
        assert await first.ask(b"one") == b"ONE"
        sock = await open_socket(server.addresses[0])
        for _ in range(10):
            await asyncio.sleep(0)
        assert server.stats().active == 1
        first.close()
        second = TLSClient(sock, transport.client_context) if transport.tls else Client(sock)
        if isinstance(second, TLSClient):
            await within(second.handshake())
        assert await second.ask(b"two") == b"TWO"
        assert server.stats().active == 1
        second.close()


async def test_idle_timeout(tcp: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """A silent connection is closed, counted, and not in the log; one that speaks is not. All styles at once."""
    async with asyncio.TaskGroup() as group:
        for style, make in HANDLERS.items():
            group.create_task(silent_is_timed_out(tcp, make()), name=style)
    assert not records(caplog)


async def silent_is_timed_out(tcp: Transport, handler: ProtocolHandler) -> None:
    """Whoever says nothing, and nobody else."""
    async with tcp.serve(handler, idle_timeout=2) as server:
        silent, busy = await tcp.connect(server), await tcp.connect(server)
        ended = asyncio.create_task(silent.receive_all())
        while not ended.done():
            assert await busy.ask(b"hello") == b"HELLO"
            await asyncio.sleep(0.02)
        assert await ended == b""
        assert await busy.ask(b"hello") == b"HELLO"
        await until(lambda: server.stats().timed_out == 1)
        silent.close()
        busy.close()


async def test_idle_timeout_of_a_peer_that_does_not_read(transport: Transport) -> None:
    """Closing would wait for it for ever; so the connection is aborted the next time."""

    class Floods(UpperProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(bytes(1 << 24))

    async with transport.serve(from_protocol(Floods), idle_timeout=0.1) as server, transport.connect(server):
        await until(lambda: server.stats().timed_out == 1)
        assert server.stats().active == 0
