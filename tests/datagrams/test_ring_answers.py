"""Datagrams that are received and answered many at a time: their addresses, answers of all kinds, and all handlers.

With the extension and without it, where each is received and answered alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver import Datagram
from tests.kit.batches import MIDDLE, NUMBERS, send_numbers
from tests.kit.checks import errors_in
from tests.kit.datagrams import DatagramClient, Place
from tests.kit.handlers import Hung, upper_datagram
from tests.kit.waiting import PATIENCE, until, within


@pytest.fixture(params=["ipv4", "ipv6"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with contextlib.closing(Place(request.param, tmp_path)) as place:
        yield place


# -- answers


async def test_answers_of_all_kinds_keep_their_order(place: Place) -> None:
    """Those that can be sent together, and those that cannot: bytearray, too large, none, another's address."""
    answers: dict[bytes, Any] = {b"1": bytearray(b"1"), b"4": None, b"6": bytes(70_000), b"7": memoryview(b"7")}

    async def handler(datagram: Datagram) -> Any:
        if datagram.data == b"8":
            datagram.address = elsewhere.sock.getsockname()
        return answers.get(datagram.data, datagram.data)

    async with place.serve(handler) as server:
        client, elsewhere = place.client(server), place.client(server)
        elsewhere.sock.bind(("127.0.0.1" if place.family == "ipv4" else "::1", 0))
        await send_numbers(client, server)
        assert [await client.receive() for _ in range(7)] == [b"0", b"1", b"2", b"3", b"5", b"7", b"9"]
        assert await elsewhere.receive() == b"8"
        now = server.stats()
        assert (now.datagrams_answered, now.datagrams_silent, now.failed) == (9, 1, 1)
        assert now.datagrams_sent == 9


async def test_datagram_of_the_ring_is_like_any_other(place: Place) -> None:
    """Its address is the sender's, the same object each time; attributes can be set, and deleted ones are missed."""
    seen: list[Datagram] = []

    async def handler(datagram: Datagram) -> bytes:
        seen.append(datagram)
        return b"ok"

    async with place.serve(handler) as server:
        client = place.client(server)
        client.sock.connect(server.addresses[0])
        client.sock.send(b"hello")
        assert await client.receive() == b"ok"
        (datagram,) = seen
        assert datagram.address == client.sock.getsockname()
        assert datagram.address is datagram.address is datagram.peer_address
        assert repr(datagram) == f"<Datagram from {client.sock.getsockname()!r}, 5 bytes>"
        assert datagram.local_address == server.addresses[0]
        assert (datagram.truncated, datagram.proxy_header) == (False, None)
        with pytest.raises(AttributeError):
            datagram.new = 1  # type: ignore[attr-defined]
        with pytest.raises(TypeError):
            weakref.ref(datagram)
        await datagram.reply(b"late")
        assert await client.receive() == b"late"
        assert datagram.replied
        del datagram.address
        with pytest.raises(AttributeError):
            datagram.address  # noqa: B018


async def test_addresses_of_one_batch_on_every_interface(udp: Place) -> None:
    """Each answer comes from the address that its question went to, alternating, and also with reply()."""

    async def handler(datagram: Datagram) -> bytes | None:
        if int(datagram.data) % 3:
            return datagram.data
        await datagram.reply(datagram.data)
        return None

    async with asyncserver.serve_datagrams(handler, "0.0.0.0", 0) as server:
        port = server.addresses[0][1]
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            loop = asyncio.get_running_loop()
            for _ in range(2):
                asked = [(b"%d" % number, (f"127.0.0.{1 + number % 2 + number // 6}", port)) for number in range(12)]
                for question in asked:
                    sock.sendto(*question)
                answers = [await loop.run_in_executor(None, sock.recvfrom, 100) for _ in range(12)]
                assert sorted(answers) == sorted(asked)


