"""Introductions: what happens while a client's PROXY header or TLS handshake is under way."""

from __future__ import annotations

import asyncio

from asyncserver import DrainReport
from tests.crossings.happenings import happening
from tests.crossings.ways import CLEAN, SOON, Crossing, Way, comes_to, short_silence, tally
from tests.kit.waiting import until, within


def _introduced(way: Way) -> bool:
    return way.proxied or way.wire == "tls"


@happening("Server.close", "one that has just begun half a second later", only=_introduced)
async def drain_before_the_introduction(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.dial(server)
        await until(lambda: server.stats().accepted == 1)
        with short_silence():
            closing = await x.drain(server)
            await x.hear_plainly(client)
            assert await within(closing, SOON) == DrainReport()
        assert tally(server) == {"refused": 1}


@happening("ServerStats", "not yet in `Server.connections`", only=_introduced)
async def introduction(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.dial(server)
        x.begin(client, b"say a\n", half=True)
        await until(lambda: server.stats().accepted == 1)
        await x.turns()
        assert tally(server) == {"entering": 1}
        assert not server.connections
        await x.go_on(client, b"say a\n")
        assert await client.receive_exactly(6) == b"SAY A\n"
        assert tally(server) == {"active": 1}
        assert len(server.connections) == 1
        client.close()
        await comes_to(server, completed=1)


@happening("docs/reliability.md", "and the first bytes of clients that have just connected", only=_introduced)
async def drain_in_the_introduction(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.dial(server)
        x.begin(client, b"bye a\n", half=True)
        await until(lambda: server.stats().accepted == 1)
        await x.turns()
        closing = await x.drain(server)
        await x.go_on(client, b"bye a\n")
        report, heard = await x.ends(closing, client)
        assert (report, heard) == (DrainReport(completed=1), [(b"BYE A\n", CLEAN)])
        assert tally(server) == {"completed": 1}


@happening("Server.close", "one that has just begun half a second later", wires=("tls",))
async def drain_in_the_handshake_of_one_who_says_nothing(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.dial(server)
        x.begin(client)
        await until(lambda: server.stats().accepted == 1)
        await x.turns()
        closing = await x.drain(server)
        await x.go_on(client)
        hearing = asyncio.create_task(x.hear_out(client))
        # Threads are known to be waited for until the deadline: less time shows that, too.
        assert await within(closing, 1.5 if x.way.style == "hosted" else SOON) == DrainReport(completed=1)
        assert await hearing == (b"", CLEAN)
        assert tally(server) == {"completed": 1}


@happening("serve", "who takes longer is closed and counted as refused", wires=("tls",))
async def handshake_that_takes_too_long(x: Crossing) -> None:
    async with x.serve(ssl_handshake_timeout=0.2) as server:
        client = await x.dial(server)
        x.begin(client)
        await x.hear_plainly(client)
        await comes_to(server, refused=1)


@happening("serve", "A connection without a valid one is refused", only=lambda way: way.proxied)
async def header_of_another_kind(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.dial(server)
        client.sock.send(b"GET / HTTP/1.1\r\n\r\n")
        await x.hear_plainly(client)
        await comes_to(server, refused=1)
        assert server.stats().proxy_invalid == 1
