"""Limits: as many connections as may be, a pause, and who waits in the kernel's queue meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Iterator

from asyncserver import DrainReport
from tests.crossings.happenings import happening
from tests.crossings.ways import CLEAN, SOON, Crossing, comes_to, tally
from tests.kit.clients import Client
from tests.kit.waiting import within


@happening("Server.pause", "Take nothing new; the kernel queues connections")
async def pause(x: Crossing) -> None:
    async with x.serve() as server:
        first = await x.connect(server)
        server.pause()
        client = await x.dial(server)
        x.begin(client, b"bye b\n")
        assert await first.ask(b"say a\n") == b"SAY A\n"
        assert tally(server) == {"active": 1}
        server.resume()
        await x.go_on(client, b"bye b\n")
        assert await x.hear_out(client) == (b"BYE B\n", CLEAN)
        first.close()
        await comes_to(server, completed=2)


@happening("serve", "when so many are open, accepting pauses and the kernel's queue holds the rest")
async def full(x: Crossing) -> None:
    async with x.serve(max_connections=1) as server:
        first = await x.connect(server)
        client = await x.dial(server)
        x.begin(client, b"bye b\n")
        assert await first.ask(b"say a\n") == b"SAY A\n"
        assert tally(server) == {"active": 1}
        await first.send(b"bye a\n")
        assert await x.hear_out(first) == (b"BYE A\n", CLEAN)
        await x.go_on(client, b"bye b\n")
        assert await x.hear_out(client) == (b"BYE B\n", CLEAN)
        await comes_to(server, completed=2)


@happening("Server.close", "Connections and datagrams that the kernel holds already are still served")
async def drain_when_full(x: Crossing) -> None:
    async with x.serve(max_connections=1) as server:
        first = await x.connect(server)
        await first.send(b"hold a\nbye a\n")
        await x.waiting()
        client = await x.dial(server)
        x.begin(client, b"bye b\n")
        closing = await x.drain(server)
        x.conversation.gate.open()
        assert await x.hear_out(first) == (b"HOLD A\nBYE A\n", CLEAN)
        await x.go_on(client, b"bye b\n")
        report, heard = await x.ends(closing, client)
        assert (report, heard) == (DrainReport(completed=2), [(b"BYE B\n", CLEAN)])
        assert tally(server) == {"completed": 2}


@happening("serve", "closed at once and counted as refused")
async def too_many_from_one_host(x: Crossing) -> None:
    async with x.serve(max_connections_per_host=1) as server:
        first = await x.connect(server)
        assert await first.ask(b"say a\n") == b"SAY A\n"
        client = await x.dial(server)
        x.begin(client)
        await x.hear_plainly(client)
        await comes_to(server, active=1, refused=1)
        await first.send(b"bye a\n")
        assert await x.hear_out(first) == (b"BYE A\n", CLEAN)
        await comes_to(server, completed=1, refused=1)
        another = await x.connect(server)
        assert await another.ask(b"say c\n") == b"SAY C\n"


@happening("README.md", "Running out of descriptors hurts nobody for long")
async def drain_without_descriptors(x: Crossing) -> None:
    """There are two for five clients."""
    async with x.serve() as server:
        server.pause()
        clients = [await x.dial(server) for _ in range(5)]
        with descriptors_left(2):
            for client in clients:
                x.begin(client, b"bye\n")
            closing = await x.drain(server)
            heard = await asyncio.gather(*(_answer(x, client) for client in clients))
            assert await within(closing, SOON) == DrainReport(completed=5)
        assert heard == [(b"BYE\n", CLEAN)] * 5
        assert tally(server) == {"completed": 5}


async def _answer(x: Crossing, client: Client) -> tuple[bytes, str]:
    await x.go_on(client, b"bye\n")
    return await x.hear_out(client)


@contextlib.contextmanager
def descriptors_left(number: int) -> Iterator[None]:
    """Let this process have so many more descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + number, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(number):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)
