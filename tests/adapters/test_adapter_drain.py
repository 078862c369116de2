"""Protocols and callbacks when their server closes: what has reached us is answered, and nothing hangs."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from asyncserver import ProtocolHandler, from_callback, from_protocol
from tests.kit.checks import is_idle, records
from tests.kit.clients import TLSClient, open_socket
from tests.kit.handlers import Made, UpperProtocol
from tests.kit.transports import Transport
from tests.kit.waiting import until, within


@pytest.mark.usefixtures("short_pause", "short_silence")
async def test_drain_between_messages(transport: Transport, handler: ProtocolHandler) -> None:
    """A connection whose last question is answered ends at once, as does one that has asked nothing."""
    async with transport.serve(handler, drain_timeout=10) as server:
        quiet, client = await transport.connect(server), await transport.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        await until(lambda: len(server.connections) == 2)
        report = await within(server.close(), 5)
        assert (report.completed, report.cancelled, report.aborted) == (2, 0, 0)
        for one in (quiet, client):
            assert await one.receive_all() == b""
            one.close()


@pytest.mark.usefixtures("short_pause")
async def test_drain_answers_what_has_reached_us(transport: Transport, handler: ProtocolHandler) -> None:
    """Questions that lay in the kernel when close() was called are answered."""
    async with transport.serve(handler, drain_timeout=10) as server:
        clients = [await transport.connect(server) for _ in range(10)]
        for client in clients:
            assert await client.ask(b"hello") == b"HELLO"
        for client in clients:
            await client.send(b"last question")
        closing = asyncio.create_task(server.close())
        for client in clients:
            assert await client.receive_all() == b"LAST QUESTION"
            client.close()
        report = await within(closing, 5)
        assert (report.completed, report.cancelled, report.aborted) == (10, 0, 0)


class InTheMiddle(UpperProtocol):
    """Answers when told to."""

    def data_received(self, data: bytes) -> None:
        self.calls.append("data_received")

    def answer(self) -> None:
        self.transport.write(b"answer")


@pytest.mark.usefixtures("short_pause")
async def test_drain_in_the_middle_of_a_message(transport: Transport) -> None:
    """A question that is not answered yet holds the drain; its answer ends it."""
    made = Made(InTheMiddle)
    async with transport.serve(from_protocol(made), drain_timeout=10) as server:
        client = await transport.connect(server)
        await client.send(b"question")
        await until(lambda: made.protocols and "data_received" in made.protocols[0].calls)
        closing = asyncio.create_task(server.close())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not closing.done()
        made.protocols[0].answer()
        assert await client.receive_all() == b"answer"
        client.close()
        report = await within(closing, 5)
        assert (report.completed, report.cancelled, report.aborted) == (1, 0, 0)


async def test_drain_deadline(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """A question that is never answered: cancelled at the deadline, and the protocol hears of it."""
    made = Made(InTheMiddle)
    async with transport.serve(from_protocol(made)) as server, transport.connect(server) as client:
        await client.send(b"question")
        await until(lambda: made.protocols and "data_received" in made.protocols[0].calls)
        report = await within(server.close(0.2), 5)
        assert (report.completed, report.cancelled, report.aborted) == (0, 1, 0)
        await within(made.protocols[0].lost)
    assert not records(caplog)


@pytest.mark.usefixtures("short_pause")
async def test_drain_calls_eof_received_once(transport: Transport) -> None:
    """The grammar of protocols allows one: also for a protocol that says goodbye in it and stays open."""

    class Polite(UpperProtocol):
        def eof_received(self) -> bool:
            self.calls.append("eof_received")
            self.transport.write(b"goodbye")
            asyncio.get_running_loop().call_later(0.05, self.transport.close)
            return True

    made = Made(Polite)
    async with transport.serve(from_protocol(made), drain_timeout=10) as server:
        client = await transport.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        closing = asyncio.create_task(server.close())
        assert await client.receive_all() == b"goodbye"
        client.close()
        await within(closing, 5)
    assert made.protocols[0].calls.count("eof_received") == 1


async def test_drain_after_the_peers_own_end(transport: Transport) -> None:
    """A protocol that has had its eof_received() and is still answering does not get another."""

    class Slow(UpperProtocol):
        def eof_received(self) -> bool:
            self.calls.append("eof_received")
            self.transport.write(b"first")
            return True

    if transport.tls:  # asyncio's TLS knows no half-close
        return
    made = Made(Slow)
    async with transport.serve(from_protocol(made), drain_timeout=10) as server:
        client = await transport.connect(server)
        await client.send_eof()
        assert await client.receive() == b"first"
        closing = asyncio.create_task(server.close())
        for _ in range(20):
            await asyncio.sleep(0)
        protocol = made.protocols[0]
        if not protocol.transport.is_closing():
            protocol.transport.write(b"second")
            protocol.transport.close()
        await client.receive_all()
        client.close()
        await within(closing, 5)
    assert protocol.calls.count("eof_received") == 1


async def test_nothing_is_received_after_the_drain_has_said_eof(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that tidies up after its reader's end is not disturbed by a peer that goes on talking."""
    ended, tidy = asyncio.Event(), asyncio.Event()

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data.upper())
        ended.set()
        await tidy.wait()
        writer.close()

    async with transport.serve(from_callback(callback), drain_timeout=10) as server:
        client = await transport.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        closing = asyncio.create_task(server.close())
        await within(ended.wait())
        with contextlib.suppress(OSError):  # under TLS the connection is closed by then
            await client.send(b"one more thing")
            for _ in range(20):
                await asyncio.sleep(0)
        tidy.set()
        await within(closing, 5)
        client.close()
    assert not records(caplog)
    assert server.stats().failed == 0


