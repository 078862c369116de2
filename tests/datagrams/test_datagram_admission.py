"""Datagrams: which are taken, which are left to the kernel, and that each is counted."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

import asyncserver
from asyncserver import Datagram
from tests.kit.checks import is_balanced_for_datagrams, is_idle
from tests.kit.datagrams import Place
from tests.kit.handlers import Hung, upper_datagram
from tests.kit.waiting import until


async def test_burst_of_1000_from_50_senders_is_kept_and_answered(udp: Place) -> None:
    """received + dropped is what was sent, and with the default buffers nothing is dropped."""
    async with udp.serve(upper_datagram) as server:
        clients = [udp.client(server) for _ in range(50)]
        for number in range(20):
            for client in clients:
                client.send(b"datagram %d" % number)
        answers = [{await client.receive() for _ in range(20)} for client in clients]
        now = server.stats()
        assert (now.datagrams_received, now.datagrams_dropped) == (1000, 0)
        assert now.datagrams_answered == now.datagrams_sent == 1000
        assert is_balanced_for_datagrams(server)
    assert answers == [{b"DATAGRAM %d" % number for number in range(20)}] * 50


async def test_what_the_kernel_drops_is_counted(udp: Place) -> None:
    """With a small buffer a burst is cut, and received + dropped is still what was sent."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    async with asyncserver.serve_datagrams(upper_datagram, sock=sock) as server:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client = udp.client(server)
        for _ in range(500):
            client.send(b"x" * 100)
        await until(lambda: server.stats().datagrams_received + server.stats().datagrams_dropped == 500)
        assert server.stats().datagrams_dropped > 0
        assert server.stats().datagrams_received > 0
        assert is_balanced_for_datagrams(server)
    now = server.stats()
    assert now.datagrams_received + now.datagrams_dropped == 500


async def test_max_pending_leaves_the_rest_to_the_kernel(place: Place) -> None:
    """At the limit reading pauses; nothing is lost, and never do more handlers run."""
    hung = Hung()
    async with place.serve(hung, max_pending=3) as server:
        client = place.client(server)
        for number in range(10):
            client.send(b"%d" % number)
        await until(lambda: hung.begun == 3)
        for _ in range(20):
            await asyncio.sleep(0)
        assert server.stats().datagrams_received == server.stats().active == 3
        assert not server._endpoints[0]._watching  # type: ignore[attr-defined] # or the loop would spin
        hung.release.set()
        assert {await client.receive() for _ in range(10)} == {b"%d" % number for number in range(10)}
        await until(lambda: is_idle(server))
        assert server.stats().datagrams_received == 10
        assert is_balanced_for_datagrams(server)
    assert hung.most == 3


async def test_pause_and_resume(place: Place) -> None:
    """While paused, datagrams wait in the kernel; then they are answered."""
    async with place.serve(upper_datagram) as server:
        client = place.client(server)
        assert await client.ask(b"a") == b"A"
        server.pause()
        client.send(b"b")
        for _ in range(20):
            await asyncio.sleep(0)
        assert server.stats().datagrams_received == 1
        server.resume()
        assert await client.receive() == b"B"


async def test_quick_handlers_run_within_one_wake_up(udp: Place) -> None:
    """Several datagrams are taken in one round of the loop, but never so many that others starve."""
    rounds: list[int] = []
    now = 0

    async def handler(datagram: Datagram) -> None:
        rounds.append(now)

    async with udp.serve(handler) as server:
        client = udp.client(server)
        for _ in range(100):
            client.send(b"x")
        while len(rounds) < 100:
            await asyncio.sleep(0)
            now += 1
    most = max(rounds.count(number) for number in set(rounds))
    assert 1 < most <= 64  # two batches of 32 may fall into what the test sees as one round


@pytest.mark.parametrize("family", ["ipv4", "unix"])
async def test_longer_datagram_is_cut_and_marked(family: str, tmp_path: Path) -> None:
    """A datagram above max_datagram_size reaches the handler as its beginning, marked as truncated."""
    place = Place(family, tmp_path)

    async def handler(datagram: Datagram) -> bytes:
        return b"%d %d %s" % (len(datagram.data), datagram.truncated, datagram.data[-1:])

    async with place.serve(handler, max_datagram_size=10) as server:
        client = place.client(server)
        assert await client.ask(b"x" * 9 + b"y") == b"10 0 y"
        assert await client.ask(b"x" * 9 + b"yz") == b"10 1 y"
        assert await client.ask(b"short") == b"5 0 t"
    place.close()


async def test_unix_datagram_may_be_longer_than_udps(unix: Place) -> None:
    """Above 65,535 bytes the default size cuts and says so; a larger one takes all."""

    async def handler(datagram: Datagram) -> bytes:
        return b"%d %d" % (len(datagram.data), datagram.truncated)

    async with unix.serve(handler) as server:
        assert await unix.client(server).ask(bytes(100_000)) == b"65535 1"
    async with unix.serve(handler, max_datagram_size=200_000) as server:
        assert await unix.client(server).ask(bytes(100_000)) == b"100000 0"


async def test_largest_udp_datagram_passes_both_ways(udp: Place) -> None:
    """65,507 bytes is what UDP over IPv4 takes."""
    async with udp.serve(upper_datagram) as server:
        assert await udp.client(server).ask(b"x" * 65_507) == b"X" * 65_507
