"""Stream: receiving, in pieces, exactly, and up to a delimiter."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import pydoc
import re
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncserver import Stream
from asyncserver.net.poller import Poller
from asyncserver.streams.sending import PostLimit
from tests.kit.clients import Client
from tests.kit.handlers import upper
from tests.kit.transports import Transport
from tests.kit.waiting import blocked, until, within


async def test_it_is_an_anyio_byte_stream(transport: Transport) -> None:
    """Whatever takes anyio's ByteStream takes ours."""
    async with transport.pair() as (stream, _):
        assert isinstance(stream, ByteStream)


async def test_echo(transport: Transport) -> None:
    """A question, its answer, again and again; the end of the questions ends the handler's loop."""
    async with transport.serve(upper) as server:
        client = await transport.connect(server)
        for number in range(200):
            question = b"question %d" % number
            assert await client.ask(question) == question.upper()
        await client.send_eof()
        assert await client.receive_all() == b""
        client.close()
        await until(lambda: server.stats().completed)
        assert server.stats().bytes_received == server.stats().bytes_sent > 2000


async def test_receive_takes_at_most_max_bytes(transport: Transport) -> None:
    """What is left waits for the next receive, whichever way the bytes are taken."""
    async with transport.pair() as (stream, client):
        await client.send(b"0123456789" * 10)
        parts = [await stream.receive(1), await stream.receive(7), await stream.receive_exactly(2)]
        parts += [await stream.receive_until(b"9", 50), await stream.receive(3)]
        assert b"".join(parts) == b"0123456789012345678012"
        rest = b""
        while len(rest) < 77:
            rest += await stream.receive(10)
        assert rest == (b"0123456789" * 10)[23:]


async def test_iteration_takes_more_of_a_peer_that_sends_much(transport: Transport) -> None:
    """After a full receive an iteration takes what is there; `receive()` still takes at most what it is asked for."""
    data = bytes(range(256)) * 4096
    async with transport.pair() as (stream, client):
        stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sending = asyncio.create_task(client.send(data))

        async def take(receive: Callable[[], Awaitable[bytes]]) -> bytes:
            await until(lambda: stream._unread() >= 80_000)
            return await within(receive())

        chunks = [await take(stream.__anext__) for _ in range(2)]
        asked = [1 << 16, (1 << 16) + 1, 100]
        chunks += [await take(partial(stream.receive, most)) for most in asked]
        chunks.append(await within(stream.receive_exactly(len(data) - len(b"".join(chunks)))))
        await within(sending)
        assert b"".join(chunks) == data == data[: stream.bytes_received]
        assert all(len(chunk) <= most for chunk, most in zip(chunks[2:], asked, strict=False))
        if not transport.tls:
            assert len(chunks[1]) >= 80_000
        await client.send(b"few")
        assert await within(stream.__anext__()) == b"few"


def test_iteration_is_documented_as_a_method_of_its_own() -> None:
    """help() shows it without the arguments of the function that it is made of."""
    page = pydoc.plain(pydoc.render_doc(Stream))
    assert re.search(
        r"\|  __anext__\(self\) -> .*\n \|      Receive the next bytes; the iteration stops at the end", page
    )
    assert "_chunk" not in page
    assert pickle.loads(pickle.dumps(Stream.__anext__)) is Stream.__anext__


async def test_max_bytes_below_one_is_refused(transport: Transport) -> None:
    """receive(0) has no answer; it says so and takes nothing."""
    async with transport.pair() as (stream, client):
        await client.send(b"abcdef")
        for buffered in (False, True):
            with pytest.raises(ValueError, match=r"at least 1|negative"):
                await within(stream.receive(0))
            with pytest.raises(ValueError, match=r"at least 1|negative|size"):
                await within(stream.receive(-1))
            if not buffered:
                assert await stream.receive_until(b"b", 10) == b"a"
        assert await stream.receive_exactly(4) == b"cdef"


async def test_max_bytes_below_one_at_the_end(transport: Transport) -> None:
    """Also an ended stream tells a wrong argument from its end."""
    async with transport.pair() as (stream, client):
        await client.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        with pytest.raises(ValueError, match="at least 1"):
            await stream.receive(0)


