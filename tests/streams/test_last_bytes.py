"""What was sent reaches the peer after its handler has ended, or the handler does not count as completed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from asyncserver import DrainReport
from asyncserver.connections.states import refuse_closed
from tests.kit.clients import Client, TLSClient, open_socket
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until, within

if TYPE_CHECKING:
    from pathlib import Path

    from asyncserver import Server, Stream

# A client's kernel that keeps so little unread leaves most of such an answer in ours, which takes it at once.
SMALL = 8192
ANSWER = b"answer" * 50_000


async def answer_once(stream: Stream) -> None:
    """Answer, and return."""
    await stream.receive_exactly(1)
    await stream.send(ANSWER)


async def answer_and_close(stream: Stream) -> None:
    """Answer, and close."""
    async with stream:
        await answer_once(stream)


async def answer_and_end(stream: Stream) -> None:
    """Answer, end our side, and return."""
    await answer_once(stream)
    await stream.send_eof()


async def answer_always(stream: Stream) -> None:
    """Answer until the end."""
    while True:
        await answer_once(stream)


async def connect(transport: Transport, server: Server) -> Client:
    """Connect a client whose kernel takes little."""
    sock = await open_socket(server.addresses[0], receive_buffer=SMALL)
    if not transport.tls:
        return Client(sock)
    client = TLSClient(sock, transport.client_context)
    await client.handshake()
    return client


async def ask(transport: Transport, server: Server) -> Client:
    """Have a client ask for an answer that it does not read yet."""
    client = await connect(transport, server)
    await client.send(b"1")
    await until(lambda: server.stats().bytes_sent == len(ANSWER))
    return client


def closing(server: Server) -> bool:
    """Whether the stream of the one handler is being closed."""
    return all(stream._send is refuse_closed for stream in server.connections)


@pytest.fixture(params=["tcp", "tls"])
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Transport:
    """TCP, without TLS and with it."""
    return Transport(request.param, tmp_path)


@pytest.mark.parametrize("handler", [answer_once, answer_and_close, answer_and_end])
async def test_next_request_does_not_take_the_answer_away(net: Transport, handler: Any) -> None:
    """A client that asks again before it has read the answer to the end gets all of it, and a clean end."""
    async with net.serve(handler) as server:
        client = await ask(net, server)
        await until(lambda: closing(server))
        await client.send(b"2")
        assert await client.receive_all() == ANSWER
        client.close()
        await until(lambda: not server._busy())
        assert server.stats().undelivered == 0


async def test_next_request_does_not_take_the_answer_away_in_a_drain(net: Transport) -> None:
    """The same when it was the drain that ended the handler, between two messages."""
    async with net.serve(answer_always) as server:
        client = await ask(net, server)
        draining = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: server._closing.is_set() and closing(server))
        await client.send(b"2")
        assert await client.receive_all() == ANSWER
        client.close()
        assert await within(draining) == DrainReport(completed=1)


async def test_pipelining_client_gets_its_answer_whole(net: Transport) -> None:
    """A client that asks and asks while it reads, a little at a time."""
    async with net.serve(answer_once) as server:
        client = await ask(net, server)
        await until(lambda: closing(server))
        received = bytearray()
        while data := await client.receive(SMALL):
            received += data
            if len(received) < len(ANSWER):
                await client.send(b"2" * 100)
        assert received == ANSWER
        client.close()


async def test_client_that_reads_gets_everything_also_without_ending(net: Transport) -> None:
    """One that has everything need not end for its connection to be over."""
    async with net.serve(answer_once, max_connections=1) as server:
        client = await ask(net, server)
        assert await client.receive_all() == ANSWER
        await until(lambda: not server._busy())
        assert server.stats().undelivered == 0
        client.close()


async def test_what_the_peer_did_not_take_is_not_completed(net: Transport) -> None:
    """At the end of the drain; and the kernel goes on nevertheless."""
    async with net.serve(answer_always) as server:
        client = await ask(net, server)
        draining = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: not server.connections)
        assert await within(server.close(0)) == await draining == DrainReport(aborted=1)
        assert server.stats().undelivered == 1
        assert (await client.receive_exactly(len(ANSWER))) == ANSWER
        client.close()


async def test_what_was_on_its_way_before_the_drain_is_reported(net: Transport) -> None:
    """A handler that has ended, whose answer the peer takes in the drain, or does not."""
    async with net.serve(answer_once) as server:
        clients = [await ask(net, server)]
        await until(lambda: closing(server))
        clients.append(await connect(net, server))
        await clients[1].send(b"1")
        await until(lambda: server.stats().completed == 2)
        draining = asyncio.create_task(server.close(PATIENCE))
        assert await clients[0].receive_all() == ANSWER
        await until(lambda: server._handlers_ended() == 1)
        assert await within(server.close(0)) == await draining == DrainReport(completed=1, aborted=1)
        for client in clients:
            client.close()


async def test_peer_that_takes_nothing_is_let_go_after_a_while(net: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is free again, and what it did not take is counted."""
    monkeypatch.setattr("asyncserver.connections.lingering._PATIENCE", 0.02)
    async with net.serve(answer_once, max_connections=1) as server:
        client = await ask(net, server)
        await until(lambda: server.stats().undelivered)
        second = await net.connect(server)
        await second.send(b"1")
        assert await second.receive_all() == ANSWER
        client.close()
        second.close()


async def test_idle_timeout_lets_go_of_a_peer_that_takes_nothing(net: Transport) -> None:
    """Sooner than without one."""
    async with net.serve(answer_once, idle_timeout=0.05) as server:
        client = await ask(net, server)
        await until(lambda: server.stats().undelivered, PATIENCE)
        assert (server.stats().completed, server.stats().timed_out) == (1, 0)
        client.close()


async def test_peer_that_takes_a_little_now_and_then_is_waited_for(
    net: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it goes on, however long that takes all in all."""
    monkeypatch.setattr("asyncserver.connections.lingering._PATIENCE", 0.001)
    monkeypatch.setattr("asyncserver.connections.lingering._STALLS", 5000)
    async with net.serve(answer_once) as server:
        client = await ask(net, server)
        await until(lambda: closing(server))
        await client.send(b"2")
        assert await client.receive_all() == ANSWER
        await until(lambda: not server._busy())
        assert server.stats().undelivered == 0
        client.close()


async def test_peer_that_goes_away_before_it_has_taken_everything(net: Transport) -> None:
    """A reset ends it at once, and is told."""
    async with net.serve(answer_once) as server:
        client = await ask(net, server)
        await until(lambda: closing(server))
        client.reset()
        await until(lambda: server.stats().undelivered)
        assert not server._busy()


async def test_close_of_a_quiet_connection_waits_for_nothing(tcp: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to linger for: the kernel has sent everything, or the peer has ended and can send no more."""
    monkeypatch.setattr("asyncserver.connections.lingering.Lingering", None)

    async def answer_little(stream: Stream) -> None:
        await stream.receive()
        await stream.send(b"answer")

    async def answer_at_the_end(stream: Stream) -> None:
        async for _ in stream:
            pass
        await stream.send(ANSWER)

    async def ask_now(handler: Any, *, end: bool) -> bytes:
        async with tcp.serve(handler) as server:
            client = await connect(tcp, server)
            await client.send(b"1")
            if end:
                await client.send_eof()
            await until(lambda: server.stats().completed)
            answer = await client.receive_all()
            client.close()
            return answer

    assert await ask_now(answer_little, end=False) == b"answer"
    assert await ask_now(answer_at_the_end, end=True) == ANSWER
