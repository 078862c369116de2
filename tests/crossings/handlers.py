"""Handlers: what they do to themselves, and to their server."""

from __future__ import annotations

import asyncio

from asyncserver import DrainReport
from tests.crossings.happenings import happening
from tests.crossings.ways import CLEAN, SOON, Crossing, comes_to, tally
from tests.kit.waiting import within


@happening("README.md", "What a handler raises closes its own connection and no other")
async def handler_fails(x: Crossing) -> None:
    async with x.serve() as server:
        client, other = await x.connect(server), await x.connect(server)
        await client.send(b"say a\nraise\n")
        assert await x.hear_out(client) == (b"SAY A\n", CLEAN)
        await comes_to(server, active=1, failed=1)
        assert [type(exc) for exc in x.errors] == [ValueError]
        assert await other.ask(b"say b\n") == b"SAY B\n"
        other.close()


@happening("Server.close", "Called from inside a handler it does not wait for that handler")
async def close_in_a_handler(x: Crossing) -> None:
    async with x.serve() as server:
        client = await x.connect(server)
        await client.send(b"close\n")
        assert await x.hear_out(client) == (b"CLOSE\n", CLEAN)
        await within(server.wait_closed(), SOON)
        assert tally(server) == {"completed": 1}
        # Those that do not wait have ended by themselves before anybody asks.
        assert x.conversation.reports in ([], [DrainReport()])


@happening("Server.close", "Connections and datagrams that the kernel holds already are still served")
async def close_in_a_handler_when_full(x: Crossing) -> None:
    async with x.serve(max_connections=1) as server:
        first = await x.connect(server)
        client = await x.dial(server)
        x.begin(client, b"bye b\n")
        await first.send(b"close\n")
        hearing = asyncio.create_task(x.hear_out(first))  # some handlers go on only when all others have ended
        await within(x.go_on(client, b"bye b\n"), SOON)
        assert await within(x.hear_out(client), SOON) == (b"BYE B\n", CLEAN)
        assert await hearing == (b"CLOSE\n", CLEAN)
        await within(server.wait_closed(), SOON)
        assert tally(server) == {"completed": 2}
