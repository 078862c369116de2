"""Datagrams without a header that counts: refused, counted, told, and in nobody's way."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver import Datagram
from asyncserver.datagrams.proxied import read_header
from asyncserver.exceptions import HeaderError
from asyncserver.proxy.proxy_protocol import HeaderParser
from tests.kit.datagrams import Place
from tests.kit.proxy_headers import BINARY, INET, LINE, LOCAL, SIGNATURE, binary, inet
from tests.kit.waiting import within

LONG = 60_000  # bytes of a datagram, almost as many as there can be


@pytest.fixture
def udp(tmp_path: Path) -> Iterator[Place]:
    """IPv4."""
    place = Place("ipv4", tmp_path)
    yield place
    place.close()


async def tell(datagram: Datagram) -> bytes:
    return repr(datagram.address).encode() + b" " + datagram.data


class Telling(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(repr(addr).encode() + b" " + data, addr)


KINDS = [tell, asyncserver.from_protocol(Telling)]

BAD = {
    "bare": b"question",
    "empty": b"",
    "half of the line": LINE[:-10],
    "no end of the line": b"PROXY TCP4 " + b"1" * LONG,
    "wrong line": b"PROXY UDP4 192.0.2.1 198.51.100.2 56324 443\r\nquestion",
    "half of the signature": SIGNATURE[:7],
    "signature": SIGNATURE,
    "half of the header": BINARY[:-1],
    "longer than the datagram": SIGNATURE + b"\x21\x12\xff\xff" + INET + bytes(LONG),
    "too short for addresses": binary(INET[:-1]) + b"question",
    "field beyond the header": binary(INET + b"\xe1\0\x09hello") + b"question",
    "unknown family": binary(bytes(LONG), family=0x42),
    "unknown command": binary(INET, command=0x22) + b"question",
    "wrong checksum": binary(INET + b"\3\0\4\0\0\0\0") + b"question",
}


@pytest.mark.parametrize("handler", KINDS)
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_bad_header(udp: Place, handler: Any, bad: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It is dropped and counted, and the next one of the same proxy is served."""
    async with udp.serve(handler, proxy_protocol=True) as server:
        proxy = udp.client(server)
        for _ in range(3):
            proxy.send(bad)
        assert await proxy.ask(inet("192.0.2.1", 1) + b"question") == b"('192.0.2.1', 1) question"
        await server.close()
    stats = server.stats()
    assert (stats.refused, stats.proxy_invalid, stats.datagrams_received, stats.datagrams_sent) == (3, 3, 1, 1)
    assert (stats.failed, stats.datagrams_dropped) == (0, 0)
    (warning,) = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert warning.levelname == "WARNING"
    assert "refused a datagram from ('127.0.0.1', " in warning.getMessage()
    assert len(warning.getMessage()) < 2000


