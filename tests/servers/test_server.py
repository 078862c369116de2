"""A running server: statistics, pausing, the snapshot of its connections."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import pytest

import asyncserver
from asyncserver import Stream
from tests.kit.checks import is_balanced
from tests.kit.handlers import Misbehaving, upper
from tests.kit.transports import Transport
from tests.kit.waiting import until


def over_the_limit(server: asyncserver.Server) -> socket.socket:
    """Connect, at a level where it does not matter whether the server speaks TLS."""
    address: Any = server.addresses[0]
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.connect(address)
    sock.setblocking(False)
    return sock


async def test_statistics_balance_over_every_way_to_end(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """Accepted connections and bytes add up at any time, whatever became of the connections."""
    caplog.set_level(logging.CRITICAL, "asyncserver")
    words = (b"hello", b"raise", b"hang", b"swallow", b"silent", b"reset") * 4
    sent = received = 0
    limits = {"max_connections_per_host": 20, "drain_timeout": 0.1}
    async with Misbehaving() as handler, transport.serve(handler, **limits) as server:
        clients = [await transport.connect(server) for _ in words[:20]]
        for _ in range(2):
            over = await asyncio.open_connection(sock=over_the_limit(server))
            assert await over[0].read() == b""
            over[1].close()
        assert server.stats().refused == 2
        for client, word in zip(clients, words, strict=False):
            if word == b"reset":
                client.reset()
            elif word != b"silent":
                sent += len(word)
                await client.send(word)
            if word == b"hello":
                assert await client.receive_exactly(5) == b"HELLO"
                received += 5
            assert is_balanced(server)
        await until(lambda: server.stats().bytes_received == sent)
        assert server.stats().bytes_sent == received
        await until(lambda: server.stats().failed == 4)
        assert is_balanced(server)
        await server.close()
        assert is_balanced(server)
        handler.release.set()
        for client in clients:
            client.close()
    assert is_balanced(server)
    assert server.stats().active == 0
    assert (server.stats().bytes_received, server.stats().bytes_sent) == (sent, received)


async def test_pause_leaves_connections_to_the_kernel_until_resume(transport: Transport) -> None:
    """While paused nothing is accepted and open connections go on; resume serves who has waited."""
    async with transport.serve(upper) as server, transport.connect(server) as early:
        assert await early.ask(b"early") == b"EARLY"
        server.pause()
        server.pause()
        late = asyncio.ensure_future(transport.connect(server))
        for _ in range(20):
            assert await early.ask(b"still") == b"STILL"
        assert server.stats().accepted == 1
        server.resume()
        server.resume()
        client = await late
        assert await client.ask(b"late") == b"LATE"
        assert server.stats().accepted == 2
        client.close()


async def test_resume_does_not_lift_the_limit(tcp: Transport) -> None:
    """pause() and max_connections are two reasons not to accept: both must be gone."""
    async with tcp.serve(upper, max_connections=1) as server, tcp.connect(server) as first:
        assert await first.ask(b"a") == b"A"
        server.pause()
        server.resume()
        async with tcp.connect(server) as second:
            await second.send(b"b")
            for _ in range(20):
                assert await first.ask(b"a") == b"A"
            assert server.stats().accepted == 1
            server.pause()
            first.close()
            await until(lambda: server.stats().completed == 1)
            assert server.stats().accepted == 1
            server.resume()
            assert await second.receive_exactly(1) == b"B"


async def test_connections_is_a_snapshot_of_live_streams(transport: Transport) -> None:
    """It holds the streams whose handlers run; what happens later does not change it."""
    seen: list[frozenset[Any]] = []

    async def handler(stream: Stream) -> None:
        seen.append(server.connections)  # also before the first wait
        await upper(stream)

    async with transport.serve(handler) as server:
        assert server.connections == frozenset()
        async with transport.connect(server) as client:
            assert await client.ask(b"a") == b"A"
            before = server.connections
            (stream,) = before
            assert isinstance(stream, asyncserver.Stream)
            assert stream.bytes_received == 1
        await until(lambda: not server.connections)
        assert before == {stream}
    assert seen == [{stream}]


async def test_abort_from_outside_ends_a_connection(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """An operator may abort a stream of the snapshot; its handler gets an error, the others nothing."""
    caplog.set_level(logging.CRITICAL, "asyncserver")
    async with transport.serve(upper) as server, transport.connect(server) as client:
        assert await client.ask(b"a") == b"A"
        (stream,) = server.connections
        async with transport.connect(server) as other:
            assert await other.ask(b"b") == b"B"
            stream.abort()
            assert await client.rest() == b""
            await until(lambda: server.stats().active == 1)
            assert await other.ask(b"b") == b"B"
            assert is_balanced(server)


async def test_repr_tells_the_state(tcp: Transport) -> None:
    """A server's repr says where it listens and whether it does."""
    async with tcp.serve(upper) as server:
        assert repr(server) == f"<StreamServer serving on {server.addresses[0]}>"
        (sock,) = server.sockets
        assert sock.getsockname() == server.addresses[0]
    assert repr(server) == f"<StreamServer closed on {server.addresses[0]}>"
    assert not server.sockets
