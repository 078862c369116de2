"""close(): what is asked before the end is answered whole, and no client can hold the drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

import pytest

import asyncserver
from asyncserver import Stream
from tests.kit.handlers import UpperLines, upper, upper_lines, upper_lines_callback
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until


async def test_flooding_client_cannot_hold_the_drain(transport: Transport) -> None:
    """Who sends messages faster than they are answered is ended after those that were due."""
    flood = (b"x" * 1002 + b"\n") * 100
    answered = 0

    async def answer(stream: Stream) -> None:
        nonlocal answered
        while True:
            await stream.receive_until(b"\n", 1 << 20)
            await stream.send(b".")
            answered += 1

    def chat(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            answers = b"."
            while answers:
                sock.settimeout(PATIENCE)
                sock.sendall(flood)
                sock.settimeout(0)
                with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                    answers = sock.recv(65536)

    async with transport.serve(answer) as server, contextlib.AsyncExitStack() as stack:
        client = stack.enter_context(transport.blocking(server))
        await asyncio.to_thread(client.handshake)
        chatting = asyncio.create_task(asyncio.to_thread(chat, client.sock))
        await until(lambda: answered > 20)
        begun = asyncio.get_running_loop().time()
        report = await server.close(PATIENCE)
        assert asyncio.get_running_loop().time() - begun < PATIENCE / 2
        assert report == asyncserver.DrainReport(completed=1)
        await chatting


async def test_client_that_is_always_in_the_middle_of_a_message_cannot_hold_the_drain(transport: Transport) -> None:
    """Behind each message the next one has begun: what had begun before close() is answered, and no more."""
    async with transport.serve(upper_lines) as server, transport.connect(server) as client:
        await client.send(b"first\nsec")
        assert await client.receive_exactly(6) == b"FIRST\n"
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: not server.sockets)
        assert not closing.done()
        await client.send(b"ond\nthi")
        assert await client.receive_exactly(7) == b"SECOND\n"
        with contextlib.suppress(OSError):
            await client.send(b"rd\nfour")
        assert await client.rest() == b""
        async with asyncio.timeout(PATIENCE / 2):
            assert await closing == asyncserver.DrainReport(completed=1)


async def test_message_in_the_middle_is_waited_for_and_answered_whole(transport: Transport) -> None:
    """Half a question at close() is not an end: the other half may come until the deadline."""
    async with transport.serve(upper_lines) as server, transport.connect(server) as client:
        assert await client.ask(b"whole\n") == b"WHOLE\n"
        await client.send(b"half of ")
        await until(lambda: server.stats().bytes_received == 14)
        closing = asyncio.create_task(server.close(PATIENCE))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not closing.done()
        await client.send(b"it\n")
        assert await client.rest() == b"HALF OF IT\n"
        assert await closing == asyncserver.DrainReport(completed=1)


async def test_large_reply_is_not_truncated_by_the_drain(transport: Transport) -> None:
    """Megabytes under way to a slow reader when close() is called arrive whole."""
    size = 8 << 20
    sending = asyncio.Event()

    async def generous(stream: Stream) -> None:
        await stream.receive()
        sending.set()
        await stream.send(bytes(size))

    async with transport.serve(generous) as server, transport.connect(server) as client:
        await client.send(b"please")
        await sending.wait()
        closing = asyncio.create_task(server.close(PATIENCE))
        assert len(await client.rest()) == size
        assert await closing == asyncserver.DrainReport(completed=1)


async def test_reply_is_not_truncated_when_unread_bytes_are_left(transport: Transport) -> None:
    """A handler that answers without reading everything: the answer arrives, no reset overtakes it."""

    async def hasty(stream: Stream) -> None:
        await stream.receive(4)
        await stream.send(b"y" * 100_000)

    async with transport.serve(hasty) as server, contextlib.AsyncExitStack() as stack:
        client = stack.enter_context(transport.blocking(server))
        await asyncio.to_thread(client.handshake)
        await until(lambda: server.stats().active == 1)
        client.sock.sendall(b"x" * 50_000)
        reading = asyncio.create_task(asyncio.to_thread(client.rest))
        await server.close(5)
        assert await reading == b"y" * 100_000
        assert server.stats().completed == 1


async def test_client_that_half_closed_gets_its_answer(tcp: Transport) -> None:
    """A client that sends, ends its side, and lies in the backlog when the server closes is answered."""
    async with tcp.serve(upper) as server, contextlib.AsyncExitStack() as stack:
        client = stack.enter_context(tcp.blocking(server))
        client.sock.sendall(b"last words")
        client.sock.shutdown(socket.SHUT_WR)
        report = await server.close(5)
        assert await asyncio.to_thread(client.rest) == b"LAST WORDS"
        assert report == asyncserver.DrainReport(completed=1)


@pytest.mark.usefixtures("slow_clients", "short_pause")
async def test_protocols_are_drained_at_a_message_boundary_too(transport: Transport) -> None:
    """Between messages, in the middle of one, and in the backlog: the same for an existing asyncio.Protocol."""
    async with (
        transport.serve(asyncserver.from_protocol(UpperLines)) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        between = await stack.enter_async_context(transport.connect(server))
        middle = await stack.enter_async_context(transport.connect(server))
        assert await between.ask(b"hello\n") == b"HELLO\n"
        await middle.send(b"half")
        await until(lambda: server.stats().bytes_received == 10)
        waiting = stack.enter_context(transport.blocking(server))
        asking = waiting.ask_now(b"queued\n")
        closing = asyncio.create_task(server.close(PATIENCE))
        assert await between.rest() == b""
        assert await asking == b"QUEUED\n"
        assert not closing.done()
        await middle.send(b" a line\n")
        assert await middle.rest() == b"HALF A LINE\n"
        assert await closing == asyncserver.DrainReport(completed=3)


async def test_client_that_ignores_the_end_of_tls_does_not_hold_a_protocol(tmp_path: Path) -> None:
    """A close_notify that is never answered is waited for two seconds, not asyncio's thirty."""
    transport = Transport("tls", tmp_path)
    async with (
        transport.serve(asyncserver.from_protocol(UpperLines)) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        client = stack.enter_context(transport.blocking(server))
        await asyncio.to_thread(client.handshake)
        await until(lambda: server.stats().active == 1)
        begun = asyncio.get_running_loop().time()
        assert await server.close(PATIENCE) == asyncserver.DrainReport(completed=1)
        assert asyncio.get_running_loop().time() - begun < 10


async def test_callbacks_are_drained_at_a_message_boundary_too(transport: Transport) -> None:
    """An existing (reader, writer) callback comes to the end of its reader."""
    async with (
        transport.serve(asyncserver.from_callback(upper_lines_callback)) as server,
        transport.connect(server) as client,
    ):
        assert await client.ask(b"hello\n") == b"HELLO\n"
        async with asyncio.timeout(PATIENCE / 2):
            assert await server.close(PATIENCE) == asyncserver.DrainReport(completed=1)
        assert await client.rest() == b""
