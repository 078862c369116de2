"""Stream under pressure: a busy connection starves nobody, and memory stays bounded."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

from asyncserver import Stream
from tests.kit.clients import Client
from tests.kit.transports import Transport
from tests.kit.waiting import until, within

# -- fairness


async def test_connection_with_data_always_ready_starves_nobody(transport: Transport) -> None:
    """A peer that sends as fast as it can, from a thread: another one is answered meanwhile."""
    flooded = asyncio.Event()

    async def serve_all(stream: Stream) -> None:
        first = await stream.receive_exactly(1)
        if first == b"q":
            await stream.send(b"a")
            return
        while True:
            if stream.bytes_received > 1 << 20:
                flooded.set()
            await stream.receive(100)

    async with transport.serve(serve_all) as server, transport.connect(server) as flooder:
        flooding = asyncio.create_task(_send_for_ever(flooder))
        await within(flooded.wait())
        for _ in range(20):
            client = await transport.connect(server)
            assert await within(client.ask(b"q"), 5) == b"a"
            client.close()
        assert not flooding.done()
        flooding.cancel()
        await asyncio.wait([flooding])


class Turns:
    """Another task of the program's, and how often it has its turn."""

    def __init__(self) -> None:
        self.count = 0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)

    def stop(self) -> int:
        self._task.cancel()
        return self.count


async def _send_for_ever(client: Client) -> None:
    data = bytes(1 << 16)
    while True:
        await client.send(data)


async def test_receive_loop_over_what_is_there_lets_others_run(transport: Transport) -> None:
    """Data that are all there already do not keep a handler from letting others run."""
    async with transport.pair() as (stream, client):
        await client.send(bytes(2000))
        await stream.receive(1)
        stream._unwatch()
        turns = Turns()
        for _ in range(1900):
            await stream.receive(1)
        assert turns.stop() >= 1900 // 100


async def test_send_loop_lets_others_run(transport: Transport) -> None:
    """Sends that never wait still let others run every so often."""
    async with transport.pair() as (stream, _):
        turns = Turns()
        for _ in range(200):  # as many small ones as a Unix socket takes before it blocks
            await stream.send(b"x")
        assert turns.stop() >= 200 // 100


async def test_one_great_send_lets_others_run(tls: Transport) -> None:
    """OpenSSL takes a record at a time: a long send pauses between them even when the peer keeps up."""
    size = 32 << 20

    def read_all() -> int:
        sock.setblocking(True)
        received = 0
        while received < size:
            received += len(sock.recv(1 << 20))
        return received

    async with tls.pair() as (stream, client):
        sock = client.sock
        reader = asyncio.create_task(asyncio.to_thread(read_all))
        turns = Turns()
        await within(stream.send(bytes(size)))
        assert turns.stop() >= (size >> 14) // 100
        assert await within(reader) >= size


# -- pressure


async def test_peer_that_never_reads(transport: Transport) -> None:
    """What it is sent stays bounded by the kernel's buffers, the sender waits, and nobody else notices."""

    async def send_for_ever(stream: Stream) -> None:
        if await stream.receive_exactly(1) == b"q":
            await stream.send(b"a")
            return
        while True:
            await stream.send(bytes(1 << 20))

    async with transport.serve(send_for_ever, drain_timeout=0.1) as server, transport.connect(server) as deaf:
        await deaf.send(b"!")
        await until(lambda: server.stats().bytes_sent > 100_000)
        (stream,) = server.connections
        for _ in range(20):
            client = await transport.connect(server)
            assert await client.ask(b"q") == b"a"
            client.close()
        await _stalls(lambda: stream.bytes_sent)
        assert stream.bytes_sent < 32 << 20


async def test_peer_that_floods_a_handler_that_does_not_read(transport: Transport) -> None:
    """The flood stops at the kernel's buffers; nobody else notices, and nothing is lost when it is read."""
    release = asyncio.Event()
    total = hashlib.blake2b()

    async def read_late(stream: Stream) -> None:
        if await stream.receive_exactly(1) == b"q":
            await stream.send(b"a")
            return
        await release.wait()
        async for data in stream:
            total.update(data)
        await stream.send(b"done")

    async with transport.serve(read_late) as server, transport.connect(server) as flooder:
        await flooder.send(b"!")
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for _ in range(64):
                await flooder.send(bytes(1 << 20))
                sent += 1 << 20
            await flooder.send_eof()

        flooding = asyncio.create_task(flood())
        for _ in range(20):
            client = await transport.connect(server)
            assert await client.ask(b"q") == b"a"
            client.close()
        await _stalls(lambda: sent)
        assert sent < 32 << 20
        assert not flooding.done()
        release.set()
        await within(flooding)
        assert await flooder.receive_all() == b"done"
        assert total.digest() == hashlib.blake2b(bytes(64 << 20)).digest()


async def _stalls(measure: Callable[[], int]) -> None:
    """Come back when a measure has stood still for 50 looks at it."""
    same, last = 0, -1
    async with asyncio.timeout(20):
        while same < 50:
            same, last = (same + 1, last) if measure() == last else (0, measure())
            await asyncio.sleep(0.001)
