"""What becomes of handlers whose peer has vanished; for how that is found see tests/faults/test_keepalive.py."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

import asyncserver
from asyncserver import Server, Stream
from asyncserver.servers.keepalive import KeepAlive
from tests.kit.clients import Client
from tests.kit.hosts import silence
from tests.kit.waiting import until


async def vanish(server: Server) -> None:
    """Let the peer vanish, as far as the server can see, and wait for the end of its handler."""
    await until(lambda: server.connections)
    with silence():
        await until(lambda: server.stats().vanished)
    await until(lambda: not server.connections)


@pytest.mark.parametrize("by", ["post", "broadcast"])
async def test_posts_of_others_are_no_news(by: str) -> None:
    """A handler that waits for something else is cancelled, although others post to its stream all the time."""

    async def listen(_: Stream) -> None:
        await asyncio.Event().wait()

    async with asyncserver.serve(listen, "127.0.0.1", 0, keepalive=2) as server:

        async def post() -> None:
            while True:
                if by == "broadcast":
                    server.broadcast(b"news")
                for stream in server.connections:
                    stream.post(b"news")
                await asyncio.sleep(0.01)

        posting = asyncio.ensure_future(post())
        async with Client.connect(server.addresses[0]):
            await vanish(server)
        posting.cancel()
        assert (server.stats().cancelled, server.stats().vanished) == (1, 1)


async def test_next_send_raises() -> None:
    """A handler that comes back to its stream within the second is not cancelled, whatever it does then."""
    seen: list[Any] = []

    async def work(stream: Stream) -> None:
        await until(lambda: server.stats().vanished)
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await stream.send(b"result")
        seen.append(caught.value.__cause__)
        await asyncio.sleep(1.5)
        seen.append("tidied up")

    async with asyncserver.serve(work, "127.0.0.1", 0, keepalive=2) as server, Client.connect(server.addresses[0]):
        await vanish(server)
        assert isinstance(seen[0], TimeoutError)
        assert seen[0].errno == errno.ETIMEDOUT
        assert seen[1:] == ["tidied up"]
        assert server.stats().completed == 1


async def test_wait_disconnected_afterwards() -> None:
    """To ask for the peer's end is to know of it."""

    async def work(stream: Stream) -> None:
        await until(lambda: server.stats().vanished)
        await stream.wait_disconnected()
        await asyncio.sleep(1.5)

    async with asyncserver.serve(work, "127.0.0.1", 0, keepalive=2) as server, Client.connect(server.addresses[0]):
        await vanish(server)
        assert server.stats().completed == 1


async def test_what_had_arrived_is_received_first() -> None:
    """Bytes that had come before are not lost."""
    received = bytearray()

    async def work(stream: Stream) -> None:
        await until(lambda: server.stats().vanished)
        async for data in stream:
            received.extend(data)

    async with (
        asyncserver.serve(work, "127.0.0.1", 0, keepalive=2) as server,
        Client.connect(server.addresses[0]) as client,
    ):
        await client.send(b"last words")
        await vanish(server)
        assert received == b"last words"


async def test_machine_that_has_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that comes late judges nobody: the kernel may be about to ask, too."""
    looks: list[float] = []
    original = KeepAlive._look

    def look(self: KeepAlive, late: float) -> None:
        looks.append(late)
        original(self, 0.0 if len(looks) < 4 else late)

    monkeypatch.setattr(KeepAlive, "_look", look)

    async def wait(stream: Stream) -> None:
        await stream.receive()

    async with asyncserver.serve(wait, "127.0.0.1", 0, keepalive=2) as server, Client.connect(server.addresses[0]):
        with silence():
            await until(lambda: server.stats().vanished)
        assert len(looks) >= 4


async def test_reset_that_nobody_has_met() -> None:
    """The kernel's error is read by the look, and still reaches the handler; it is not counted as vanished."""
    ends: list[BaseException] = []
    go_on = asyncio.Event()

    async def work(stream: Stream) -> None:
        await go_on.wait()
        try:
            await stream.receive()
        except anyio.BrokenResourceError as exc:
            ends.append(exc)

    async with asyncserver.serve(work, "127.0.0.1", 0, keepalive=2) as server:
        client = await Client.connect(server.addresses[0])
        await until(lambda: server.connections)
        (stream,) = server.connections
        sock = stream.extra(SocketAttribute.raw_socket)
        client.reset()
        await until(lambda: stream._is_broken)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        go_on.set()
        await until(lambda: ends)
        assert isinstance(ends[0].__cause__, OSError)
        assert ends[0].__cause__.errno == errno.ECONNRESET
        assert os.strerror(errno.ECONNRESET) in str(ends[0])
        assert server.stats().vanished == 0
