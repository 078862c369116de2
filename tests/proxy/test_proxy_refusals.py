"""Headers of proxies that are untrusted, malformed, late, or on their way when the server drains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from typing import Any

import anyio
import pytest

import asyncserver
from tests.kit.clients import Client
from tests.kit.proxy_headers import BINARY, CLIENT, INET, KINDS, LINE, SIGNATURE, Telling, ask, proxied, tell


@pytest.mark.parametrize("handler", KINDS)
async def test_spoofed_header_from_an_untrusted_address(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever is no trusted proxy is refused whatever it says, counted, and shown once in the log."""
    async with proxied(handler, trusted_proxies=["10.0.0.0/8"]) as server:
        for _ in range(3):
            assert await ask(server, LINE + b"question") == b""
    stats = server.stats()
    assert (stats.accepted, stats.refused, stats.proxy_untrusted, stats.completed) == (3, 3, 3, 0)
    assert [record.levelname for record in caplog.records if record.levelno >= logging.INFO] == ["WARNING"]
    assert "127.0.0.1" in caplog.text
    assert "trusted_proxies" in caplog.text


@pytest.mark.parametrize("handler", KINDS)
@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 1.2.3 4.5.6.7 8 9\r\n" + b"x" * 999, BINARY[:-1]]
)
async def test_missing_or_malformed_header(handler: Any, data: bytes) -> None:
    """A trusted proxy that sends no header, a wrong one or half of one is refused at once and counted."""
    async with proxied(handler) as server, Client.connect(server.addresses[0]) as client:
        await client.send(data)
        if data == BINARY[:-1]:
            await client.send_eof()
        assert await client.rest() == b""
    stats = server.stats()
    assert (stats.refused, stats.proxy_invalid, stats.active, stats.completed) == (1, 1, 0, 0)


@pytest.mark.parametrize("handler", KINDS)
async def test_header_that_does_not_come_in_time(handler: Any) -> None:
    """A header that is dribbled ends the connection, however regular its bytes, and has a counter of its own."""
    header = SIGNATURE + b"\x21\x11" + struct.pack("!H", 0xFFFF) + INET
    async with proxied(handler, proxy_timeout=0.5) as server, Client.connect(server.addresses[0]) as client:
        await client.send(header[:1])
        ended = asyncio.create_task(client.rest())
        sent = 1
        while not ended.done():
            with contextlib.suppress(ConnectionError):
                await client.send(header[sent : sent + 1] or b"\0")
            sent += 1
            await asyncio.wait([ended], timeout=0.01)
        assert await ended == b""
    stats = server.stats()
    assert (stats.refused, stats.proxy_timed_out, stats.proxy_invalid) == (1, 1, 0)
    assert sent < 0xFFFF


@pytest.mark.usefixtures("slow_clients")
@pytest.mark.parametrize("handler", KINDS)
async def test_header_on_its_way_when_the_drain_begins(handler: Any) -> None:
    """A connection accepted before the drain whose header comes after its beginning is served its question."""
    async with proxied(handler) as server, Client.connect(server.addresses[0]) as client:
        while not server.stats().entering:
            await anyio.lowlevel.checkpoint()
        closing = asyncio.create_task(server.close(10))
        while server.sockets:
            await anyio.lowlevel.checkpoint()
        await client.send(LINE)
        while not any(connection.peer_address == CLIENT for connection in server.connections):
            await anyio.lowlevel.checkpoint()
        for _ in range(20):  # time to do the wrong thing, and end the connection
            await anyio.lowlevel.checkpoint()
        await client.send(b"question")
        assert await client.rest() == b"('192.0.2.1', 56324) question"
        assert await closing == asyncserver.DrainReport(completed=1)


async def test_no_header_when_the_drain_begins() -> None:
    """A connection whose header never comes holds the drain up for the header's time limit and no longer."""
    async with proxied(tell, proxy_timeout=0.1) as server, Client.connect(server.addresses[0]) as client:
        while not server.stats().accepted:
            await anyio.lowlevel.checkpoint()
        async with asyncio.timeout(20):
            assert await server.close(30) == asyncserver.DrainReport()
        with pytest.raises(ConnectionResetError):
            await client.receive()
    assert server.stats().proxy_timed_out == 1


@pytest.mark.parametrize("handler", KINDS)
async def test_silent_client_behind_a_proxy_does_not_hold_the_drain_up(handler: Any) -> None:
    """Header here, nothing said: as without a proxy, it is between two messages and its stream ends."""
    async with proxied(handler) as server, Client.connect(server.addresses[0]) as client:
        await client.send(LINE)
        while not any(connection.peer_address == CLIENT for connection in server.connections):
            await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        async with asyncio.timeout(5):
            await server.close(30)
        assert await client.rest() == b""
        assert not server._poller._connections  # type: ignore[attr-defined] # nobody watches a socket given away


async def test_idle_timeout_begins_behind_the_header() -> None:
    """Waiting for a header has its own limit: it is not the client that is idle."""
    lost: asyncio.Queue[Any] = asyncio.Queue()

    class Losing(Telling):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.put_nowait(self.transport.get_extra_info("peername"))

    async with (
        proxied(asyncserver.from_protocol(Losing), idle_timeout=0.05) as server,
        Client.connect(server.addresses[0]) as early,
        Client.connect(server.addresses[0]) as silent,
    ):
        await silent.send(LINE)
        assert await lost.get() == CLIENT
        await early.send(LINE + b"late")
        assert await early.rest() == b"('192.0.2.1', 56324) late"
    stats = server.stats()
    assert (stats.completed, stats.timed_out) == (1, 1)


@pytest.mark.parametrize("handler", KINDS)
async def test_header_that_comes_with_the_first_bytes_may_take_its_time(handler: Any) -> None:
    """As AWS's load balancer sends it: late, but within `proxy_timeout`."""
    async with (
        proxied(handler, proxy_timeout=60) as patient,
        proxied(handler, proxy_timeout=0.05) as hasty,
        Client.connect(patient.addresses[0]) as client,
        Client.connect(hasty.addresses[0]) as silent,
    ):
        assert await silent.rest() == b""
        await client.send(LINE + b"question")
        assert await client.rest() == b"('192.0.2.1', 56324) question"
    assert (patient.stats().completed, hasty.stats().proxy_timed_out) == (1, 1)
