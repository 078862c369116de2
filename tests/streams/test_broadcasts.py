"""Server.broadcast(): to all connections, whatever state each of them is in."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket

import anyio
import pytest

import asyncserver
from asyncserver import Stream
from tests.kit.clients import Client
from tests.kit.transports import Transport
from tests.kit.waiting import until, within

MUCH = bytes(range(256)) * 64_000  # 16 MB: more than the buffers of both sides ever grow to
ROOMY = 64 << 20


async def listen(stream: Stream) -> None:
    """Wait for the peer's end."""
    async for _ in stream:
        pass


async def test_broadcast(transport: Transport) -> None:
    """All get it, or all but one."""
    async with transport.serve(listen) as server, transport.connect(server) as one, transport.connect(server) as two:
        await until(lambda: len(server.connections) == 2)
        assert server.broadcast(bytearray(b"all")) == 2
        assert [await client.receive_exactly(3) for client in (one, two)] == [b"all", b"all"]
        assert server.broadcast(b"some", but=next(iter(server.connections))) == 1
        assert server.broadcast(b"!") == 2
        received = [await client.receive_exactly(1) for client in (one, two)]
        assert sorted(received) == [b"!", b"s"]


async def test_a_deaf_member_delays_nobody(transport: Transport) -> None:
    """It is given up when too much waits for it; the other gets every byte, and nobody an error."""
    async with transport.serve(listen, max_unsent=16 << 20) as server, transport.connect(server) as hearing:
        await until(lambda: server.connections)
        async with transport.connect(server):
            await until(lambda: len(server.connections) == 2)
            sent = 0
            while server.broadcast(MUCH) == 2:
                sent += len(MUCH)
                assert await client_has(hearing, len(MUCH)) == MUCH
            assert await client_has(hearing, len(MUCH)) == MUCH
            await until(lambda: len(server.connections) == 1)
            assert server.broadcast(b"to the rest") == 1
            assert await hearing.receive_exactly(11) == b"to the rest"
            stats = server.stats()
            assert (stats.slow_consumers, stats.failed, stats.active) == (1, 0, 1)


async def client_has(client: Client, nbytes: int) -> bytes:
    """What it received."""
    return await within(client.receive_exactly(nbytes))


async def test_small_broadcasts_that_wait(tcp: Transport) -> None:
    """Who does not read gets them later, in order and whole; who reads has each at once."""
    line = bytes(range(256)) * 4
    async with tcp.serve(listen, max_unsent=ROOMY) as server, tcp.connect(server) as deaf:
        await until(lambda: server.connections)
        (slow,) = server.connections
        for sock, buffer in ((slow._sock, socket.SO_SNDBUF), (deaf.sock, socket.SO_RCVBUF)):
            sock.setsockopt(socket.SOL_SOCKET, buffer, 1 << 16)
        async with tcp.connect(server) as hearing:
            await until(lambda: len(server.connections) == 2)
            rounds = 0
            while not slow._outbox or slow._outbox.size < 10 * len(line):
                assert server.broadcast(line) == 2
                assert await client_has(hearing, len(line)) == line
                rounds += 1
            assert slow.bytes_sent + slow._outbox.size == rounds * len(line)
            assert await client_has(deaf, rounds * len(line)) == rounds * line
            assert server.broadcast(b"again") == 2
            assert [await client_has(client, 5) for client in (deaf, hearing)] == [b"again", b"again"]
            assert [stream.bytes_sent for stream in server.connections] == [rounds * len(line) + 5] * 2


