"""Stream: what a handler sends and receives, over every transport and both loops."""

from __future__ import annotations

import array
import asyncio
import contextvars
import hashlib
import itertools
import socket
import sys
from asyncio import tasks
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.text import TextStream
from anyio.streams.tls import TLSAttribute, TLSStream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import asyncserver
import asyncserver.stream
from asyncserver import Stream
from asyncserver._poller import Poller
from tests.support import Client, TLSClient, Transport, blocked, eventually, fill, within

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine
    from pathlib import Path


async def upper(stream: Stream) -> None:
    async for data in stream:
        await stream.send(data.upper())


# -- receiving


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
        await eventually(lambda: server.stats().completed)
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


async def test_max_bytes_below_one_is_refused(transport: Transport) -> None:
    """receive(0) has no answer; it says so and takes nothing."""
    async with transport.pair() as (stream, client):
        await client.send(b"abcdef")
        for buffered in (False, True):
            with pytest.raises(ValueError, match=r"at least 1|negative"):
                await within(stream.receive(0), 1)
            with pytest.raises(ValueError, match=r"at least 1|negative|size"):
                await within(stream.receive(-1), 1)
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

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        chunks=st.lists(st.text("ab", min_size=1, max_size=12).map(str.encode), max_size=8),
        steps=st.lists(step, max_size=8),
    )
    def check(chunks: list[bytes], steps: list[tuple[str, Any]]) -> None:
        asyncio.run(_check_shape(chunks, steps))

    check()


async def _check_shape(chunks: list[bytes], steps: list[tuple[str, Any]]) -> None:
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    poller = Poller(asyncio.get_running_loop())
    stream = Stream(poller, here, "", asyncio.Event())
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
        with pytest.raises(anyio.BusyResourceError):
            await stream.receive()
        await client.send(b"abc")
        assert await within(waiting) == b"abc"
        await client.send(b"def")
        assert await stream.receive() == b"def"


