"""Datagrams that have left the kernel before their turn comes: with the extension up to 31, without it none.

Nobody can tell: they are counted, answered and dropped as if the kernel had them. So all of this holds without it, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import asyncserver
from asyncserver import Datagram
from asyncserver.datagrams.ring_runner import RingRunner, make_runner
from asyncserver.kernel import features
from asyncserver.listening.binding import BoundSocket
from tests.kit.batches import MIDDLE, NUMBERS, endpoint_of, send_numbers
from tests.kit.checks import errors_in, is_balanced_for_datagrams
from tests.kit.datagrams import DatagramClient, Place
from tests.kit.handlers import Hung, upper_datagram
from tests.kit.waiting import PATIENCE, until, within


@pytest.fixture(params=["ipv4", "ipv6"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with contextlib.closing(Place(request.param, tmp_path)) as place:
        yield place


class Acting:
    """A handler that returns what it got; in the middle of a batch it does something to its server."""

    def __init__(self, act: Callable[[asyncserver.Server], object]) -> None:
        self.act = act
        self.server: Any = None
        self.seen: list[bytes] = []
        self.result: Any = None

    async def __call__(self, datagram: Datagram) -> bytes:
        self.seen.append(datagram.data)
        if datagram.data == MIDDLE:
            self.result = self.act(self.server)
        return datagram.data

    async def meet(self, client: DatagramClient, server: asyncserver.Server) -> None:
        """Get the numbers, up to the middle."""
        self.server = server
        await send_numbers(client, server)
        await until(lambda: MIDDLE in self.seen)


def close_soon(server: asyncserver.Server, timeout: float = PATIENCE) -> asyncio.Task[Any]:
    """Begin to close, at once where the version of Python can do that."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(server.close(timeout), eager_start=True, loop=asyncio.get_running_loop())
    return asyncio.create_task(server.close(timeout))


# -- where there is a ring


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "unix"])
async def test_ring_where_it_is_of_use(family: str, tmp_path: Path) -> None:
    """With the extension, for UDP."""
    with contextlib.closing(Place(family, tmp_path)) as place:
        async with place.serve(upper_datagram) as server:
            ring = isinstance(endpoint_of(server), RingRunner)
            assert ring == (asyncserver.accelerated and family != "unix")


async def test_no_ring_for_a_kind_of_socket_that_is_the_programs_own(udp: Place) -> None:
    """Its methods are called, for each datagram."""
    calls: list[str] = []

    class Socket(socket.socket):
        def recvfrom_into(self, *args: Any) -> Any:
            calls.append("receive")
            return super().recvfrom_into(*args)

        def sendto(self, *args: Any) -> int:
            calls.append("send")
            return super().sendto(*args)

    sock = Socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    async with asyncserver.serve_datagrams(upper_datagram, sock=sock) as server:
        assert await udp.client(server).ask(b"x") == b"X"
    assert calls[:1] == ["receive"]
    assert "send" in calls


async def test_no_ring_where_a_handler_may_run_the_loop(udp: Place) -> None:
    """As under nest_asyncio: those that come after it are handled meanwhile."""
    loop: Any = asyncio.get_running_loop()
    if not hasattr(loop, "_check_running"):
        pytest.skip("uvloop cannot be run again")
    loop._check_running = lambda: None
    async with udp.serve(upper_datagram) as server:
        assert not isinstance(endpoint_of(server), RingRunner)
    del loop._check_running


@pytest.mark.parametrize(("contended", "ring"), [(False, asyncserver.accelerated), (True, False)])
async def test_no_ring_where_others_read_the_queue(contended: bool, ring: bool) -> None:
    """What one of the processes holds would wait although another has time."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    bound = BoundSocket(sock)
    bound.contended = contended
    server: Any = SimpleNamespace(_loop=asyncio.get_running_loop())
    runner = make_runner(server, bound, 100)
    assert isinstance(runner, RingRunner) == ring
    runner.close()


@pytest.mark.skipif(not asyncserver.accelerated, reason="needs the compiled extension")
async def test_kernel_without_recvmmsg(
    udp: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once, and each datagram is received alone."""

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSYS, "for the test")

    monkeypatch.setattr(Datagram, "_receive_many", refuse)
    monkeypatch.setattr(features, "_told", set())
    async with udp.serve(upper_datagram) as server, udp.serve(upper_datagram):
        client = udp.client(server)
        for _ in range(2):
            for number in NUMBERS:
                client.send(number)
            assert [await client.receive() for _ in NUMBERS] == NUMBERS
        assert is_balanced_for_datagrams(server)
    assert caplog.text.count("this system has no recvmmsg") == 1


