"""Stream: sending, half-close, and two tasks at once."""

from __future__ import annotations

import array
import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from asyncserver import Stream
from tests.kit.transports import Transport, little_room
from tests.kit.waiting import blocked, within

# -- two at once


@pytest.mark.parametrize("second", ["receive", "receive_exactly", "receive_until", "async for", "start_tls"])
@pytest.mark.parametrize("first", ["receive", "receive_exactly", "receive_until"])
async def test_two_receivers(tcp: Transport, first: str, second: str) -> None:
    """The second one gets an error, the first one its bytes."""
    async with tcp.pair() as (stream, client):
        ways: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "receive": lambda: stream.receive(6),
            "receive_exactly": lambda: stream.receive_exactly(6),
            "receive_until": lambda: stream.receive_until(b";", 10),
            "async for": stream.__anext__,
            "start_tls": lambda: stream.start_tls(tcp.server_context),
        }
        waiting = await blocked(ways[first]())
        with pytest.raises(anyio.BusyResourceError):
            await ways[second]()
        await client.send(b"abcde;")
        assert await within(waiting) in {b"abcde;", b"abcde"}


async def test_two_receivers_over_every_transport(transport: Transport) -> None:
    """Nothing is lost by the attempt, and afterwards the other may receive."""
    async with transport.pair() as (stream, client):
        waiting = await blocked(stream.receive())
        with pytest.raises(anyio.BusyResourceError, match=r"already receiving from .*: leave that to one task, or "):
            await stream.receive()
        await client.send(b"abc")
        assert await within(waiting) == b"abc"
        await client.send(b"def")
        assert await stream.receive() == b"def"