async def test_receiver_that_lets_others_run(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a receiver that has just let others run does not push aside one that waits."""
    monkeypatch.setattr(asyncserver.stream, "_SPIN_LIMIT", 1)
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
        with pytest.raises(anyio.BusyResourceError):
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
        data = bytes(40_000_000)  # more than the buffers of both sides ever grow to
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


@pytest.mark.parametrize("megabytes", [100])
async def test_100_megabytes_each_way(transport: Transport, megabytes: int) -> None:
    """An echo of a hundred megabytes has the same hash."""
    chunk = bytes(range(256)) * 4096

    async def echo(stream: Stream) -> None:
        async for data in stream:
            await stream.send(data)

    async with transport.serve(echo) as server:
        client = await transport.connect(server)
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
        client.close()
        assert received == megabytes << 20
        assert there.digest() == back.digest()


# -- half-close


async def test_client_half_closes_and_gets_its_answer(transport: Transport) -> None:
    """The end of the question is not the end of the connection."""

    async def answer_at_end(stream: Stream) -> None:
        question = b"".join([data async for data in stream])
        await stream.send(question[::-1])

    async with transport.serve(answer_at_end) as server:
        client = await transport.connect(server)
        await client.send(b"0123456789" * 10_000)
        await client.send_eof()
        assert await client.receive_all() == b"9876543210" * 10_000
        client.close()


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


# -- the end


async def test_aclose_ends_the_peers_stream(transport: Transport) -> None:
    """The peer gets what was sent, then a clean end; and everything is refused from then on."""
    async with transport.pair() as (stream, client):
        await stream.send(b"last words")
        await stream.aclose()
        await stream.aclose()
        assert await client.receive_all() == b"last words"
        assert repr(stream).endswith("closed>")
        for use in (
            stream.receive(),
            stream.__anext__(),
            stream.receive_exactly(1),
            stream.receive_exactly(0),
            stream.receive_until(b"x", 1),
            stream.send(b"x"),
            stream.send(b""),
            stream.send_eof(),
            stream.start_tls(transport.server_context),
        ):
            with pytest.raises(
                (anyio.ClosedResourceError, RuntimeError) if "start_tls" in repr(use) else anyio.ClosedResourceError
            ):
                await use
        with pytest.raises(anyio.ClosedResourceError):
            _ = stream.local_address
        with pytest.raises(anyio.ClosedResourceError):
            stream.detach()
        stream.abort()


@pytest.mark.parametrize("way", ["aclose", "abort", "detach"])
async def test_closing_wakes_whoever_waits(transport: Transport, way: str) -> None:
    """A receive and a send that wait when another task closes the stream raise ClosedResourceError."""
    async with transport.pair() as (stream, _):
        receiving = await blocked(stream.receive())
        sending = await blocked(stream.send(bytes(1 << 24)))
        if way == "aclose":
            await within(stream.aclose())
        elif way == "abort":
            stream.abort()
        else:
            stream.detach().close()
        for task in (receiving, sending):
            with pytest.raises(anyio.ClosedResourceError):
                await within(task)


async def test_aclose_twice_at_once(transport: Transport) -> None:
    """Two tasks may close at the same time; the answer still arrives."""
    async with transport.pair() as (stream, client):
        await client.send(b"unread")
        await stream.send(b"answer")
        closers = [asyncio.create_task(stream.aclose()) for _ in range(2)]
        assert await client.receive_all() == b"answer"
        client.close()
        await within(asyncio.gather(*closers))


async def test_unread_bytes_do_not_cost_the_answer(transport: Transport) -> None:
    """A handler that returns without reading everything: no reset overtakes what it sent last."""
    answer = b"enough" * 5000

    async def answer_early(stream: Stream) -> None:
        await stream.receive(1)
        await stream.send(answer)

    async with transport.serve(answer_early) as server:
        client = await transport.connect(server)
        await client.send(bytes(100_000))
        await eventually(lambda: not server.connections)  # the handler has ended, its stream is being closed
        assert await client.receive_all() == answer
        client.close()
        await eventually(lambda: server.stats().completed)


async def test_peer_that_goes_on_sending_is_left_after_a_while(tcp: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """aclose() throws away what still arrives, but not for ever."""
    monkeypatch.setattr(asyncserver.stream, "_CLOSE_TIMEOUT", 0.1)
    async with tcp.pair() as (stream, client):
        await client.send(b"unread")
        closing = await blocked(stream.aclose())
        await client.send(b"more")
        assert not closing.done()
        await within(closing, 5)
        assert await client.receive_all() == b""


async def test_abort_resets(transport: Transport) -> None:
    """The peer sees a reset at once, or what is nearest to it: the end without close_notify."""
    async with transport.pair() as (stream, client):
        await client.send(b"unread")
        stream.abort()
        stream.abort()
        with pytest.raises(ConnectionResetError):
            await client.receive_all()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(b"x")


async def test_abort_throws_away_what_is_unsent(tcp: Transport) -> None:
    """Of a large answer the peer gets less than all, then the reset."""
    async with tcp.pair() as (stream, client):
        sent = await fill(stream)
        stream.abort()
        received = 0
        with pytest.raises(ConnectionResetError):
            while data := await client.receive():
                received += len(data)
        assert received < sent


async def test_detach(transport: Transport) -> None:
    """The socket goes on without the stream, which counts as closed; the server leaves it alone."""
    async with transport.pair() as (stream, client):
        await client.send(b"first")
        assert await stream.receive() == b"first"
        sock = stream.detach()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(b"x")
        assert sock.gettimeout() == 0
    with sock:
        assert sock.fileno() >= 0


async def test_detached_socket_works(transport: Transport) -> None:
    """Both ways, after the server has gone."""
    async with transport.pair() as (stream, client):
        sock = stream.detach()
        sock.setblocking(True)
        with sock:
            await asyncio.to_thread(sock.sendall, b"hello")
            assert await client.receive() == b"hello"
            await client.send(b"bye")
            assert await asyncio.to_thread(sock.recv, 10) == b"bye"


async def test_detach_refuses_to_lose_bytes(transport: Transport) -> None:
    """Bytes that the stream has taken from the socket must be received first."""
    async with transport.pair() as (stream, client):
        await client.send(b"line\nrest")
        assert await stream.receive_until(b"\n", 100) == b"line"
        with pytest.raises(RuntimeError, match="4 received bytes"):
            stream.detach()
        assert await stream.receive() == b"rest"
        stream.detach().close()


# -- what it tells


async def test_addresses(transport: Transport) -> None:
    """Both ends agree on who they are."""
    async with transport.pair() as (stream, client):
        assert stream.local_address == client.sock.getpeername()
        assert stream.peer_address == client.sock.getsockname()
        assert repr(stream) == f"<Stream {stream.peer_address!r} open>"
        peer = stream.peer_address
        stream.abort()
        assert stream.peer_address == peer


async def test_socket_attributes(transport: Transport) -> None:
    """anyio's typed attributes are there; ports only where there are ports."""
    async with transport.pair() as (stream, client):
        assert stream.extra(SocketAttribute.local_address) == client.sock.getpeername()
        assert stream.extra(SocketAttribute.remote_address) == client.sock.getsockname()
        assert stream.extra(SocketAttribute.family) == client.sock.family
        assert stream.extra(SocketAttribute.raw_socket).fileno() >= 0
        if transport.name == "unix":
            assert stream.extra(SocketAttribute.local_port, None) is None
            assert stream.extra(SocketAttribute.remote_port, None) is None
        else:
            assert stream.extra(SocketAttribute.local_port) == client.sock.getpeername()[1]
            assert stream.extra(SocketAttribute.remote_port) == client.sock.getsockname()[1]
        if not transport.tls:
            with pytest.raises(anyio.TypedAttributeLookupError):
                stream.extra(TLSAttribute.tls_version)


async def test_closing_tells_the_handler_of_the_drain(transport: Transport) -> None:
    """The event is set when the server begins to close, and a handler that waits for it can say goodbye."""
    told = asyncio.Event()

    async def goodbye(stream: Stream) -> None:
        assert not stream.closing.is_set()
        told.set()
        await stream.closing.wait()
        await stream.send(b"goodbye")

    async with transport.serve(goodbye) as server:
        client = await transport.connect(server)
        await within(told.wait())
        report = await within(server.close())
        assert await client.receive_all() == b"goodbye"
        client.close()
        assert (report.completed, report.cancelled, report.aborted) == (1, 0, 0)


async def test_each_connection_has_its_own_context(transport: Transport) -> None:
    """A contextvar set in one handler is not seen in another's, nor in the task that serves."""
    variable = contextvars.ContextVar("variable", default=b"nobody")

    async def remember(stream: Stream) -> None:
        async for data in stream:
            await stream.send(variable.get())
            variable.set(data)

    async with transport.serve(remember) as server:
        one, other = await transport.connect(server), await transport.connect(server)
        for client, name in ((one, b"one"), (other, b"other")):
            await client.send(name)
            assert await client.receive() == b"nobody"
        for client, name in ((one, b"one"), (other, b"other")):
            await client.send(name)
            assert await client.receive() == name
            client.close()
    assert variable.get() == b"nobody"


# -- what anyio builds on it


async def test_under_buffered_byte_stream(transport: Transport) -> None:
    """anyio's own buffer works on it, and its end of stream and errors come through."""
    async with transport.pair() as (stream, client):
        buffered = BufferedByteStream(stream)
        await client.send(b"line\n12345rest")
        await client.send_eof()
        assert await buffered.receive_until(b"\n", 100) == b"line"
        assert await buffered.receive_exactly(5) == b"12345"
        assert await buffered.receive() == b"rest"
        with pytest.raises(anyio.EndOfStream):
            await buffered.receive()
        await buffered.send(b"answer")
        await buffered.aclose()
        assert await client.receive_all() == b"answer"


async def test_under_text_stream(transport: Transport) -> None:
    """Characters cut in the middle come out whole."""
    async with transport.pair() as (stream, client):
        text = TextStream(stream)
        for part in ("grün".encode()[:3], "grün".encode()[3:]):
            await client.send(part)
        received = ""
        while len(received) < 4:
            received += await text.receive()
        assert received == "grün"
        await text.send("schön")
        await text.aclose()
        assert (await client.receive_all()).decode() == "schön"


@pytest.mark.parametrize("name", ["tcp", "unix"])
async def test_under_anyios_tls(
    name: str, tmp_path: Path, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """anyio's TLSStream.wrap on our stream: handshake, both ways, closing handshake."""
    transport = Transport(name, tmp_path, server_context, client_context)
    async with transport.pair() as (stream, client):
        wrapping = asyncio.create_task(TLSStream.wrap(stream, server_side=True, ssl_context=server_context))
        secure = TLSClient(client.sock, client_context)
        await secure.handshake()
        wrapped = await within(wrapping)
        await secure.send(b"hello" * 10_000)
        data = b""
        while len(data) < 50_000:
            data += await wrapped.receive()
        assert data == b"hello" * 10_000
        await wrapped.send(b"bye")
        await secure.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await wrapped.receive()
        await within(wrapped.aclose())
        assert await secure.receive_all() == b"bye"


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

    async with transport.serve(serve_all) as server:
        flooder = await transport.connect(server)
        flooding = asyncio.create_task(_send_for_ever(flooder))
        await within(flooded.wait())
        for _ in range(20):
            client = await transport.connect(server)
            assert await within(client.ask(b"q"), 5) == b"a"
            client.close()
        assert not flooding.done()
        flooding.cancel()
        await asyncio.wait([flooding])
        flooder.close()


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
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for _ in range(1900):
            await stream.receive(1)
        task.cancel()
        assert turns >= 1900 // 100


async def test_send_loop_lets_others_run(transport: Transport) -> None:
    """Sends that never wait still let others run every so often."""
    async with transport.pair() as (stream, _):
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for _ in range(200):  # as many small ones as a Unix socket takes before it blocks
            await stream.send(b"x")
        task.cancel()
        assert turns >= 200 // 100


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
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        await within(stream.send(bytes(size)))
        task.cancel()
        assert turns >= (size >> 14) // 100
        assert await within(reader) >= size


# -- kinds of tasks


def _python_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Future[Any]:
    task: asyncio.Future[Any] = tasks._PyTask(coroutine, loop=loop, **options)  # type: ignore[attr-defined]
    return task


def _eager_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Future[Any]:
    return asyncio.Task(coroutine, loop=loop, **{**options, "eager_start": True})


@pytest.mark.parametrize(
    "factory",
    [
        pytest.param(_python_task, id="python"),
        pytest.param(
            _eager_task,
            id="eager",
            marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="came with Python 3.12"),
        ),
    ],
)
@pytest.mark.parametrize("debug", [True, False])
async def test_any_kind_of_task(transport: Transport, factory: Any, debug: bool) -> None:
    """A task factory of the program's own, in debug mode or not: echo, timeout and cancellation work."""
    loop = asyncio.get_running_loop()
    loop.set_debug(debug)
    loop.set_task_factory(factory)
    try:
        async with transport.serve(upper) as server:
            client = await transport.connect(server)
            for _ in range(10):
                assert await client.ask(b"hello") == b"HELLO"
            client.close()
        async with transport.pair() as (stream, client):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.receive(), 0.01)
            task = await blocked(stream.receive())
            task.cancel()
            await asyncio.wait([task])
            await client.send(b"kept")
            assert await within(stream.receive()) == b"kept"
    finally:
        loop.set_task_factory(None)


