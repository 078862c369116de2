"""Datagrams: the same table for servers of datagrams."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import socketserver
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncserver
import compat
from asyncserver import Datagram, DrainReport, Server
from tests.crossings.conversation import Gate
from tests.crossings.happenings import Cell, Happening
from tests.crossings.ways import SOON
from tests.kit.checks import is_balanced_for_datagrams
from tests.kit.datagrams import FAMILIES, DatagramClient, Place
from tests.kit.proxy_headers import LINE
from tests.kit.waiting import PATIENCE, until, within

STYLES = ("coroutine", "protocol", "hosted")
#: Those whose handlers may wait: a DatagramProtocol has none that could.
WAITING = ("coroutine", "hosted")


@dataclass(frozen=True)
class DatagramWay:
    """One way to serve datagrams."""

    style: str
    wire: str
    proxied: bool

    def __str__(self) -> str:
        return f"{self.style}-{self.wire}{'-proxied' if self.proxied else ''}"


DATAGRAMS: list[Happening] = []


def happening(
    source: str, promise: str, *, styles: tuple[str, ...] = STYLES, families: tuple[str, ...] = tuple(FAMILIES)
) -> Callable[[Cell], Cell]:
    """Put a function into the table, see `happenings`; which are behind a proxy alternates, as in `ways`."""

    def register(run: Cell) -> Cell:
        number = len(DATAGRAMS)
        pairs = itertools.product(enumerate(styles), enumerate(families))
        on = tuple(DatagramWay(style, wire, (number + row + column) % 2 == 1) for (row, style), (column, wire) in pairs)
        DATAGRAMS.append(Happening(run.__name__, source, promise, run, on))
        return run

    return register


@dataclass
class DatagramCrossing:
    """A way, and what a cell needs to try something on it: as Crossing."""

    way: DatagramWay
    folder: Path
    gate: Gate = field(default_factory=Gate)
    errors: list[BaseException] = field(default_factory=list)
    server: Server | None = None
    sent: int = 0

    @contextlib.asynccontextmanager
    async def serve(self, **options: Any) -> AsyncIterator[tuple[Server, DatagramClient]]:
        """Serve; what the client has sent has to be accounted for in the end."""
        place = Place(self.way.wire, self.folder)
        options = {"drain_timeout": PATIENCE, "proxy_protocol": self.way.proxied, **options}
        options["on_error"] = lambda exc, _: self.errors.append(exc)
        async with place.serve(self.handler(), **options) as self.server:
            client = place.client(self.server)
            client.header = LINE if self.way.proxied else b""
            try:
                yield self.server, client
            finally:
                self.gate.open()
                await self.server.close(0)
                place.close()
        stats = self.server.stats()
        assert stats.datagrams_received + stats.datagrams_dropped == self.sent
        assert is_balanced_for_datagrams(self.server)

    def handler(self) -> Any:
        make: dict[str, Callable[[], Any]] = {
            "coroutine": lambda: self.serve_datagram,
            "protocol": lambda: asyncserver.from_protocol(lambda: Words(self)),
            "hosted": lambda: compat.hosted(type("Handler", (HostedWords,), {"crossing": self})),
        }
        return make[self.way.style]()

    async def serve_datagram(self, datagram: Datagram) -> bytes:
        assert self.server is not None
        word = datagram.data.split()[0]
        if word == b"hold":
            await self.gate.passed()
        elif word == b"raise":
            raise ValueError("the handler's own mistake")
        elif word == b"close":
            await self.server.close()
        return datagram.data.upper()

    def ask(self, client: DatagramClient, *questions: bytes) -> None:
        for question in questions:
            client.send(question)
            self.sent += 1

    async def waiting(self) -> None:
        await until(lambda: self.gate.waiting == 1)


class Words(asyncio.DatagramProtocol):
    """The same as a protocol."""

    def __init__(self, crossing: DatagramCrossing) -> None:
        self.crossing = crossing

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        word = data.split()[0]
        if word == b"raise":
            raise ValueError("the protocol's own mistake")
        self.transport.sendto(data.upper(), addr)
        if word == b"close":
            self.transport.close()


class HostedWords(socketserver.BaseRequestHandler):
    """The same in a thread."""

    crossing: DatagramCrossing

    def handle(self) -> None:
        data, sock = self.request
        word = data.split()[0]
        if word == b"hold":
            self.crossing.gate.passed_by_thread()
        elif word == b"raise":
            raise ValueError("the handler's own mistake")
        elif word == b"close":
            self.server.shutdown()
        sock.sendto(data.upper(), self.client_address)


async def answers(client: DatagramClient, number: int) -> list[bytes]:
    async with asyncio.timeout(SOON):
        return sorted([await client.receive() for _ in range(number)])


@happening("Server.close", "Stop, politely: no new work, then wait for the handlers, then insist.")
async def drain_of_none(x: DatagramCrossing) -> None:
    async with x.serve() as (server, client):
        x.ask(client, b"say a")
        assert await client.receive() == b"SAY A"
        await until(lambda: server.stats().completed == 1)  # a thread's answer is faster
        assert await within(server.close(), SOON) == DrainReport()


@happening("Server.close", "Connections and datagrams that the kernel holds already are still served")
async def drain_with_questions_in_the_kernel(x: DatagramCrossing) -> None:
    async with x.serve() as (server, client):
        x.ask(client, b"say a", b"say b", b"say c")
        assert await within(server.close(), SOON) == DrainReport(completed=3)
        assert await answers(client, 3) == [b"SAY A", b"SAY B", b"SAY C"]
        assert server.stats().datagrams_answered == 3


@happening("Server.close", "Connections and datagrams that the kernel holds already are still served")
async def drain_when_paused(x: DatagramCrossing) -> None:
    async with x.serve() as (server, client):
        server.pause()
        x.ask(client, b"say a", b"say b")
        for _ in range(20):
            await asyncio.sleep(0)
        assert server.stats().datagrams_received == 0
        assert await within(server.close(), SOON) == DrainReport(completed=2)
        assert await answers(client, 2) == [b"SAY A", b"SAY B"]


@happening("Server.pause", "the kernel queues connections and datagrams, until its limits")
async def pause(x: DatagramCrossing) -> None:
    async with x.serve() as (server, client):
        server.pause()
        x.ask(client, b"say a")
        for _ in range(20):
            await asyncio.sleep(0)
        assert server.stats().datagrams_received == 0
        server.resume()
        assert await client.receive() == b"SAY A"


@happening("docs/reliability.md", "What had reached this host is answered", styles=WAITING)
async def drain_before_the_answer(x: DatagramCrossing) -> None:
    async with x.serve() as (server, client):
        x.ask(client, b"hold a")
        await x.waiting()
        closing = asyncio.create_task(server.close())
        await until(lambda: not server.sockets)
        assert not closing.done()
        x.gate.open()
        assert await within(closing, SOON) == DrainReport(completed=1)
        assert await client.receive() == b"HOLD A"


@happening(
    "serve_datagrams",
    "when so many handlers run, reading pauses and the kernel's buffer takes the burst",
    styles=WAITING,
)
async def full(x: DatagramCrossing) -> None:
    async with x.serve(max_pending=1) as (server, client):
        x.ask(client, b"hold a")
        await x.waiting()
        x.ask(client, b"say b", b"say c")
        for _ in range(20):
            await asyncio.sleep(0)
        assert server.stats().datagrams_received == 1
        x.gate.open()
        assert await answers(client, 3) == [b"HOLD A", b"SAY B", b"SAY C"]


@happening("docs/reliability.md", "What had reached this host is answered", styles=WAITING)
async def drain_when_full(x: DatagramCrossing) -> None:
    async with x.serve(max_pending=1) as (server, client):
        x.ask(client, b"hold a")
        await x.waiting()
        x.ask(client, b"say b", b"say c")
        closing = asyncio.create_task(server.close())
        await until(lambda: not server.sockets)
        x.gate.open()
        assert await within(closing, SOON) == DrainReport(completed=3)
        assert await answers(client, 3) == [b"HOLD A", b"SAY B", b"SAY C"]


@happening("Server.close", "Handlers that still run after `drain_timeout` seconds are cancelled", styles=WAITING)
async def drain_to_the_deadline(x: DatagramCrossing) -> None:
    """What waits behind them in the kernel is dropped, and counted."""
    async with x.serve(max_pending=1) as (server, client):
        x.ask(client, b"hold a")
        await x.waiting()
        x.ask(client, b"say b")
        assert await within(server.close(0), SOON) == DrainReport(cancelled=1)
        await within(server.wait_closed(), SOON)
        assert server.stats().datagrams_dropped == 1


@happening("Server.close", "If the caller is cancelled while it waits, the deadline is now", styles=WAITING)
async def drain_that_is_cancelled(x: DatagramCrossing) -> None:
    async with x.serve() as (server, client):
        x.ask(client, b"hold a")
        await x.waiting()
        closing = asyncio.create_task(server.close())
        await until(lambda: not server.sockets)
        closing.cancel()
        await asyncio.wait([closing], timeout=SOON)
        assert closing.cancelled()
        assert server.stats().cancelled == 1


@happening("README.md", "What a handler raises closes its own connection and no other")
async def handler_fails(x: DatagramCrossing) -> None:
    async with x.serve() as (server, client):
        x.ask(client, b"raise", b"say b")
        assert await client.receive() == b"SAY B"
        await until(lambda: server.stats().failed == 1)
        assert [type(exc) for exc in x.errors] == [ValueError]


@happening("Server.close", "Called from inside a handler it does not wait for that handler")
async def close_in_a_handler(x: DatagramCrossing) -> None:
    async with x.serve() as (server, client):
        x.ask(client, b"close")
        assert await client.receive() == b"CLOSE"
        await within(server.wait_closed(), SOON)
        assert server.stats().completed == 1


@happening("Server.close", "Connections and datagrams that the kernel holds already are still served", styles=WAITING)
async def close_in_a_handler_when_full(x: DatagramCrossing) -> None:
    async with x.serve(max_pending=1) as (server, client):
        x.ask(client, b"close", b"say b")
        assert await answers(client, 2) == [b"CLOSE", b"SAY B"]
        await within(server.wait_closed(), SOON)
        assert server.stats().completed == 2


@happening("docs/reliability.md", "What had reached this host is answered", families=("unix",))
async def drain_with_a_slow_reader(x: DatagramCrossing) -> None:
    """There is no room for all answers in the reader's queue until it reads."""
    questions = [b"say %03d" % number for number in range(40)]
    async with x.serve() as (server, client):
        limit = len(questions)
        for question in questions:
            await until(functools.partial(_sent, client, question), SOON)
        x.sent = limit
        await until(lambda: server.stats().datagrams_received == limit, SOON)
        closing = asyncio.create_task(server.close())
        await until(lambda: not server.sockets)
        assert await answers(client, limit) == [question.upper() for question in questions]
        await within(closing, SOON)
        assert server.stats().datagrams_answered == limit


def _sent(client: DatagramClient, data: bytes) -> bool:
    try:
        client.send(data)
    except BlockingIOError:  # the server's queue is full, too
        return False
    return True