@pytest.mark.parametrize("handler", KINDS)
async def test_spoofed_header_from_an_untrusted_address(
    udp: Place, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is no trusted proxy is refused whatever it says."""
    async with udp.serve(handler, proxy_protocol=True, trusted_proxies=["127.0.0.2"]) as server:
        proxy, stranger = udp.client(server), udp.client(server)
        proxy.sock.bind(("127.0.0.2", 0))
        for data in (LINE + b"question", LOCAL + b"question", b"question"):
            stranger.send(data)
        assert await proxy.ask(inet("192.0.2.1", 1) + b"question") == b"('192.0.2.1', 1) question"
        await server.close()
    stats = server.stats()
    assert (stats.refused, stats.proxy_untrusted, stats.datagrams_sent) == (3, 3, 1)
    assert "trusted_proxies" in caplog.text


async def test_bare_datagrams_are_never_the_senders(udp: Place) -> None:
    """Headers before and after tell nothing about a datagram that has none: nginx's next clients share its socket."""
    seen: list[Any] = []

    async def handler(datagram: Datagram) -> bytes:
        seen.append((datagram.address, datagram.data))
        return b"!"

    async with udp.serve(handler, proxy_protocol=True) as server:
        proxy = udp.client(server)
        await proxy.ask(LINE + b"first")
        proxy.send(b"second")
        await proxy.ask(LINE + b"third")
    assert [data for _, data in seen] == [b"first", b"third"]
    assert server.stats().proxy_invalid == 1


async def test_trusted_unix_peers(tmp_path: Path) -> None:
    """Named and nameless ones are "unix"."""
    place = Place("unix", tmp_path)
    async with place.serve(tell, proxy_protocol=True, trusted_proxies=["unix"]) as server:
        proxy, nameless = place.client(server), place.client(server, named=False)
        nameless.send(LINE + b"whoever")
        assert await proxy.ask(LINE + b"question") == b"('192.0.2.1', 56324) question"
        await server.close()
    place.close()
    assert (server.stats().refused, server.stats().datagrams_received) == (0, 2)


@pytest.mark.parametrize("handler", KINDS)
async def test_a_drain_reads_no_flood_of_what_it_refuses(
    udp: Place, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits is answered; what is refused meanwhile holds the drain up no longer than what is not."""
    caplog.set_level(logging.DEBUG, "asyncserver")
    async with udp.serve(handler, proxy_protocol=True) as server:
        proxy = udp.client(server)

        class Flood(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                proxy.send(b"another one")  # for each that is refused: so there is always one

        flood = Flood()
        logging.getLogger("asyncserver").addHandler(flood)
        try:
            proxy.send(b"bare")
            proxy.send(LINE + b"question")
            await within(server.close(60))
        finally:
            logging.getLogger("asyncserver").removeHandler(flood)
        assert await proxy.receive() == b"('192.0.2.1', 56324) question"
    assert server.stats().datagrams_sent == 1
    assert server.stats().refused > 1


async def test_what_is_read(udp: Place) -> None:
    """Metrics have the refused by their reason, and connections' numbers not."""
    async with udp.serve(tell, proxy_protocol=True) as server:
        proxy = udp.client(server)
        proxy.send(b"bare")
        await proxy.ask(LINE)
        reading = server.reading()
    assert (reading["proxy_invalid"], reading["proxy_untrusted"], reading["datagrams_received"]) == (1, 0, 1)
    assert "accepted" not in reading


# -- fuzzing


def damaged(draw: random.Random) -> bytes:
    """A good datagram, or one that somebody has damaged."""
    good = [LINE, BINARY, LOCAL, binary(INET, family=draw.randrange(64)), inet("192.0.2.1", draw.randrange(65536))]
    raw = bytearray(draw.choice(good) + b"question")
    for _ in range(draw.choice([0, 0, 1, 2])):
        at = draw.randrange(len(raw))
        action = draw.randrange(4)
        if action == 0:
            raw[at] ^= 1 << draw.randrange(8)
        elif action == 1:
            raw.insert(at, draw.randrange(256))
        elif action == 2:
            del raw[at]
        else:
            del raw[at:]
            raw += b"\r\n" if draw.randrange(2) else b""
            break
    return bytes(raw)


def read_as_connection(data: bytes) -> tuple[Any, int]:
    """What a connection takes, whose bytes come one by one."""
    parser, taken = HeaderParser(), 0
    while parser.header is None and taken < len(data):
        parser.feed(data[taken : taken + 1])
        taken += 1
    if parser.header is None:
        raise HeaderError(data)
    return parser.header, taken


def test_fuzzed_headers() -> None:
    """A datagram's header is read as a connection's is, or refused where that would go on waiting."""
    draw = random.Random(1)
    results: Counter[bool] = Counter()
    for _ in range(5_000):
        data = damaged(draw)
        try:
            expected: Any = read_as_connection(data)
        except HeaderError:
            expected = None
        try:
            found: Any = read_header(data)
        except HeaderError:
            found = None
        assert found == expected, data
        results[found is None] += 1
    assert min(results.values()) > 1_000


async def test_fuzzed_datagrams(udp: Place) -> None:
    """A server gets them: each is served or refused, none of them fails or is lost."""
    draw = random.Random(2)
    async with udp.serve(tell, proxy_protocol=True) as server:
        proxy = udp.client(server)
        sent = 0
        for _ in range(100):
            for _ in range(20):
                proxy.send(damaged(draw))
                sent += 1
            proxy.send(inet("192.0.2.200", 1) + b"last")
            while b"last" not in await proxy.receive():
                pass
            sent += 1
        await server.close()
    stats = server.stats()
    assert stats.datagrams_received + stats.proxy_invalid == sent
    assert (stats.failed, stats.datagrams_dropped, stats.refused) == (0, 0, stats.proxy_invalid)
    assert 500 < stats.refused < sent - 500