async def test_receive_is_a_coroutine_function(transport: Transport) -> None:
    """People pass it to create_task, gather and wait."""
    async with transport.pair() as (stream, client):
        receiving = asyncio.create_task(stream.receive())
        await asyncio.gather(stream.send(b"abc"), client.send(b"def"))
        done, _ = await asyncio.wait([receiving], timeout=10)
        assert [task.result() for task in done] == [b"def"]
        assert await client.receive() == b"abc"


# -- pressure


async def test_peer_that_never_reads(transport: Transport) -> None:
    """What it is sent stays bounded by the kernel's buffers, the sender waits, and nobody else notices."""

    async def send_for_ever(stream: Stream) -> None:
        if await stream.receive_exactly(1) == b"q":
            await stream.send(b"a")
            return
        while True:
            await stream.send(bytes(1 << 20))

    async with transport.serve(send_for_ever, drain_timeout=0.1) as server:
        deaf = await transport.connect(server)
        await deaf.send(b"!")
        await eventually(lambda: server.stats().bytes_sent > 100_000)
        (stream,) = server.connections
        for _ in range(20):
            client = await transport.connect(server)
            assert await client.ask(b"q") == b"a"
            client.close()
        await _stalls(lambda: stream.bytes_sent)
        assert stream.bytes_sent < 32 << 20
        deaf.close()


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

    async with transport.serve(read_late) as server:
        flooder = await transport.connect(server)
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
        flooder.close()
        assert total.digest() == hashlib.blake2b(bytes(64 << 20)).digest()


