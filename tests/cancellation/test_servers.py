"""Cancellation at every scheduling point of starting and closing servers: nothing is left, and nobody is lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver import Server, Stream
from tests.kit.checks import is_balanced, is_balanced_for_datagrams, is_idle
from tests.kit.clients import Client
from tests.kit.handlers import upper, upper_lines
from tests.kit.sweep import Cut, sweep
from tests.kit.transports import Transport
from tests.kit.waiting import until, within


async def test_serve(transport: Transport) -> None:
    """The program's own task, from binding to the end of the drain."""

    async def scenario(cut: Cut) -> None:
        async def program() -> None:
            async with transport.serve(upper) as server:
                client = await transport.connect(server)
                try:
                    assert await client.ask(b"hello") == b"HELLO"
                finally:
                    client.close()

        await cut.run(program())

    assert await sweep(scenario) >= 6


async def test_awaited_serve(tmp_path: Path) -> None:
    """`await serve(...)`, cancelled while it starts, while it serves or while it ends."""
    path = tmp_path / "s"

    async def scenario(cut: Cut) -> None:
        async def program() -> None:
            await asyncserver.serve(upper, path=path)

        task = asyncio.create_task(cut.here(program()))
        await until(lambda: path.exists() or task.done())
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert not path.exists()

    assert await sweep(scenario) >= 6


# -- closing


async def _clients(transport: Transport, server: Server, count: int) -> list[Client]:
    """One between two messages; then one in the middle of one, and one silent."""
    clients = [await transport.connect(server) for _ in range(count)]
    assert await clients[0].ask(b"hello\n") == b"HELLO\n"
    if count == 1:
        return clients
    await clients[1].send(b"half")
    await until(lambda: server.stats().bytes_received == 10)
    return clients


def _closing(server: list[Server]) -> Callable[[Stream], Any]:
    """A handler that closes its server and goes on for a moment, which is what `_clean` waits for."""

    async def handler(stream: Stream) -> None:
        try:
            await upper_lines(stream)
        finally:
            await server[0].close()
            for _ in range(5):
                await asyncio.sleep(0)

    return handler


@pytest.mark.parametrize("who", ["the caller", "_drain", "_clean"])
async def test_close(transport: Transport, who: str) -> None:
    """close(), and the tasks of the server's own that it starts (as the end of the program cancels them)."""

    async def scenario(cut: Cut) -> None:
        async with contextlib.AsyncExitStack() as stack:
            servers: list[Server] = []
            handler = _closing(servers) if who == "_clean" else upper_lines
            server = await stack.enter_async_context(transport.serve(handler))
            servers.append(server)
            clients = await _clients(transport, server, 1 if who == "_clean" else 3)
            if who == "the caller":
                closing = asyncio.create_task(cut.run(server.close(0.05)))
            else:
                method = getattr(server, who)
                setattr(server, who, lambda *arguments: cut.here(method(*arguments)))
                closing = asyncio.create_task(server.close(5 if who == "_clean" else 0.05))
            await asyncio.wait([closing])
            assert closing.cancelled() or not closing.exception()
            await within(server.wait_closed())
            for client in clients:
                with contextlib.suppress(OSError):
                    await client.receive_all()
                client.close()
            await until(lambda: not server._busy())
            assert is_balanced(server)
            with contextlib.suppress(asyncio.CancelledError):
                await stack.aclose()

    assert await sweep(scenario) >= 3


# -- datagrams


async def test_datagram_reply_under_a_full_buffer(tmp_path: Path) -> None:
    """A reply that waits for room in the sender's queue."""

    async def answer(datagram: asyncserver.Datagram) -> None:
        await datagram.reply(datagram.data.upper())

    async def scenario(cut: Cut) -> None:
        async def handler(datagram: asyncserver.Datagram) -> None:
            await (cut.here(answer(datagram)) if datagram.data == b"first" else answer(datagram))

        async with asyncserver.serve_datagrams(handler, path=tmp_path / "s") as server:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
                client.bind(str(tmp_path / "c"))
                client.setblocking(False)
                queued = _fill(tmp_path / "c")
                client.sendto(b"first", str(tmp_path / "s"))
                await until(lambda: server.stats().datagrams_received == 1)
                await asyncio.sleep(0.01)  # the reply is tried again on a timer
                for _ in range(queued):
                    assert client.recv(100) == b"full"
                await until(lambda: is_idle(server))
                client.sendto(b"second", str(tmp_path / "s"))
                await until(lambda: server.stats().completed + server.stats().cancelled == 2)
                answers = [client.recv(100) for _ in range(server.stats().datagrams_answered)]
                assert answers[-1] == b"SECOND"
                assert is_balanced_for_datagrams(server)
        (tmp_path / "c").unlink()

    assert await sweep(scenario) >= 3


def _fill(path: Path) -> int:
    count = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(BlockingIOError):
        sock.setblocking(False)
        while True:
            sock.sendto(b"full", str(path))
            count += 1
    return count


async def test_serve_datagrams(tmp_path: Path) -> None:
    """The program's own task, from binding to the end of the drain."""

    async def answer(datagram: asyncserver.Datagram) -> bytes:
        await asyncio.sleep(0)
        return datagram.data.upper()

    async def scenario(cut: Cut) -> None:
        async def program() -> None:
            async with asyncserver.serve_datagrams(answer, "127.0.0.1", 0) as server:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.setblocking(False)
                    client.connect(server.addresses[0])
                    client.send(b"hello")
                    loop = asyncio.get_running_loop()
                    assert await loop.sock_recv(client, 100) == b"HELLO"

        await cut.run(program())

    assert await sweep(scenario) >= 3