async def test_socket_for_ipv4_and_ipv6_at_once(tmp_path: Path) -> None:
    """A program's own may be for both, and gets control data of two kinds."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    port = sock.getsockname()[1]
    async with asyncserver.serve_datagrams(upper_datagram, sock=sock):
        for _ in range(2):
            for family, host in (("ipv4", "127.0.0.2"), ("ipv6", "::1"), ("ipv4", "127.0.0.1")):
                with contextlib.closing(Place(family, tmp_path)) as place:
                    client = DatagramClient(place, (host, port), "", named=False)
                    place._clients.append(client)
                    client.sock.connect((host, port))  # from now on the kernel drops what comes from elsewhere
                    client.sock.send(b"x")
                    assert await client.receive() == b"X"


# -- what handlers may be


class Awaiting:
    """Something that can be awaited, and is no coroutine."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __await__(self) -> Iterator[Any]:
        return iter(())


def future(value: bytes) -> asyncio.Future[bytes]:
    made = asyncio.get_running_loop().create_future()
    made.set_result(value)
    return made


@pytest.mark.parametrize(("make", "answered"), [(future, 9), (Awaiting, 0), (bytes, 0)])
async def test_handler_that_returns_no_coroutine(
    udp: Place, make: Callable[[bytes], object], answered: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What a decorator may make of one: awaited if `await` takes it, else refused with Python's own words."""

    async def handler(datagram: Datagram) -> bytes:
        return datagram.data

    async with udp.serve(handler) as server:
        client = udp.client(server)
        await send_numbers(client, server)
        server._run = lambda one: make(one.data) if one.data < b"9" else handler(one)  # type: ignore[attr-defined]
        assert [await client.receive() for _ in range(answered)] == NUMBERS[:answered]
        assert await client.receive() == b"9"
        await until(lambda: server.stats().datagrams_received == 11)
        now = server.stats()
        assert (now.failed, now.datagrams_silent) == {future: (0, 0), Awaiting: (0, 9), bytes: (9, 0)}[make]
    for record in errors_in(caplog):
        assert isinstance(record.exc_info[1], TypeError)
    caplog.clear()


async def test_handler_that_survives_its_cancellation(place: Place) -> None:
    """It may still answer, or go on waiting: what `throw()` brings out of a coroutine is used like any result."""
    begun = asyncio.Event()

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"first":
            return b"first"
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        if datagram.data == MIDDLE:
            await asyncio.sleep(0)
        return datagram.data

    async with place.serve(handler) as server:
        client = place.client(server)
        await send_numbers(client, server)
        await begun.wait()
        await until(lambda: server.stats().datagrams_received == 11)
        await within(server.close(0.01))
        assert sorted([await client.receive() for _ in NUMBERS]) == NUMBERS
        assert server.stats().completed == 11


@pytest.mark.skipif(sys.version_info < (3, 14), reason="capture_call_graph() is new in Python 3.14")
async def test_call_graph_shows_the_handler_that_waits(udp: Place) -> None:
    """Also through the compiled loop."""
    asyncio.get_running_loop().set_debug(False)  # in which handlers are wrapped
    hung = Hung()

    async def waiting_handler(datagram: Datagram) -> bytes:
        return datagram.data if datagram.data == b"first" else await hung(datagram)

    async with udp.serve(waiting_handler) as server:
        client = udp.client(server)
        await send_numbers(client, server)
        await until(lambda: hung.begun == 10)
        capture: Any = asyncio.capture_call_graph  # type: ignore[attr-defined,unused-ignore]
        for task in server._live:  # type: ignore[attr-defined]
            assert "waiting_handler" in [entry.frame.f_code.co_name for entry in capture(task).call_stack]
        hung.release.set()


async def test_nothing_is_left_of_datagrams(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Without the garbage collector's help: neither of answered ones, nor of errors."""
    caplog.set_level(logging.CRITICAL, "asyncserver")  # or the records would keep the errors

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"late":
            await asyncio.sleep(0)
        if datagram.data in {b"error", b"late"}:
            raise RuntimeError
        return bytes(70_000) if datagram.data == b"too large" else datagram.data

    async with place.serve(handler) as server:
        client = place.client(server)
        gc.collect()
        gc.disable()
        try:
            for number in range(100):
                client.send((b"error", b"late", b"answer", b"too large")[number % 4])
            await until(lambda: server.stats().completed + server.stats().failed == 100 and not server.stats().active)
            left = [one for one in gc.get_objects() if isinstance(one, Datagram)]
        finally:
            gc.enable()
        assert not left
