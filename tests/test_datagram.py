"""Datagrams: replies, admission, the account of each, addresses, errors, the drain, existing protocols."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import asyncserver
from tests.datagramkit import Hung, Place, upper
from tests.serverkit import PATIENCE, errors_in, is_balanced_for_datagrams, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncserver import Datagram

FAMILIES = ["ipv4", "ipv6", "unix"]
RMEM_MAX = int(Path("/proc/sys/net/core/rmem_max").read_text())


@pytest.fixture(params=FAMILIES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = Place(request.param, tmp_path)
    yield place
    place.close()


@pytest.fixture
def udp(tmp_path: Path) -> Iterator[Place]:
    place = Place("ipv4", tmp_path)
    yield place
    place.close()


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[Place]:
    place = Place("unix", tmp_path)
    yield place
    place.close()


# -- replies


async def test_reply_by_return(place: Place) -> None:
    """What the handler returns is sent back to where the datagram came from."""
    async with place.serve(upper) as server:
        first, second = place.client(server), place.client(server)
        assert await first.ask(b"first") == b"FIRST"
        assert await second.ask(b"second") == b"SECOND"
        assert await first.ask(b"") == b""
        now = server.stats()
        assert (now.datagrams_received, now.datagrams_sent, now.datagrams_answered) == (3, 3, 3)
        assert is_balanced_for_datagrams(server)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_bytes_may_be_returned(udp: Place, kind: type) -> None:
    """bytes, bytearray and memoryview are answers."""

    async def handler(datagram: Datagram) -> Any:
        return kind(b"answer")

    async with udp.serve(handler) as server:
        assert await udp.client(server).ask(b"?") == b"answer"


async def test_reply_many_times_and_late(place: Place) -> None:
    """reply() may be called any number of times, also after waiting, and beside the returned answer."""

    async def handler(datagram: Datagram) -> bytes:
        for number in range(3):
            await datagram.reply(b"%d" % number)
            await asyncio.sleep(0)
        return b"last"

    async with place.serve(handler) as server:
        client = place.client(server)
        client.send(b"?")
        assert [await client.receive() for _ in range(4)] == [b"0", b"1", b"2", b"last"]
        now = server.stats()
        assert (now.datagrams_received, now.datagrams_sent, now.datagrams_answered) == (1, 4, 1)


async def test_silence_is_no_answer(place: Place) -> None:
    """A handler that returns None sends nothing and is counted as silent."""
    done = asyncio.Event()

    async def silent(datagram: Datagram) -> None:
        done.set()

    async with place.serve(silent) as server:
        place.client(server).send(b"?")
        await done.wait()
        await until(lambda: server.stats().completed == 1)
        assert server.stats().datagrams_silent == 1
        assert server.stats().datagrams_sent == 0


async def test_datagram_tells_its_sender(place: Place) -> None:
    """The handler sees the data, the sender's address and the address it was sent to."""
    seen: list[Datagram] = []

    async def handler(datagram: Datagram) -> bytes:
        seen.append(datagram)
        return b"ok"

    async with place.serve(handler) as server:
        client = place.client(server)
        assert await client.ask(b"data") == b"ok"
        (datagram,) = seen
        assert datagram.data == b"data"
        if place.family != "unix":
            assert datagram.address[1] == client.sock.getsockname()[1]
        else:
            assert datagram.address == client.sock.getsockname()
        assert datagram.local_address == server.addresses[0]
        assert not datagram.truncated
        assert repr(datagram) == f"<Datagram from {datagram.address!r}, 4 bytes>"