@pytest.mark.skipif(not asyncserver.accelerated, reason="needs the compiled extension")
@pytest.mark.parametrize("wanted", [-1, 0, 33, 1 << 40])
def test_memory_is_never_left(wanted: int) -> None:
    """Whatever is asked for: 32 datagrams at most, and each in its share; wrong arguments are errors."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        for _ in range(40):
            sock.sendto(b"four", sock.getsockname())
        memory = bytearray(32 * 3)
        got = Datagram._receive_many(None, sock.fileno(), wanted, memory, None)
        assert len(got) == (32 if wanted > 1 else 1)
        assert {(one.data, one.truncated, one.control) for one in got} == {(b"fou", True, None)}
        assert Datagram._send_many(sock.fileno(), got) == 0  # none has an answer
        receive: Any = Datagram._receive_many
        for wrong in ((), (None, "0", 1, memory, None), (None, 0, 1, bytes(32), None)):
            with pytest.raises((TypeError, BufferError)):
                receive(*wrong)


@pytest.mark.skipif(not asyncserver.accelerated, reason="needs the compiled extension")
def test_names_that_are_longer_than_any_of_udp(tmp_path: Path) -> None:
    """They are not kept, so no answer goes to the memory behind a part of one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, socket.socket(sock.family, sock.type) as client:
        sock.bind(os.fsencode(tmp_path / "server"))
        client.bind(b"\0" + os.urandom(100))
        client.sendto(b"hello", sock.getsockname())
        got = Datagram._receive_many(None, sock.fileno(), 32, bytearray(320), None)
        assert [one.data for one in got] == [b"hello"]
        assert not hasattr(got[0], "address")
        got[0].answer = b"answer"
        assert Datagram._send_many(sock.fileno(), got) == 0


# -- datagrams at hand when something happens


async def test_pause_in_the_middle_of_a_batch(place: Place) -> None:
    """Not one handler begins until `resume()`; then each datagram is handled once, in its order."""
    handler = Acting(lambda server: server.pause())
    async with place.serve(handler) as server:
        client = place.client(server)
        await handler.meet(client, server)
        for _ in range(20):
            await asyncio.sleep(0)
        assert server.stats().datagrams_received == 5
        assert getattr(endpoint_of(server), "_held", 6) == 6
        assert is_balanced_for_datagrams(server)
        server.resume()
        assert [await client.receive() for _ in NUMBERS] == NUMBERS
        assert server.stats().datagrams_received == server.stats().datagrams_answered == 11
        assert await client.ask(b"later") == b"later"
    assert handler.seen == [b"first", *NUMBERS, b"later"]


async def test_pause_and_resume_in_the_middle_of_a_batch(place: Place) -> None:
    """Both at once change nothing."""

    def pause_and_resume(server: asyncserver.Server) -> None:
        server.pause()
        server.resume()

    handler = Acting(pause_and_resume)
    async with place.serve(handler) as server:
        client = place.client(server)
        await handler.meet(client, server)
        assert [await client.receive() for _ in NUMBERS] == NUMBERS
    assert handler.seen == [b"first", *NUMBERS]


async def test_drain_in_the_middle_of_a_batch(place: Place) -> None:
    """What had come before `close()` is answered, wherever it is."""
    handler = Acting(close_soon)
    async with place.serve(handler) as server:
        client = place.client(server)
        await handler.meet(client, server)
        await within(handler.result)
        assert server.stats().completed == 11
        assert sorted([await client.receive() for _ in NUMBERS]) == NUMBERS
        assert is_balanced_for_datagrams(server)


async def test_drain_of_a_server_that_pauses(place: Place) -> None:
    """The same for what has waited since then; with more than a batch behind it."""
    handler = Acting(lambda server: server.pause())
    async with place.serve(handler) as server:
        client = place.client(server)
        await handler.meet(client, server)
        for _ in range(40):
            client.send(b"more")
        assert await within(server.close(PATIENCE)) == asyncserver.DrainReport(completed=46)
        assert server.stats().datagrams_dropped == 0


async def test_close_without_a_drain_counts_what_it_drops(place: Place) -> None:
    """What had come, and got no handler, is counted as dropped."""
    handler = Acting(lambda server: server.pause())
    async with place.serve(handler) as server:
        client = place.client(server)
        await handler.meet(client, server)
        client.send(b"in the kernel")
        await server.close(0)
        await server.wait_closed()
        now = server.stats()
    assert (now.datagrams_received, now.datagrams_dropped) == (5, 7)
    assert is_balanced_for_datagrams(server)


async def test_close_in_a_handler(place: Place) -> None:
    """Without a drain, and where the version allows it before the next handler begins: the rest is dropped."""
    handler = Acting(lambda server: close_soon(server, 0))
    async with place.serve(handler) as server:
        client = place.client(server)
        await handler.meet(client, server)
        await within(handler.result)
        await within(server.wait_closed())
        now = server.stats()
    assert now.datagrams_received + now.datagrams_dropped == 11
    assert is_balanced_for_datagrams(server)


