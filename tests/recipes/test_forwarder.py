"""The forwarder that ends TLS."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import asyncserver
from tests.kit import certificates
from tests.kit.clients import Client
from tests.kit.sockets import free_port
from tests.kit.waiting import within
from tests.recipes.conftest import Recipe, Start


class Behind:
    """A server behind the forwarder, and the connection that it has got; a test does the rest."""

    def __init__(self) -> None:
        self.stream: asyncio.Future[asyncserver.Stream] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()

    async def __call__(self, stream: asyncserver.Stream) -> None:
        self.stream.set_result(stream)
        await self.over.wait()


@contextlib.asynccontextmanager
async def forwarding(
    start: Start, folder: Path, **replaced: str
) -> AsyncIterator[tuple[Client, asyncserver.Stream, Recipe]]:
    """A client, what its bytes come to, and the forwarder between them."""
    certificates.write_files(folder)
    behind = Behind()
    async with asyncserver.serve(behind, "127.0.0.1", 0, drain_timeout=1) as server:
        forwarder = start("forwarder.py", {"7001": str(server.addresses[0][1]), **replaced})
        (port,) = forwarder.ports()
        async with Client.connect(("127.0.0.1", port), certificates.client_context()) as client:
            try:
                yield client, await within(behind.stream), forwarder
            finally:
                behind.over.set()


async def read_all(stream: asyncserver.Stream) -> bytes:
    """Receive up to the end."""
    data = bytearray()
    async with asyncio.timeout(20):
        async for chunk in stream:
            data += chunk
    return bytes(data)


async def test_both_directions_end_apart(start: Start, tmp_path: Path) -> None:
    """A client that has ended its side still gets the whole answer, and then the end."""
    async with forwarding(start, tmp_path) as (client, stream, _):
        question, answer = bytes(range(256)) * 4096, b"answer" * 100_000
        sending = asyncio.create_task(client.send(question))
        assert await stream.receive_exactly(len(question)) == question
        await sending
        await client.send_eof()
        assert await read_all(stream) == b""
        sending = asyncio.create_task(stream.send(answer))
        assert await client.receive_exactly(len(answer)) == answer
        await sending
        await stream.send_eof()
        assert await client.receive() == b""


async def test_slow_server_slows_its_client(start: Start, tmp_path: Path) -> None:
    """What the server does not read yet waits with the client, not in the forwarder's memory."""
    async with forwarding(start, tmp_path) as (client, stream, forwarder):
        piece, sent = bytes(1 << 20), 0

        async def send() -> None:
            nonlocal sent
            for _ in range(48):
                await client.send(piece)
                sent += 1

        before, sending, seen = peak(forwarder), asyncio.create_task(send()), -1
        while sent != seen:  # until it waits, most likely
            seen = sent
            await asyncio.sleep(0.05)
        for _ in range(48):
            assert await stream.receive_exactly(len(piece)) == piece
        await sending
        assert peak(forwarder) - before < 16 << 20


def peak(program: Recipe) -> int:
    """The most memory that it has had, in bytes."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{program.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


async def test_half_an_answer_is_no_answer(start: Start, tmp_path: Path) -> None:
    """A server that breaks off breaks the client's connection too: TLS ends without a close_notify."""
    async with forwarding(start, tmp_path) as (client, stream, _):
        await stream.send(b"half")
        assert await client.receive_exactly(4) == b"half"
        stream.abort()
        with pytest.raises((ConnectionError, ssl.SSLEOFError)):
            await client.receive()


async def test_silence_is_no_end_of_an_answer(start: Start, tmp_path: Path) -> None:
    """Neither is the idle timeout: nobody knows whether more was to come."""
    async with forwarding(start, tmp_path, **{"idle_timeout=600": "idle_timeout=0.2"}) as (client, stream, _):
        with pytest.raises((ConnectionError, ssl.SSLEOFError)):
            await client.receive()
        await within(stream.wait_disconnected())


async def test_client_that_breaks_off(start: Start, tmp_path: Path) -> None:
    """The server behind learns that nobody is there any more."""
    async with forwarding(start, tmp_path) as (client, stream, _):
        client.reset()
        await within(stream.wait_disconnected())


async def test_server_that_is_down(start: Start, tmp_path: Path) -> None:
    """The client gets no polite end, which would look like an empty answer; the log says why."""
    certificates.write_files(tmp_path)
    forwarder = start("forwarder.py", {"7001": str(free_port())})
    (port,) = forwarder.ports()
    async with Client.connect(("127.0.0.1", port), certificates.client_context()) as client:
        with pytest.raises((ConnectionError, ssl.SSLEOFError)):
            await client.receive()
    forwarder.wait_for("no upstream for ('127.0.0.1', ")


async def test_end_of_the_forwarder(start: Start, tmp_path: Path) -> None:
    """SIGTERM ends what is between two messages; the server's last words still arrive."""
    async with forwarding(start, tmp_path) as (client, stream, forwarder):
        await client.send(b"hello")
        assert await stream.receive_exactly(5) == b"hello"
        await stream.send(b"HELLO")
        assert await client.receive_exactly(5) == b"HELLO"
        forwarder.tell(signal.SIGTERM)
        assert await read_all(stream) == b""
        await stream.send(b"bye")
        await stream.send_eof()
        assert await client.receive_all() == b"bye"
        assert forwarder.wait() == 0
