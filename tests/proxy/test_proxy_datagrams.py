"""Datagrams behind a proxy: whose they are, and where their answers go."""

from __future__ import annotations

import asyncio
import contextlib
import socketserver
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncserver
import compat
from asyncserver import Datagram
from tests.kit.datagrams import FAMILIES, DatagramClient, Place
from tests.kit.proxy_headers import BINARY, CLIENT, INET, LINE, LOCAL, binary, inet
from tests.kit.waiting import until

V6 = struct.pack("!16s16sHH", bytes(15) + b"\1", bytes(15) + b"\2", 1, 53)
PATHS = b"/run/client".ljust(108, b"\0") + bytes(108)


@pytest.fixture(params=FAMILIES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each family of the proxy's socket."""
    with contextlib.closing(Place(request.param, tmp_path)) as place:
        yield place


@pytest.fixture
def udp(tmp_path: Path) -> Iterator[Place]:
    """IPv4."""
    with contextlib.closing(Place("ipv4", tmp_path)) as place:
        yield place


def own(proxy: DatagramClient) -> Any:
    """Where the proxy sends from."""
    return "127.0.0.1", proxy.sock.getsockname()[1]


async def tell(datagram: Datagram) -> bytes:
    return repr(datagram.address).encode() + b" " + datagram.data


async def tell_late(datagram: Datagram) -> None:
    await asyncio.sleep(0)
    await datagram.reply(await tell(datagram))


async def tell_by_a_task(datagram: Datagram) -> None:
    async def answer() -> None:
        await datagram.reply(await tell(datagram))

    await asyncio.create_task(answer())


class Telling(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(repr(addr).encode() + b" " + data, addr)


class Queueing(Telling):
    """Answers from a task that has nothing to do with the datagram."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.asked: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        self.task = asyncio.get_running_loop().create_task(self.answer())

    async def answer(self) -> None:
        while True:
            super().datagram_received(*await self.asked.get())

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.asked.put_nowait((data, addr))

    def connection_lost(self, exc: Exception | None) -> None:
        self.task.cancel()


class Hosted(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, sock = self.request
        sock.sendto(repr(self.client_address).encode() + b" " + data, self.client_address)


HANDLERS = [
    pytest.param(tell, id="returns"),
    pytest.param(tell_late, id="waits"),
    pytest.param(tell_by_a_task, id="task"),
    pytest.param(asyncserver.from_protocol(Telling), id="protocol"),
    pytest.param(asyncserver.from_protocol(Queueing), id="protocol-queue"),
    pytest.param(compat.hosted(Hosted), id="hosted"),
]


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize(
    ("header", "client"),
    [
        (LINE, CLIENT),
        (BINARY, CLIENT),
        (binary(INET), CLIENT),
        (binary(INET, family=0x11), CLIENT),
        (binary(V6, family=0x22), ("::1", 1, 0, 0)),
        (binary(PATHS, family=0x32), "/run/client"),
    ],
)
async def test_the_client_is_whom_the_header_names(place: Place, handler: Any, header: bytes, client: Any) -> None:
    """The handler gets address and question, and the proxy gets the answer, without a header."""
    async with place.serve(handler, proxy_protocol=True) as server:
        proxy = place.client(server)
        assert await proxy.ask(header + b"question") == repr(client).encode() + b" question"
        await server.close()
    stats = server.stats()
    assert (stats.datagrams_received, stats.datagrams_sent, stats.refused) == (1, 1, 0)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_clients_of_two_proxies(udp: Place, handler: Any) -> None:
    """Several clients on each proxy's socket: each gets its own answer, by its own proxy."""
    async with udp.serve(handler, proxy_protocol=True) as server:
        proxies = [udp.client(server) for _ in range(2)]
        for number in range(20):
            proxies[number % 2].send(inet(f"192.0.2.{number}", 1000) + b"%d" % number)
        for first, proxy in enumerate(proxies):
            got = {await proxy.receive() for _ in range(10)}
            assert got == {b"('192.0.2.%d', 1000) %d" % (number, number) for number in range(first, 20, 2)}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("header", [LOCAL, binary(b"", family=0), b"PROXY UNKNOWN\r\n"])
async def test_a_proxy_that_speaks_for_itself(udp: Place, handler: Any, header: bytes) -> None:
    """A health check is answered, under the proxy's own address."""
    async with udp.serve(handler, proxy_protocol=True) as server:
        proxy = udp.client(server)
        answer = await proxy.ask(header + b"alive?")
        assert answer == repr(own(proxy)).encode() + b" alive?"
    assert server.stats().refused == 0


async def test_what_a_handler_sees(udp: Place) -> None:
    """The header with its TLVs, the proxy, our address; the repr and the task's records are the client's."""
    seen: list[Any] = []

    async def handler(datagram: Datagram) -> bytes:
        assert datagram.proxy_header is not None
        seen.append((datagram.proxy_header.destination, datagram.proxy_header.tlv(0xE1), datagram.truncated))
        seen.append((datagram.peer_address, datagram.sender, datagram.local_address, repr(datagram)))
        return b"!"

    async with udp.serve(handler, proxy_protocol=True) as server:
        proxy = udp.client(server)
        await proxy.ask(BINARY + b"question")
        assert seen == [
            (("198.51.100.2", 443), b"hello", False),
            (CLIENT, own(proxy), server.addresses[0], f"<Datagram from {CLIENT!r}, 8 bytes>"),
        ]


async def test_without_a_proxy_there_is_no_header(udp: Place) -> None:
    """Not asked for, the header is the handler's bytes, and the property says None."""
    seen: list[Any] = []

    async def handler(datagram: Datagram) -> bytes:
        seen.append((datagram.proxy_header, datagram.sender == datagram.address, datagram.data))
        return b"!"

    async with udp.serve(handler) as server:
        await udp.client(server).ask(LINE)
    assert seen == [(None, True, LINE)]


async def test_kept_datagram_is_answered_to_its_proxy(udp: Place) -> None:
    """However late, and whoever has asked since."""
    kept: list[Datagram] = []

    async def keep(datagram: Datagram) -> None:
        kept.append(datagram)

    async with udp.serve(keep, proxy_protocol=True) as server:
        proxies = [udp.client(server) for _ in range(2)]
        for proxy in proxies:
            proxy.send(binary(INET) + b"question")
        await until(lambda: len(kept) == 2)
        for datagram in reversed(kept):
            await datagram.reply(repr(datagram.sender).encode())
        for proxy in proxies:
            assert await proxy.receive() == repr(own(proxy)).encode()


@pytest.mark.parametrize("handler", HANDLERS)
async def test_answers_come_from_the_address_that_the_proxy_has_asked(handler: Any) -> None:
    """On every interface, too: a proxy takes answers from no other address."""
    async with asyncserver.serve_datagrams(handler, "0.0.0.0", 0, proxy_protocol=True) as server:
        with contextlib.closing(Place("ipv4", Path())) as place:
            proxy = place.client(server)
            proxy.server = "127.0.0.3", server.addresses[0][1]
            proxy.send(binary(INET) + b"question")
            answer, source = await proxy.receive_from()
            assert (answer, source) == (b"('192.0.2.1', 56324) question", proxy.server)


async def test_our_address_is_the_one_that_the_proxy_has_asked(udp: Place) -> None:
    """As without a proxy."""

    async def handler(datagram: Datagram) -> bytes:
        return repr(datagram.local_address).encode()

    async with asyncserver.serve_datagrams(handler, "0.0.0.0", 0, proxy_protocol=True) as server:
        proxy = udp.client(server)
        proxy.server = "127.0.0.3", server.addresses[0][1]
        assert await proxy.ask(binary(INET)) == repr(proxy.server).encode()


async def test_the_header_takes_no_room(udp: Place) -> None:
    """`max_datagram_size` is about what the client has sent, however long the header is."""

    async def handler(datagram: Datagram) -> bytes:
        return b"%d %d" % (len(datagram.data), datagram.truncated)

    long = binary(INET + b"\4" + struct.pack("!H", 60_000) + bytes(60_000))
    async with udp.serve(handler, proxy_protocol=True, max_datagram_size=10) as server:
        proxy = udp.client(server)
        for header in (LINE, long):
            assert await proxy.ask(header + bytes(10)) == b"10 0"
            assert await proxy.ask(header + bytes(11)) == b"10 1"
            assert await proxy.ask(header) == b"0 0"


async def test_a_protocol_does_not_answer_who_is_forgotten(udp: Place) -> None:
    """A client that no proxy has spoken of is behind none that is known: the protocol is told."""
    told: asyncio.Queue[Any] = asyncio.Queue()

    class Elsewhere(Telling):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, ("127.0.0.9", 9))  # somebody would get it
            super().datagram_received(data, addr)

        def error_received(self, exc: Exception) -> None:
            told.put_nowait(exc)

    async with udp.serve(asyncserver.from_protocol(Elsewhere), proxy_protocol=True) as server:
        answer = await udp.client(server).ask(binary(INET) + b"question")
        assert answer == b"('192.0.2.1', 56324) question"
        assert isinstance(await told.get(), OSError)
    assert server.stats().datagrams_sent == 1