async def test_end_of_stream_stays(transport: Transport) -> None:
    """Every receive after the end reports it again, each in its own way."""
    async with transport.pair() as (stream, client):
        await client.send_eof()
        for _ in range(3):
            with pytest.raises(anyio.EndOfStream):
                await within(stream.receive())
            assert [data async for data in stream] == []
            with pytest.raises(anyio.IncompleteRead) as caught:
                await stream.receive_exactly(1)
            assert isinstance(caught.value.__cause__, anyio.EndOfStream)
            with pytest.raises(anyio.IncompleteRead):
                await stream.receive_until(b"x", 1)


async def test_end_wakes_whoever_waits(transport: Transport) -> None:
    """A receive that waits when the peer ends reports the end."""
    async with transport.pair() as (stream, client):
        receiver = await blocked(stream.receive())
        await client.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await within(receiver)


async def test_receive_exactly(transport: Transport) -> None:
    """So many bytes, however they come; zero need no bytes at all."""
    async with transport.pair() as (stream, client):
        assert await within(stream.receive_exactly(0)) == b""
        waiting = await blocked(stream.receive_exactly(10))
        for part in (b"0", b"12", b"3456", b"789ab"):
            await client.send(part)
            await asyncio.sleep(0)
        assert await within(waiting) == b"0123456789"
        assert await stream.receive() == b"ab"


async def test_receive_exactly_refuses_a_negative_number(tcp: Transport) -> None:
    """A negative number is a mistake, not a slice."""
    async with tcp.pair() as (stream, client):
        await client.send(b"abcdef")
        assert await stream.receive_exactly(1) == b"a"
        with pytest.raises(ValueError, match="-1"):
            await stream.receive_exactly(-1)
        assert await stream.receive() == b"bcdef"


async def test_incomplete_read_keeps_what_came(transport: Transport) -> None:
    """An end in the middle of a message loses none of it."""
    async with transport.pair() as (stream, client):
        await client.send(b"abc")
        await client.send_eof()
        with pytest.raises(anyio.IncompleteRead):
            await within(stream.receive_exactly(4))
        with pytest.raises(anyio.IncompleteRead):
            await stream.receive_until(b"\n", 10)
        assert await stream.receive_exactly(3) == b"abc"
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


async def test_receive_until(transport: Transport) -> None:
    """Up to the delimiter, which is taken and not returned; an empty line is a line."""
    async with transport.pair() as (stream, client):
        await client.send(b"one\r\n\r\nthree\r\nrest")
        lines = [await stream.receive_until(b"\r\n", 100) for _ in range(3)]
        assert lines == [b"one", b"", b"three"]
        assert await stream.receive() == b"rest"


@pytest.mark.parametrize(("max_bytes", "found"), [(4, False), (5, False), (6, True), (7, True), (8, True)])
async def test_receive_until_looks_through_max_bytes(tcp: Transport, max_bytes: int, found: bool) -> None:
    """The whole delimiter must lie in the first max_bytes bytes; otherwise nothing is taken."""
    async with tcp.pair() as (stream, client):
        await client.send(b"abcd\r\nx")
        if found:
            assert await stream.receive_until(b"\r\n", max_bytes) == b"abcd"
            assert await stream.receive() == b"x"
        else:
            with pytest.raises(anyio.DelimiterNotFound):
                await within(stream.receive_until(b"\r\n", max_bytes))
            assert await stream.receive_exactly(7) == b"abcd\r\nx"


async def test_delimiter_not_found_as_soon_as_max_bytes_came(transport: Transport) -> None:
    """The error does not wait for more bytes than it takes to know, and can be tried again with more."""
    async with transport.pair() as (stream, client):
        await client.send(b"x" * 10)
        for _ in range(2):
            with pytest.raises(anyio.DelimiterNotFound):
                await within(stream.receive_until(b"\n", 10))
        waiting = await blocked(stream.receive_until(b"\n", 12))
        await client.send(b"y\n")
        assert await within(waiting) == b"x" * 10 + b"y"


