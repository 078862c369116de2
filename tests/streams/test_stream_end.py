"""Stream: closing, aborting and detaching."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from asyncserver import Stream
from tests.kit.transports import Transport, fill
from tests.kit.waiting import blocked, until, within


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
async def test_closing_wakes_whoever_waits(transport: Transport, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receive and a send that wait when another task closes the stream raise ClosedResourceError."""
    monkeypatch.setattr("asyncserver.connections.lingering._PATIENCE", 0.1)  # the peer takes nothing
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
        await until(lambda: not server.connections)  # the handler has ended, its stream is being closed
        assert await client.receive_all() == answer
        client.close()
        await until(lambda: server.stats().completed)


async def test_peer_that_goes_on_sending_is_left_after_a_while(tcp: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """aclose() throws away what still arrives, but not for ever."""
    monkeypatch.setattr("asyncserver.connections.lingering._PATIENCE", 0.1)
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