async def _stalls(measure: Callable[[], int]) -> None:
    """Come back when a measure has stood still for 50 looks at it."""
    same, last = 0, -1
    async with asyncio.timeout(20):
        while same < 50:
            same, last = (same + 1, last) if measure() == last else (0, measure())
            await asyncio.sleep(0.001)


# -- silence


async def test_idle_timeout_wakes_the_receiver(transport: Transport) -> None:
    """A receive that waits raises IdleTimeout; the stream can still be used."""
    async with transport.pair(idle_timeout=0.1) as (stream, client):
        with pytest.raises(asyncserver.IdleTimeout):
            await within(stream.receive(), 5)
        await stream.send(b"still there?")
        assert await client.receive() == b"still there?"
        await client.send(b"yes")
        assert await within(stream.receive(), 5) == b"yes"


async def test_idle_timeout_wakes_the_sender(transport: Transport) -> None:
    """A send that waits for a peer that takes nothing raises IdleTimeout."""
    async with transport.pair(idle_timeout=0.1) as (stream, _):
        with pytest.raises(asyncserver.IdleTimeout):
            await within(stream.send(bytes(1 << 24)), 5)


async def test_idle_timeout_uncaught_is_no_error(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """It closes the connection, is counted, and is not in the log."""
    async with transport.serve(upper, idle_timeout=0.1) as server:
        client = await transport.connect(server)
        assert await client.receive_all() == b""
        client.close()
        await eventually(lambda: server.stats().timed_out)
    assert not caplog.records