async def test_receive_until_needs_a_delimiter(tcp: Transport) -> None:
    """An empty delimiter is found nowhere, or everywhere: refused."""
    async with tcp.pair() as (stream, _):
        with pytest.raises(ValueError, match="delimiter"):
            await stream.receive_until(b"", 10)


MESSAGE = b"ab;;cd;;"


async def _receive_pieces(stream: Stream) -> list[bytes]:
    return [
        await stream.receive_until(b";;", 16),
        await stream.receive_exactly(2),
        await stream.receive_until(b";;", 16),
    ]


@pytest.mark.parametrize("waiting", [True, False], ids=["as-they-come", "all-there"])
async def test_chunks_split_at_every_boundary(transport: Transport, waiting: bool) -> None:
    """All 128 ways to cut eight bytes into chunks make no difference, whether the reader waits or comes later."""
    async with transport.pair() as (stream, client):
        for cuts in itertools.product((False, True), repeat=len(MESSAGE) - 1):
            edges = [0, *(at for at, cut in enumerate(cuts, 1) if cut), len(MESSAGE)]
            reading = await blocked(_receive_pieces(stream)) if waiting else None
            for start, stop in itertools.pairwise(edges):
                await client.send(MESSAGE[start:stop])
                while waiting and stream.bytes_received % len(MESSAGE) != stop % len(MESSAGE):
                    await asyncio.sleep(0)  # so that the next chunk is another receive; the test's timeout bounds it
            pieces = await within(reading if reading is not None else _receive_pieces(stream))
            assert pieces == [b"ab", b"cd", b""]


def test_messages_of_any_shape(tmp_path: Path) -> None:
    """Whatever is sent in whatever chunks, receive_exactly, receive_until and receive agree with the bytes."""
    step = st.one_of(
        st.tuples(st.just("exactly"), st.integers(0, 40)),
        st.tuples(st.just("until"), st.sampled_from([b"a", b"ab", b"aab", b"aa"])),
        st.tuples(st.just("receive"), st.integers(1, 40)),
    )

    @settings(max_examples=60)
    @given(
        chunks=st.lists(st.text("ab", min_size=1, max_size=12).map(str.encode), max_size=8),
        steps=st.lists(step, max_size=8),
    )
    def check(chunks: list[bytes], steps: list[tuple[str, Any]]) -> None:
        asyncio.run(_check_shape(chunks, steps))

    check()


async def _check_shape(chunks: list[bytes], steps: list[tuple[str, Any]]) -> None:
    there = socket.socket()
    poller = Poller(asyncio.get_running_loop())
    stream = Stream(poller, asyncio.Event(), PostLimit(1000, list))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        there.connect(listening.getsockname())
        assert stream._accept(listening, (listening.family, listening.type, listening.proto))
    there.setblocking(False)
    client = Client(there)

    async def send() -> None:
        for chunk in chunks:
            await client.send(chunk)
            await asyncio.sleep(0)
        await client.send_eof()

    sender = asyncio.create_task(send())
    rest = b"".join(chunks)
    for kind, argument in steps:
        rest = await within(_check_step(stream, kind, argument, rest))
    tail = b"".join([data async for data in stream])
    await sender
    await stream.aclose()
    client.close()
    poller.close()
    assert tail == rest


async def _check_step(stream: Stream, kind: str, argument: Any, rest: bytes) -> bytes:
    if kind == "exactly":
        if argument > len(rest):
            with pytest.raises(anyio.IncompleteRead):
                await stream.receive_exactly(argument)
            return rest
        assert await stream.receive_exactly(argument) == rest[:argument]
        return rest[argument:]
    if kind == "until":
        index = rest.find(argument, 0, 20)
        if index < 0:
            error = anyio.DelimiterNotFound if len(rest) >= 20 else anyio.IncompleteRead
            with pytest.raises(error):
                await stream.receive_until(argument, 20)
            return rest
        assert await stream.receive_until(argument, 20) == rest[:index]
        return rest[index + len(argument) :]
    if not rest:
        with pytest.raises(anyio.EndOfStream):
            await stream.receive(argument)
        return rest
    data = await stream.receive(argument)
    assert 1 <= len(data) <= argument
    assert rest.startswith(data)
    return rest[len(data) :]