async def test_socket_that_another_process_takes_over(place: Place) -> None:
    """What is at hand is answered by us, what the kernel holds by that process; the drops are not counted twice."""
    handler = Acting(lambda server: server.pause())
    async with place.serve(handler) as server:
        client = place.client(server)
        await handler.meet(client, server)
        at_hand = getattr(endpoint_of(server), "_held", 0)
        client.send(b"new")
        with server.sockets[0].dup() as other:
            bound = endpoint_of(server)._bound
            bound.shared = bound.handed_over = True
            assert await within(server.close(PATIENCE)) == asyncserver.DrainReport(completed=at_hand)
            left = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    left.append(other.recv(100))
    assert handler.seen + left == [b"first", *NUMBERS, b"new"]
    assert left[-1] == b"new"
    assert server.stats().datagrams_dropped == 0


async def test_limit_that_is_reached_in_the_middle_of_a_batch(place: Place) -> None:
    """At max_pending no more handlers begin than that, and the others follow."""
    hung = Hung()

    async def handler(datagram: Datagram) -> bytes:
        return datagram.data if datagram.data == b"first" else await hung(datagram)

    async with place.serve(handler, max_pending=4) as server:
        client = place.client(server)
        await send_numbers(client, server)
        await until(lambda: hung.begun == 4)
        for _ in range(20):
            await asyncio.sleep(0)
        assert server.stats().datagrams_received == 5
        hung.release.set()
        assert sorted([await client.receive() for _ in NUMBERS]) == NUMBERS
    assert hung.most == 4


async def test_errors_in_the_middle_of_a_batch(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Each costs one datagram, whether it is raised before or after a wait; cancelled is not failed."""

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data in NUMBERS[5:]:
            await asyncio.sleep(0)
        if datagram.data in NUMBERS[1::4]:
            raise RuntimeError(datagram.data)
        if datagram.data in NUMBERS[2::4]:
            raise asyncio.CancelledError
        return datagram.data

    async with place.serve(handler) as server:
        client = place.client(server)
        await send_numbers(client, server)
        rest = [number for number in NUMBERS if int(number) % 4 not in {1, 2}]
        assert sorted([await client.receive() for _ in rest]) == rest
        await until(lambda: is_balanced_for_datagrams(server) and server.stats().active == 0)
        now = server.stats()
        assert (now.completed, now.failed, now.cancelled) == (6, 3, 2)
    errors = errors_in(caplog)
    assert sorted(str(one.exc_info[1]) for one in errors) == ["b'1'", "b'5'", "b'9'"]
    assert {traceback.extract_tb(one.exc_info[2])[-1].name for one in errors} == {"handler"}


async def test_call_that_raises_stop_iteration(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """It fails, and ends nothing but itself: one without `async` raises it where coroutines raise RuntimeError."""
    if sys.version_info < (3, 12):
        pytest.skip("inspect.markcoroutinefunction came with Python 3.12")

    async def echo(datagram: Datagram) -> bytes:
        return datagram.data

    @inspect.markcoroutinefunction
    def handler(datagram: Datagram) -> Any:
        return echo(datagram) if datagram.data != MIDDLE else next(iter(()))

    asyncio.get_running_loop().set_debug(False)  # there a coroutine is around each handler

    async with place.serve(handler) as server:
        client = place.client(server)
        for _ in range(2):  # the second time there is a task ready
            await send_numbers(client, server)
            for _ in NUMBERS[1:]:
                await client.receive()
        await until(lambda: is_balanced_for_datagrams(server) and server.stats().active == 0)
        assert server.stats().failed == 2
    assert {str(one.exc_info[1]) for one in errors_in(caplog)} <= {"", "the handler raised StopIteration"}


@pytest.mark.parametrize("size", [1, 100, 100_000])
async def test_ring_of_any_size(udp: Place, size: int) -> None:
    """Datagrams are cut at max_datagram_size, and only there; a ring for long ones has few places."""

    async def handler(datagram: Datagram) -> bytes:
        return b"%d %s" % (len(datagram.data), b"cut" if datagram.truncated else b"whole")

    async with udp.serve(handler, max_datagram_size=size) as server:
        client = udp.client(server)
        for length in (0, 1, 100, 101, 60_000) * 8:
            client.send(bytes(length))
        answers = [await client.receive() for _ in range(40)]
    expected = [b"%d %s" % (min(n, size), b"cut" if n > size else b"whole") for n in (0, 1, 100, 101, 60_000)]
    assert sorted(answers) == sorted(expected * 8)