async def test_too_large_an_answer_is_the_handlers_error(udp: Place, caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit into a datagram is refused by the system, logged, and hurts nobody else."""

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"reply":
            with pytest.raises(OSError, match="too long") as caught:
                await datagram.reply(bytes(70_000))
            assert caught.value.errno == errno.EMSGSIZE
            return b"refused"
        return bytes(70_000) if datagram.data == b"return" else b"fine"

    async with udp.serve(handler) as server:
        client = udp.client(server)
        assert await client.ask(b"reply") == b"refused"
        client.send(b"return")
        assert await client.ask(b"other") == b"fine"
        assert (server.stats().failed, server.stats().completed) == (1, 2)
        assert is_balanced_for_datagrams(server)
    (record,) = errors_in(caplog)
    assert record.exc_info[1].errno == errno.EMSGSIZE


# -- admission and the account


async def test_burst_of_1000_from_50_senders_is_kept_and_answered(udp: Place) -> None:
    """received + dropped is what was sent, and with the default buffers nothing is dropped."""
    async with udp.serve(upper) as server:
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
    async with asyncserver.serve_datagrams(upper, sock=sock) as server:
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
        hung.release.set()
        assert {await client.receive() for _ in range(10)} == {b"%d" % number for number in range(10)}
        await until(lambda: server.stats().active == 0)
        assert server.stats().datagrams_received == 10
        assert is_balanced_for_datagrams(server)
    assert hung.most == 3


async def test_pause_and_resume(place: Place) -> None:
    """While paused, datagrams wait in the kernel; then they are answered."""
    async with place.serve(upper) as server:
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
    async with udp.serve(upper) as server:
        assert await udp.client(server).ask(b"x" * 65_507) == b"X" * 65_507


# -- addresses


@pytest.mark.parametrize(
    ("host", "targets"),
    [
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2", "127.1.2.3"]),
        ("::", ["::1"]),
        (None, ["127.0.0.2", "::1"]),
    ],
)
async def test_reply_comes_from_the_address_the_datagram_came_to(
    host: str | None, targets: list[str], tmp_path: Path
) -> None:
    """On a wildcard bind with several local addresses a connected client gets its answer."""
    seen: list[Any] = []

    async def handler(datagram: Datagram) -> bytes:
        seen.append(datagram.local_address)
        await datagram.reply(b"reply")
        return b"return"

    async with asyncserver.serve_datagrams(handler, host, 0) as server:
        port = server.addresses[0][1]
        for target in targets:
            place = Place("ipv6" if ":" in target else "ipv4", tmp_path)
            client = place.client(server)
            client.sock.connect((target, port))  # from now on the kernel drops what comes from elsewhere
            client.sock.send(b"?")
            assert [await client.receive(), await client.receive()] == [b"reply", b"return"]
            assert seen[-1][:2] == (target, port)
            place.close()


async def test_sender_without_an_address_cannot_be_answered(unix: Place, caplog: pytest.LogCaptureFixture) -> None:
    """An unnamed Unix socket gets no answer; reply() says so, a returned answer is given up, neither is logged."""
    outcomes: list[str] = []

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"caught":
            with pytest.raises(anyio.BrokenResourceError, match="cannot be answered"):
                await datagram.reply(b"answer")
        elif datagram.data == b"uncaught":
            await datagram.reply(b"answer")
        outcomes.append(datagram.data.decode())
        return b"answer"

    async with unix.serve(handler) as server:
        nameless = unix.client(server, named=False)
        for word in (b"caught", b"uncaught", b"returned"):
            nameless.send(word)
        assert await unix.client(server).ask(b"named") == b"answer"
        assert outcomes == ["caught", "returned", "named"]
        now = server.stats()
        assert (now.completed, now.failed, now.datagrams_answered, now.datagrams_sent) == (4, 0, 1, 1)
        assert is_balanced_for_datagrams(server)
    assert not errors_in(caplog)


async def test_full_queue_of_a_unix_peer_is_waited_for(unix: Place) -> None:
    """A Unix peer that is slow to read gets every answer, returned or replied, in the end."""
    count = 40

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"many":
            for number in range(count):
                await datagram.reply(b"%d" % number)
        return b"last"

    async with unix.serve(handler) as server:
        client = unix.client(server)
        client.send(b"many")
        await until(lambda: server.stats().datagrams_sent > 5)
        for _ in range(3):
            client.send(b"one")  # its answer is returned: the queue is full for that too
        answers = [await client.receive() for _ in range(count + 4)]
        await until(lambda: server.stats().active == 0)
        assert server.stats().datagrams_sent == count + 4
        assert is_balanced_for_datagrams(server)
    assert sorted(answers) == sorted([b"%d" % number for number in range(count)] + [b"last"] * 4)


async def test_unix_peer_that_leaves_a_full_queue_behind_is_no_error(
    unix: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that waits for room when its receiver goes is given up without a log line."""
    async with unix.serve(upper) as server:
        client = unix.client(server)
        for _ in range(30):
            with contextlib.suppress(BlockingIOError):
                client.send(b"x")
            await asyncio.sleep(0)
        await until(lambda: server.stats().active > 0 or server.stats().completed > server.stats().datagrams_sent)
        client.sock.close()
        await until(lambda: server.stats().active == 0)
        async with asyncio.timeout(PATIENCE / 2):
            report = await server.close(PATIENCE)
        assert report.cancelled == report.aborted == 0
        assert is_balanced_for_datagrams(server)
    assert not errors_in(caplog)


class Stubborn:
    """A server's socket that fails so many times before it does what it should: a full one, or a broken network."""

    def __init__(self, sock: socket.socket, method: str, *errors: OSError) -> None:
        self._sock = sock
        self._method = method
        self.errors = list(errors)

    def __getattr__(self, name: str) -> Any:
        if name == self._method and self.errors:
            raise self.errors.pop(0)
        return getattr(self._sock, name)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
async def test_full_udp_socket_is_waited_for(udp: Place, number: int) -> None:
    """An answer that finds no room, returned or replied, is sent as soon as there is some, to everybody."""

    async def handler(datagram: Datagram) -> bytes | None:
        if datagram.data.startswith(b"reply"):
            await datagram.reply(datagram.data.upper())
            return None
        return datagram.data.upper()

    async with udp.serve(handler) as server:
        (endpoint,) = server._endpoints  # type: ignore[attr-defined]
        full = Stubborn(endpoint.sock, "sendto", *(OSError(number, "full") for _ in range(7)))
        endpoint.sock = full
        client = udp.client(server)
        words = [b"reply 1", b"return 1", b"reply 2", b"return 2"]
        for word in words:
            client.send(word)
        assert {await client.receive() for _ in words} == {word.upper() for word in words}
        assert not full.errors
        await until(lambda: server.stats().active == 0)
        assert server.stats().datagrams_answered == server.stats().datagrams_sent == 4
        assert is_balanced_for_datagrams(server)


async def test_full_udp_socket_does_not_outlast_the_drain(udp: Place, caplog: pytest.LogCaptureFixture) -> None:
    """An answer for which there is never room is given up at the deadline."""
    async with udp.serve(upper) as server:
        (endpoint,) = server._endpoints  # type: ignore[attr-defined]
        full = Stubborn(endpoint.sock, "sendto", *(BlockingIOError() for _ in range(10**6)))
        endpoint.sock = full
        udp.client(server).send(b"?")
        await until(lambda: len(full.errors) < 10**6)
        async with asyncio.timeout(5):
            await server.close(0.1)
            await server.wait_closed()
        full.errors.clear()
    assert server.stats().active == 0
    assert is_balanced_for_datagrams(server)
    assert not errors_in(caplog)


async def test_error_of_receiving_does_not_stop_the_server(udp: Place, caplog: pytest.LogCaptureFixture) -> None:
    """What the network reports for something sent before concerns no datagram that comes now."""
    async with udp.serve(upper) as server:
        (endpoint,) = server._endpoints  # type: ignore[attr-defined]
        endpoint.sock = Stubborn(endpoint.sock, "recvfrom_into", OSError(errno.ECONNREFUSED, "icmp"))
        assert await udp.client(server).ask(b"hello") == b"HELLO"
        assert not endpoint.sock.errors
    assert not errors_in(caplog)


async def test_small_receive_buffer_is_told(udp: Place, caplog: pytest.LogCaptureFixture) -> None:
    """When the kernel grants less than bursts need, the log says what to raise; otherwise it is silent."""
    caplog.set_level(logging.INFO, "asyncserver")
    async with udp.serve(upper) as server:
        granted = server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    assert granted == min(RMEM_MAX, 1 << 20)
    assert ("raise net.core.rmem_max" in caplog.text) == (granted < 1 << 20)


# -- errors


async def test_handler_errors_are_logged_once_and_hurt_nobody(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that raises costs its own datagram; on_error is told, with the datagram."""
    told: list[tuple[BaseException, Any]] = []

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"raise":
            raise ValueError("the handler's own mistake")
        if datagram.data == b"raise later":
            await asyncio.sleep(0)
            raise ValueError("the handler's own mistake")
        return datagram.data.upper()

    async with place.serve(handler, on_error=lambda *event: told.append(event)) as server:
        client = place.client(server)
        client.send(b"raise")
        client.send(b"raise later")
        assert await client.ask(b"fine") == b"FINE"
        await until(lambda: server.stats().failed == 2)
        assert is_balanced_for_datagrams(server)
    assert [source.data for _, source in told] == [b"raise", b"raise later"]
    records = errors_in(caplog)
    assert len(records) == 2
    assert all(str(told[0][1].address) in record.getMessage() for record in records)


async def test_on_error_that_raises_does_no_harm(udp: Place, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged beside the handler's error."""

    def on_error(exc: BaseException, source: object) -> None:
        raise RuntimeError

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"raise":
            raise ValueError
        return b"fine"

    async with udp.serve(handler, on_error=on_error) as server:
        client = udp.client(server)
        client.send(b"raise")
        assert await client.ask(b"other") == b"fine"
    assert [type(record.exc_info[1]) for record in errors_in(caplog)] == [ValueError, RuntimeError]


@pytest.mark.parametrize("answer", ["text", 7, ["list"]])
async def test_wrong_return_type_is_the_handlers_error(
    udp: Place, answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what a handler returns and what this one did."""

    async def handler(datagram: Datagram) -> Any:
        return answer

    async with udp.serve(handler) as server:
        udp.client(server).send(b"?")
        await until(lambda: server.stats().failed == 1)
        assert is_balanced_for_datagrams(server)
    (record,) = errors_in(caplog)
    assert isinstance(record.exc_info[1], TypeError)
    assert "bytes, or None" in str(record.exc_info[1])
    assert repr(answer) in str(record.exc_info[1])


async def test_handler_with_the_wrong_signature_fails_each_datagram_only(
    udp: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Calling it raises before there is a coroutine: logged and counted, and the server lives on."""

    async def no_argument() -> None:
        raise AssertionError("cannot be called")

    async with udp.serve(no_argument) as server:
        client = udp.client(server)
        client.send(b"a")
        client.send(b"b")
        await until(lambda: server.stats().failed == 2)
        assert is_balanced_for_datagrams(server)
    assert len(errors_in(caplog)) == 2


async def test_receiver_that_has_gone_does_not_stop_the_server(udp: Place) -> None:
    """The ICMP error that an answer to a closed port brings back is nobody's failure."""
    async with udp.serve(upper) as server:
        for _ in range(3):
            gone = udp.client(server)
            gone.send(b"x")
            gone.sock.close()
        client = udp.client(server)
        for _ in range(5):
            assert await client.ask(b"here") == b"HERE"
        assert server.stats().datagrams_received == 8
        assert server.stats().failed == 0


# -- the end


async def test_drain_answers_what_lay_in_the_kernel(place: Place) -> None:
    """What had reached the host when close() was called is answered."""
    count = 8 if place.family == "unix" else 200  # a Unix socket's queue holds few
    async with place.serve(upper) as server:
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
    async with udp.serve(upper) as server:
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
    async with place.serve(upper) as server:
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
    async with udp.serve(upper) as server:
        pass
    with pytest.raises(RuntimeError, match=rf"{method}\(\): <DatagramServer closed .*start another"):
        getattr(server, method)()


# -- existing protocols


class Echo(asyncio.DatagramProtocol):
    """An ordinary datagram protocol."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append("made")
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if data == b"raise":
            raise ValueError("the protocol's own mistake")
        if data == b"close":
            self.transport.close()
        elif data == b"many":
            for number in range(40):
                self.transport.sendto(b"%d" % number, addr)
        elif data != b"silent":
            self.transport.sendto(data.upper(), addr)

    def error_received(self, exc: Exception) -> None:
        self.events.append(f"error {type(exc).__name__}")

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(f"lost {exc}")


async def test_datagram_protocol_runs_unchanged(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Also over Unix sockets and on uvloop; counted, drained, and its errors contained."""
    protocol = Echo()
    async with place.serve(asyncserver.from_protocol(lambda: protocol)) as server:
        client = place.client(server)
        assert await client.ask(b"hello") == b"HELLO"
        client.send(b"raise")
        client.send(b"silent")
        assert await client.ask(b"again") == b"AGAIN"
        assert protocol.transport.get_extra_info("sockname") == server.addresses[0]
        assert protocol.transport.get_extra_info("socket") is server.sockets[0]
        assert protocol.transport.get_extra_info("nothing", 7) == 7
        assert protocol.transport.get_protocol() is protocol
        assert not protocol.transport.is_closing()
        with pytest.raises(ValueError, match="sendto"):
            protocol.transport.sendto(b"to whom?")
        now = server.stats()
        assert (now.datagrams_answered, now.datagrams_silent, now.failed) == (2, 1, 1)
        assert is_balanced_for_datagrams(server)
        client.send(b"last")  # lies in the kernel
        await server.close()
        assert await client.receive() == b"LAST"
    assert protocol.events == ["made", "lost None"]
    assert protocol.transport.is_closing()
    assert len(errors_in(caplog)) == 1


async def test_datagram_protocol_writes_to_a_full_peer(unix: Place) -> None:
    """sendto() never blocks: what has no room waits, in order, and the protocol is told to pause."""
    protocol = Echo()
    async with unix.serve(asyncserver.from_protocol(lambda: protocol)) as server:
        client = unix.client(server)
        client.send(b"many")
        await until(lambda: "pause" in protocol.events)
        assert protocol.transport.get_write_buffer_size() > 0
        assert [await client.receive() for _ in range(40)] == [b"%d" % number for number in range(40)]
        await until(lambda: "resume" in protocol.events)
        assert protocol.transport.get_write_buffer_size() == 0
    assert protocol.events == ["made", "pause", "resume", "lost None"]


async def test_datagram_protocol_hears_of_errors(unix: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A peer that cannot be answered is told by error_received, as asyncio does, and is no error of the protocol's."""
    protocol = Echo()
    async with unix.serve(asyncserver.from_protocol(lambda: protocol)) as server:
        gone = unix.client(server)
        gone.send(b"hello, and good-bye")
        gone.sock.close()
        assert await unix.client(server).ask(b"named") == b"NAMED"
        assert server.stats().failed == 0
    assert protocol.events == ["made", "error ConnectionRefusedError", "lost None"]
    assert not errors_in(caplog)


async def test_datagram_protocol_may_close_the_server(place: Place) -> None:
    """transport.close() ends the endpoint, and with it the server, as it would under asyncio."""
    protocol = Echo()
    async with place.serve(asyncserver.from_protocol(lambda: protocol)) as server:
        place.client(server).send(b"close")
        async with asyncio.timeout(PATIENCE):
            await server.wait_closed()
    assert protocol.events == ["made", "lost None"]


async def test_datagram_protocol_that_fails_at_the_end_does_not_keep_the_server_open(
    udp: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in connection_lost is logged; the sockets are closed and wait_closed() returns."""

    class Broken(Echo):
        def connection_lost(self, exc: Exception | None) -> None:
            raise ValueError("in connection_lost")

    with contextlib.suppress(ValueError):
        async with udp.serve(asyncserver.from_protocol(Broken)) as server:
            (sock,) = server.sockets
            assert await udp.client(server).ask(b"hello") == b"HELLO"
    async with asyncio.timeout(5):
        await server.wait_closed()
    assert sock.fileno() == -1
    assert "in connection_lost" in caplog.text


async def test_factory_that_fails_leaves_no_socket_open(udp: Place) -> None:
    """The error reaches whoever starts the server, and nothing stays open."""

    def factory() -> asyncio.DatagramProtocol:
        raise LookupError("no protocol today")

    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(LookupError, match="no protocol today") as caught:  # whose traceback keeps what it saw alive
        async with udp.serve(asyncserver.from_protocol(factory)):
            pass
    assert len(os.listdir("/proc/self/fd")) == len(before), caught


async def test_callback_for_datagrams_is_refused_with_advice() -> None:
    """(reader, writer) makes no sense for datagrams, and the error says what does."""

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    with pytest.raises(TypeError, match="from_protocol"):
        async with asyncserver.serve_datagrams(asyncserver.from_callback(callback), "127.0.0.1", 0):
            pass