@pytest.mark.parametrize("by", ["post", "broadcast"])
async def test_small_post_that_fills_the_kernel(by: str, tcp: Transport) -> None:
    """What the kernel takes of one, and what is kept, make all of it."""
    line = bytes(range(250)) * 60
    async with tcp.serve(listen, max_unsent=ROOMY) as server, tcp.connect(server) as client:
        await until(lambda: server.connections)
        (stream,) = server.connections
        post = stream.post if by == "post" else server.broadcast
        posted = 0
        while not stream._outbox:
            assert post(line)
            posted += len(line)
        assert 0 < stream._outbox.size <= len(line)
        assert stream.bytes_sent == posted - stream._outbox.size
        assert await client_has(client, posted) == line * (posted // len(line))


async def test_small_broadcasts_nobody_takes(tcp: Transport) -> None:
    """Whoever lets more than max_unsent wait is aborted, also by small ones."""
    line = bytes(1024)
    async with tcp.serve(listen, max_unsent=4096) as server, tcp.connect(server), tcp.connect(server) as hearing:
        await until(lambda: len(server.connections) == 2)
        while server.broadcast(line) == 2:
            await client_has(hearing, len(line))
        await until(lambda: len(server.connections) == 1)
        stats = server.stats()
        assert (stats.slow_consumers, stats.failed, stats.active) == (1, 0, 1)


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_broadcast_meets_a_broken_connection(at: int, tcp: Transport) -> None:
    """It is not counted, its handler is told the system's error, and all others get the message."""
    told: list[BaseException] = []

    async def wait(stream: Stream) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            try:
                await stream.send(b"more")
            except anyio.BrokenResourceError as exc:
                told.append(exc)

    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(tcp.serve(wait, drain_timeout=0))
        clients = []
        for _ in range(3):
            clients.append(await stack.enter_async_context(tcp.connect(server)))
            await until(lambda: len(server.connections) == len(clients))
        broken = next(one for one in server.connections if one.peer_address == clients[at].sock.getsockname())
        clients.pop(at).reset()
        await until(lambda: is_reset(broken))
        assert server.broadcast(b"first") == 2
        assert server.broadcast(b"second") == 2
        assert not broken.post(b"third")
        assert [await client_has(client, 11) for client in clients] == [b"firstsecond"] * 2
        assert (broken.bytes_sent, server.stats().failed) == (0, 0)
    (error,) = told
    assert isinstance(error.__cause__, ConnectionError)


def is_reset(stream: Stream) -> bool:
    """Whether the peer's reset has arrived; its error is left for whoever sends."""
    poll = select.poll()
    poll.register(stream._fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


async def test_broadcast_skips_who_is_ending(tcp: Transport) -> None:
    """Its handler has closed it and still runs."""
    released = asyncio.Event()

    async def end_early(stream: Stream) -> None:
        await stream.receive()
        await stream.aclose()
        await released.wait()

    async with tcp.serve(end_early) as server, tcp.connect(server) as one, tcp.connect(server):
        await one.send(b"end")
        assert await one.receive() == b""
        await until(lambda: len(server.connections) == 2)
        assert server.broadcast(b"abc") == 1
        released.set()


async def test_broadcast_reaches_nobody_before_its_handshake(tls: Transport) -> None:
    """A client that has only connected gets no plain byte."""
    async with tls.serve(listen) as server, Client.connect(server.addresses[0]) as plain, tls.connect(server) as secure:
        await until(lambda: server.stats().entering == 1)
        assert server.broadcast(b"secret") == 1
        assert await secure.receive_exactly(6) == b"secret"
        plain.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            plain.sock.recv(1)


async def test_broadcast_needs_streams(tcp: Transport) -> None:
    """A protocol's connections and datagrams get a clear refusal."""
    async with tcp.serve(asyncserver.from_protocol(asyncio.Protocol)) as server:
        with pytest.raises(TypeError, match="protocol"):
            server.broadcast(b"abc")
    async with asyncserver.serve_datagrams(answer, "127.0.0.1", 0) as server:
        with pytest.raises(TypeError, match="datagrams"):
            server.broadcast(b"abc")
    async with tcp.serve(listen) as server:
        with pytest.raises(TypeError, match=r"broadcast\(\) takes bytes"):
            server.broadcast("abc")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"broadcast\(\): but is one Stream, which does not get it; got \[\]"):
            server.broadcast(b"abc", but=[])


async def answer(datagram: asyncserver.Datagram) -> None:
    """Answer nothing."""
