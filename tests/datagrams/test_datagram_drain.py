"""Datagrams when their server closes: what lay in the kernel is answered, and a flood cannot hold it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

import asyncserver
from asyncserver import Datagram
from tests.kit.checks import is_balanced_for_datagrams
from tests.kit.datagrams import Place
from tests.kit.handlers import Hung, upper_datagram
from tests.kit.waiting import PATIENCE, until


async def test_drain_answers_what_lay_in_the_kernel(place: Place) -> None:
    """What had reached the host when close() was called is answered."""
    count = 8 if place.family == "unix" else 200  # a Unix socket's queue holds few
    async with place.serve(upper_datagram) as server:
        client = place.client(server)
        for number in range(count):
            client.send(b"d%d" % number)
        async with asyncio.timeout(PATIENCE / 2):
            report = await server.close(PATIENCE)
        assert report == asyncserver.DrainReport(completed=count)
        assert {await client.receive() for _ in range(count)} == {b"D%d" % number for number in range(count)}
        assert server.stats().datagrams_answered == count
        assert is_balanced_for_datagrams(server)


async def test_drain_goes_on_reading_when_handlers_make_room(place: Place) -> None:
    """At max_pending the rest of the kernel's buffer is read as handlers end."""
    hung = Hung()
    async with place.serve(hung, max_pending=2) as server:
        client = place.client(server)
        for number in range(8):
            client.send(b"d%d" % number)
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: hung.begun == 2)
        hung.release.set()
        async with asyncio.timeout(PATIENCE / 2):
            assert await closing == asyncserver.DrainReport(completed=8)
        assert {await client.receive() for _ in range(8)} == {b"D%d" % number for number in range(8)}
    assert hung.most == 2


async def test_deadline_cancels_handlers_and_starts_no_others(udp: Place) -> None:
    """What had no turn by then is counted as dropped; when the server has closed nothing runs."""
    hung = Hung()
    async with udp.serve(hung, max_pending=2) as server:
        client = udp.client(server)
        for _ in range(10):
            client.send(b"x")
        await until(lambda: hung.begun == 2)
        assert await server.close(0.1) == asyncserver.DrainReport(cancelled=2)
        await server.wait_closed()
        now = server.stats()
        assert (now.datagrams_received, now.datagrams_dropped, now.cancelled, now.active) == (2, 8, 2, 0)
        assert hung.begun == 2
        assert hung.now == 0
        assert is_balanced_for_datagrams(server)


async def test_flood_cannot_hold_the_drain(udp: Place) -> None:
    """A sender that goes on gets answers to what came before close(), and the server closes."""
    async with udp.serve(upper_datagram) as server:
        client = udp.client(server)
        stop = asyncio.Event()

        async def flood() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    for _ in range(20):
                        client.send(b"x")
                await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        await until(lambda: server.stats().datagrams_received > 100)
        async with asyncio.timeout(PATIENCE / 2):
            await server.close(PATIENCE)
        stop.set()
        await flooding
        assert is_balanced_for_datagrams(server)


async def test_close_without_traffic_is_immediate(place: Place) -> None:
    """Nothing owed, nothing waited for."""
    async with place.serve(upper_datagram) as server:
        async with asyncio.timeout(PATIENCE / 2):
            assert await server.close(PATIENCE) == asyncserver.DrainReport()
            await server.wait_closed()
    assert repr(server).startswith("<DatagramServer closed on")


async def test_close_from_inside_a_handler(place: Place) -> None:
    """It does not wait for that handler, whose answer is still sent."""

    async def closer(datagram: Datagram) -> bytes:
        await server.close()
        return b"closed"

    async with place.serve(closer) as server:
        client = place.client(server)
        assert await client.ask(b"close") == b"closed"
        async with asyncio.timeout(PATIENCE):
            await server.wait_closed()
        assert server.stats().datagrams_answered == 1


@pytest.mark.parametrize("method", ["pause", "resume", "reload_tls"])
async def test_server_used_after_close_says_so(udp: Place, method: str) -> None:
    """The error names the call and what to do."""
    async with udp.serve(upper_datagram) as server:
        pass
    with pytest.raises(RuntimeError, match=rf"{method}\(\): <DatagramServer closed .*start another"):
        getattr(server, method)()