@pytest.mark.usefixtures("slow_clients", "short_pause")
async def test_drain_during_the_handshake(tls: Transport, handler: ProtocolHandler) -> None:
    """A client in the middle of its handshake when the drain begins gets its one answer, then the end."""
    async with tls.serve(handler, drain_timeout=10) as server:
        sock = await open_socket(server.addresses[0])
        await until(lambda: server.stats().entering == 1)
        closing = asyncio.create_task(server.close())
        client = TLSClient(sock, tls.client_context)
        await client.handshake()
        await client.send(b"hello")
        assert await client.receive_all() == b"HELLO"
        client.close()
        report = await within(closing, 5)
        assert (report.completed, report.cancelled, report.aborted) == (1, 0, 0)


async def test_callback_that_hangs(transport: Transport) -> None:
    """It is cancelled at the deadline, like any handler."""
    cancelled = asyncio.Event()

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with transport.serve(from_callback(callback)) as server, transport.connect(server) as client:
        await client.send(b"x")
        await until(lambda: server.stats().bytes_received)
        report = await within(server.close(0.2), 5)
        assert cancelled.is_set()
        assert (report.completed, report.cancelled, report.aborted) == (0, 1, 0)


async def test_callback_that_cancels_itself(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that ends by CancelledError does not leave its connection open, nor is that an error."""

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise asyncio.CancelledError

    async with transport.serve(from_callback(callback)) as server:
        client = await transport.connect(server)
        with contextlib.suppress(OSError):
            assert await client.receive_all() == b""
        client.close()
        await until(lambda: is_idle(server))
    assert not records(caplog)


async def test_callback_that_swallows_its_cancellation(tcp: Transport) -> None:
    """It is given up a second later; its connection is gone."""
    release = asyncio.Event()

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async with contextlib.AsyncExitStack() as stack:
        stack.callback(release.set)
        server = await stack.enter_async_context(tcp.serve(from_callback(callback)))
        client = await stack.enter_async_context(tcp.connect(server))
        await client.send(b"x")
        await until(lambda: server.stats().bytes_received)
        report = await within(server.close(0.1), 5)
        assert (report.completed, report.cancelled, report.aborted) == (0, 0, 1)
        assert await client.rest() == b""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("short_pause")
async def test_unread_bytes_of_a_protocol_count(tcp: Transport) -> None:
    """A protocol that pauses reading holds nothing back from the drain: what lies in the kernel is owed."""
    made = Made()
    async with tcp.serve(from_protocol(made), drain_timeout=10) as server:
        client = await tcp.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        protocol = made.protocols[0]
        protocol.transport.pause_reading()
        await client.send(b"later")
        closing = asyncio.create_task(server.close())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not protocol.transport.is_closing()
        protocol.transport.resume_reading()
        assert await client.receive_all() == b"LATER"
        client.close()
        report = await within(closing, 5)
        assert (report.completed, report.cancelled, report.aborted) == (1, 0, 0)


async def test_many_connections_that_come_and_go(transport: Transport, handler: ProtocolHandler) -> None:
    """The counters balance and nothing stays."""
    async with transport.serve(handler) as server:
        for _ in range(3):
            clients = [await transport.connect(server) for _ in range(10)]
            for client in clients:
                assert await client.ask(b"hello") == b"HELLO"
                client.close()
        await until(lambda: is_idle(server))
        stats = server.stats()
        assert stats.accepted == 30 == stats.completed
        assert stats.bytes_received == stats.bytes_sent == 150
        assert not server.connections
