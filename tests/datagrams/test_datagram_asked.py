"""Answers that come late come from the address that was asked, whoever sends them and from wherever in the program."""

from __future__ import annotations

import asyncio
import functools
import socket
import socketserver
from typing import TYPE_CHECKING, Any

import pytest

import asyncserver
import compat
from asyncserver.datagrams.asked import AskedAddresses
from asyncserver.datagrams.datagram import Datagram
from tests.kit.datagrams import Place
from tests.kit.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

ASKED = ["127.0.0.2", "127.0.0.9", "127.0.0.1", "127.0.0.2"]


class Answering(asyncio.DatagramProtocol):
    """Answers at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.answer(data, addr)

    def answer(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data.upper(), addr)


class InTask(Answering):
    """Answers from a task that waits first."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.task = asyncio.ensure_future(self.later(data, addr))

    async def later(self, data: bytes, addr: Any) -> None:
        await asyncio.sleep(0.01)
        self.answer(data, addr)


class OnTimer(Answering):
    """Answers from a timer, to an address that it has put together anew."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        asyncio.get_running_loop().call_later(0.01, self.answer, data, (addr[0], addr[1]))


class FromQueue(Answering):
    """Answers from a task that was there before the first datagram."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.queue: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        self.task = asyncio.ensure_future(self.work())

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.queue.put_nowait((data, addr))

    async def work(self) -> None:
        while True:
            self.answer(*await self.queue.get())

    def connection_lost(self, exc: Exception | None) -> None:
        self.task.cancel()


class WhenThereIsRoom(Answering):
    """Answers when the transport can send no more."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        endpoint = self.transport._endpoint
        try_send, endpoint.try_send = endpoint.try_send, lambda *_: False
        self.answer(data, addr)
        assert self.transport.get_write_buffer_size() == len(data)
        endpoint.try_send = try_send
        endpoint._on_writable()


class Legacy(socketserver.DatagramRequestHandler):
    """As written for the standard library."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.read().upper())


class LegacyWithFlags(socketserver.BaseRequestHandler):
    """With sendto()'s other signature."""

    def handle(self) -> None:
        self.request[1].sendto(self.request[0].upper(), 0, self.client_address)


async def _later(datagram: Datagram) -> bytes:
    await asyncio.sleep(0.01)
    return datagram.data.upper()


PROTOCOLS = [Answering, InTask, OnTimer, FromQueue, WhenThereIsRoom]
HANDLERS: dict[str, Callable[[], Any]] = {
    "handler": lambda: _later,
    **{one.__name__: functools.partial(asyncserver.from_protocol, one) for one in PROTOCOLS},
    "Legacy": lambda: compat.hosted(Legacy),
    "LegacyWithFlags": lambda: compat.hosted(LegacyWithFlags),
}


@pytest.mark.parametrize("name", HANDLERS)
async def test_late_answer_comes_from_the_address_that_was_asked(udp: Place, name: str) -> None:
    """One peer asks several of our addresses; on loopback the route alone would always have 127.0.0.1."""
    async with asyncserver.serve_datagrams(HANDLERS[name](), "0.0.0.0", 0) as server:
        client = udp.client(server)
        for host in ASKED:
            client.server = (host, server.addresses[0][1])
            client.send(b"question")
            answer, source = await client.receive_from()
            assert (answer, source) == (b"QUESTION", client.server)


@pytest.mark.parametrize("protocol", [InTask, OnTimer])
async def test_answers_that_cross_belong_to_their_questions(udp: Place, protocol: type[Answering]) -> None:
    """Several questions of one peer, to several addresses, before the first answer."""
    async with asyncserver.serve_datagrams(asyncserver.from_protocol(protocol), "0.0.0.0", 0) as server:
        client = udp.client(server)
        port = server.addresses[0][1]
        for host in ASKED:
            client.server = (host, port)
            client.send(host.encode())
        answers = [await client.receive_from() for _ in ASKED]
    assert sorted(answers) == sorted((host.encode(), (host, port)) for host in ASKED)


async def test_late_answer_by_ipv6_comes_from_the_address_that_was_asked() -> None:
    """The peer's address may be shortened to host and port."""
    async with asyncserver.serve_datagrams(asyncserver.from_protocol(OnTimer), "::", 0) as server:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(("::1", server.addresses[0][1]))
            client.send(b"question")
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.get_running_loop().sock_recv(client, 100) == b"QUESTION"


async def test_answer_to_somebody_else_is_not_sent_as_an_answer_to_this(udp: Place) -> None:
    """A relay: what one peer asked on one address goes to another, who asked on another."""
    members: list[Any] = []

    class Relay(Answering):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            members.append(addr)
            self.answer(data, members[0])

    async with asyncserver.serve_datagrams(asyncserver.from_protocol(Relay), "0.0.0.0", 0) as server:
        port = server.addresses[0][1]
        first, second = udp.client(server), udp.client(server)
        first.server, second.server = ("127.0.0.2", port), ("127.0.0.9", port)
        first.send(b"one")
        assert await first.receive_from() == (b"ONE", first.server)
        second.send(b"two")
        assert await first.receive_from() == (b"TWO", first.server)


def test_no_more_peers_are_remembered_than_there_is_room_for() -> None:
    """The oldest give way, and are answered as the route has it."""
    asked = AskedAddresses()
    endpoint: Any = None
    control = [(0, 8, bytes(12))]
    for port in (1, *range(2, 1025), 1, 1025):
        asked.leave(asked.enter(Datagram(endpoint, b"", ("127.0.0.1", port), control, False)))
    assert [asked.find(("127.0.0.1", port)) for port in (1, 2, 3, 1025)] == [control, None, control, control]