async def test_receiver_that_lets_others_run(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a receiver that has just let others run does not push aside one that waits."""
    monkeypatch.setattr("asyncserver.connections.connection.Connection._SPIN_LIMIT", 1)
    async with transport.pair() as (stream, client):
        stream._unwatch()  # as after bytes that nobody waited for
        tasks = [asyncio.create_task(stream.receive()) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        await client.send(b"abc")
        results = await within(asyncio.gather(*tasks, return_exceptions=True))
        assert b"abc" in results
        assert [type(one) for one in results if one != b"abc"] == [anyio.BusyResourceError]


async def test_two_senders(transport: Transport) -> None:
    """The second one gets an error and sends nothing, the first one's bytes arrive whole."""
    async with transport.pair() as (stream, client):
        data = bytes(range(256)) * 65536
        sending = await blocked(stream.send(data))
        advice = r"already sending to .*: .* take turns with an asyncio\.Lock, or post\(\)"
        with pytest.raises(anyio.BusyResourceError, match=advice):
            await stream.send(b"other")
        with pytest.raises(anyio.BusyResourceError):
            await stream.send_eof()
        assert await client.receive_exactly(len(data)) == data
        await within(sending)
        await stream.send(b"now")
        assert await client.receive_exactly(3) == b"now"


async def test_one_receives_while_another_sends(transport: Transport) -> None:
    """The two directions do not hinder each other, even when each waits."""
    async with transport.pair() as (stream, client):
        little_room(stream, client)
        data = bytes(4_000_000)  # more than both sides have room for
        sending = await blocked(stream.send(data))
        receiving = await blocked(stream.receive())
        await client.send(b"abc")
        assert await within(receiving) == b"abc"
        assert not sending.done()
        assert len(await client.receive_exactly(len(data))) == len(data)
        await within(sending)


# -- sending


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: array.array("i", data)])
async def test_send_takes_bytes_like_objects(transport: Transport, kind: Callable[[bytes], Any]) -> None:
    """Bytes are bytes, whatever holds them, and however many go at once."""
    async with transport.pair() as (stream, client):
        for size in (8, 65536, 1 << 20):
            data = bytes(range(256)) * (size // 256) or b"12345678"
            sending = asyncio.create_task(stream.send(kind(data)))
            assert await client.receive_exactly(len(data)) == data
            await within(sending)
        assert stream.bytes_sent == 8 + 65536 + (1 << 20)


async def test_send_of_wide_items_is_whole(transport: Transport) -> None:
    """Bytes count, not items: also when the kernel first takes as many bytes as there are items."""
    async with transport.pair() as (stream, _):
        sending = await blocked(stream.send(bytes(1 << 24)))
        first = stream.bytes_sent
        if transport.tls:
            first = 16384
        sending.cancel()
    async with transport.pair() as (stream, client):
        data = array.array("I", [0xABCD]) * first
        sending = asyncio.create_task(stream.send(data))  # type: ignore[arg-type]
        received = await client.receive_exactly(4 * first)
        await within(sending)
        assert received == data.tobytes()


async def test_empty_send(transport: Transport) -> None:
    """Nothing is sent, and nothing happens."""
    async with transport.pair() as (stream, client):
        await stream.send(b"")
        await stream.send(bytearray())
        assert stream.bytes_sent == 0
        await stream.send(b"abc")
        assert await client.receive() == b"abc"


async def test_send_refuses_text(transport: Transport) -> None:
    """A str is a TypeError, and the stream goes on."""
    async with transport.pair() as (stream, client):
        with pytest.raises(TypeError):
            await stream.send("text")  # type: ignore[arg-type]
        await stream.send(b"abc")
        assert await client.receive() == b"abc"


async def test_100_megabytes_each_way(transport: Transport) -> None:
    """An echo of a hundred megabytes has the same hash, on other transports one of less."""
    megabytes = 100 if transport.name == "tcp" else 25
    chunk = bytes(range(256)) * 4096

    async def echo(stream: Stream) -> None:
        async for data in stream:
            await stream.send(data)

    async with transport.serve(echo) as server, transport.connect(server) as client:
        there, back = hashlib.blake2b(), hashlib.blake2b()

        async def send() -> None:
            for number in range(megabytes):
                data = b"%8d" % number + chunk[8:]
                there.update(data)
                await client.send(data)
            await client.send_eof()

        sending = asyncio.create_task(send())
        received = 0
        while data := await client.receive(1 << 18):
            back.update(data)
            received += len(data)
        await within(sending)
        assert received == megabytes << 20
        assert there.digest() == back.digest()


# -- half-close


async def test_client_half_closes_and_gets_its_answer(transport: Transport) -> None:
    """The end of the question is not the end of the connection."""

    async def answer_at_end(stream: Stream) -> None:
        question = b"".join([data async for data in stream])
        await stream.send(question[::-1])

    async with transport.serve(answer_at_end) as server, transport.connect(server) as client:
        await client.send(b"0123456789" * 10_000)
        await client.send_eof()
        assert await client.receive_all() == b"9876543210" * 10_000


async def test_server_half_closes_and_still_receives(transport: Transport) -> None:
    """After send_eof() the peer sees the end, and what it then says is received."""
    async with transport.pair() as (stream, client):
        await stream.send(b"last words")
        await stream.send_eof()
        assert await client.receive_all() == b"last words"
        await client.send(b"thank you")
        assert await stream.receive() == b"thank you"
        await client.send(b"line\n")
        assert await stream.receive_until(b"\n", 100) == b"line"
        await client.send_eof()
        assert [data async for data in stream] == []


async def test_send_eof_leaves_a_waiting_receiver_alone(transport: Transport) -> None:
    """A task that receives meanwhile goes on."""
    async with transport.pair() as (stream, client):
        receiving = await blocked(stream.receive())
        await stream.send_eof()
        assert await client.receive_all() == b""
        await client.send(b"abc")
        assert await within(receiving) == b"abc"


async def test_send_after_eof_is_refused(transport: Transport) -> None:
    """Nothing can be sent after send_eof(), which may be called again."""
    async with transport.pair() as (stream, client):
        await stream.send_eof()
        await stream.send_eof()
        with pytest.raises(anyio.ClosedResourceError, match="send_eof"):
            await stream.send(b"more")
        with pytest.raises(anyio.ClosedResourceError):
            await stream.start_tls(transport.server_context) if not transport.tls else await stream.send(b"")
        assert await client.receive_all() == b""


async def test_both_half_close(transport: Transport) -> None:
    """The peer ends first, then we: the stream is at its end, and stays there."""
    async with transport.pair() as (stream, client):
        await client.send_eof()
        await stream.send_eof()
        assert await client.receive_all() == b""
        assert await within(_all(stream)) == b""


async def test_send_eof_crosses_data(transport: Transport) -> None:
    """What the peer had sent before it saw our end is received all the same."""
    async with transport.pair() as (stream, client):
        data = bytes(range(256)) * 200
        await client.send(data)
        await stream.send_eof()
        assert await client.receive_all() == b""
        await client.send(b"more")
        await client.send_eof()
        assert await within(_all(stream)) == data + b"more"


async def _all(stream: Stream) -> bytes:
    return b"".join([data async for data in stream])
