"""Faults that a stream has had, and must not have again: pauses, cycles, raw sockets, handshakes that fail."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import socket
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

import asyncserver
import asyncserver.streams.stream
from asyncserver import Stream
from tests.kit.clients import Client, open_socket
from tests.kit.handlers import upper_lines
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, blocked, until, within

# -- receiving


async def test_receive_of_nothing_is_refused_before_it_waits(transport: Transport) -> None:
    """receive(0) on a silent connection does not wait for bytes before it says that it can take none."""
    async with transport.pair() as (stream, _):
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="at least 1"):
                stream.receive(wrong).send(None)


@pytest.mark.parametrize("second", ["receive", "receive_exactly", "receive_until", "async for"])
async def test_receiver_at_a_pause_has_its_buffer_for_itself(
    transport: Transport, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that lets others run after it has searched the buffer finds it as it was; the other task is told."""
    async with transport.pair() as (stream, client):
        await client.send(b"-abc")
        assert await stream.receive_exactly(1) == b"-"
        await until(lambda: len(stream._buffer or b"") == 3)
        ways: dict[str, Any] = {
            "receive": lambda: stream.receive(2),
            "receive_exactly": lambda: stream.receive_exactly(2),
            "receive_until": lambda: stream.receive_until(b"b", 10),
            "async for": stream.__anext__,
        }
        stream._unwatch()
        monkeypatch.setattr("asyncserver.connections.connection.Connection._SPIN_LIMIT", 1)
        searching = stream.receive_until(b";", 10)
        while not stream._reading.busy:  # it lets others run before its turn, and when it has searched the buffer
            assert searching.send(None) is None
        monkeypatch.setattr("asyncserver.connections.connection.Connection._SPIN_LIMIT", 100)
        with pytest.raises(anyio.BusyResourceError):
            await ways[second]()
        await client.send(b";d;")
        assert await within(asyncio.create_task(searching)) == b"abc"
        assert await stream.receive_until(b";", 10) == b"d"


async def test_readers_of_short_lines_starve_nobody(transport: Transport) -> None:
    """A tight loop over a buffer full of lines lets others run every so often."""
    async with transport.pair() as (stream, client):
        await client.send(b"\n" * 5000)
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.create_task(count_turns())
        for _ in range(5000):
            assert await stream.receive_until(b"\n", 10) == b""
        counting.cancel()
        assert turns >= 5000 // 64 - 2


# -- what a handler's error leaves behind


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Only what nothing refers to goes away."""
    gc.disable()
    yield
    gc.enable()


async def _raise(stream: Stream) -> None:
    await stream.receive()
    raise ValueError("expected by the test")


async def _raise_at_once(stream: Stream) -> None:
    raise ValueError("expected by the test")


async def _exactly(stream: Stream) -> None:
    await stream.receive_exactly(100)


async def _for_ever(stream: Stream) -> None:
    while True:
        await stream.receive()


async def _send_for_ever(stream: Stream) -> None:
    while True:
        await stream.send(bytes(1 << 20))


@pytest.mark.parametrize("handler", [_raise, _raise_at_once, upper_lines, _exactly, _for_ever, _send_for_ever])
@pytest.mark.usefixtures("without_collector")
async def test_handler_that_ends_by_an_error_leaves_no_cycle(
    transport: Transport, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The stream, and with it the frames of the error's traceback, are gone before the garbage collector runs."""
    caplog.set_level(logging.CRITICAL, logger="asyncserver")  # a record would keep the traceback
    streams: list[weakref.ref[Stream]] = []

    async def watched(stream: Stream) -> None:
        streams.append(weakref.ref(stream))
        await handler(stream)

    async with transport.serve(watched) as server:
        client = await transport.connect(server)
        with contextlib.suppress(OSError):
            await client.send(b"question")
        await until(lambda: server.stats().bytes_received == 8 or handler not in {_exactly, _for_ever})
        client.close()
        await until(lambda: server.stats().completed + server.stats().failed == 1)
        await until(lambda: not server._busy())
        for _ in range(3):
            await asyncio.sleep(0)
        assert [one() for one in streams] == [None]


@pytest.mark.usefixtures("without_collector")
async def test_protocol_that_raises_leaves_no_cycle(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does an existing protocol whose callback raises."""
    caplog.set_level(logging.CRITICAL, logger="asyncserver")
    errors: list[weakref.ref[Any]] = []

    class ExpectedError(Exception):
        """A class of Python's own has no weak references."""

    class Raising(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            raise ExpectedError

    def tell(exc: BaseException, source: object) -> None:
        errors.append(weakref.ref(exc))

    async with transport.serve(asyncserver.from_protocol(Raising), on_error=tell) as server:
        client = await transport.connect(server)
        await client.send(b"question")
        assert await client.receive_all() == b""
        client.close()
        await until(lambda: server.stats().failed == 1)
        await until(lambda: not server._busy())
        for _ in range(3):
            await asyncio.sleep(0)
        assert [one() for one in errors] == [None]


@pytest.mark.usefixtures("without_collector")
async def test_cancelled_close_leaves_no_cycle(tcp: Transport) -> None:
    """Nor does a close() that was cancelled while it waited."""
    begun = asyncio.Event()

    async def hung(stream: Stream) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with tcp.serve(hung) as server, tcp.connect(server):
        await begun.wait()
        closing = await blocked(server.close())
        closing.cancel()
        try:
            await closing
        except asyncio.CancelledError as exc:
            told: Any = weakref.ref(exc)
        del closing
        for _ in range(3):
            await asyncio.sleep(0)
        assert told() is None


# -- handshakes that fail


async def test_failed_handshake_holds_no_slot(tls: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client sends behind its nonsense is not waited for; it gets its alert and the end all the same."""
    monkeypatch.setattr("asyncserver.connections.lingering._PATIENCE", 10 * PATIENCE)
    async with tls.serve(upper_lines, max_connections=1) as server:
        sock = await open_socket(server.addresses[0])
        client = Client(sock)
        not_a_hello = b"\x16\x03\x01\x00\x04" + b"\x02\x00\x00\x00"
        await client.send(not_a_hello + bytes(20_000))
        alert = await client.receive_all()
        assert (alert[0], len(alert)) == (21, 7)  # RFC 8446, 5.1: a record of that type is an alert
        second = await within(tls.connect(server))
        assert await second.ask(b"hello\n") == b"HELLO\n"
        second.close()
        client.close()
        assert server.stats().refused == 1


# -- the raw socket


@pytest.mark.parametrize("way", ["close", "detach", "shutdown"])
async def test_handler_that_does_away_with_the_raw_socket_loses_no_slot(
    transport: Transport, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that closes or detaches the socket behind the stream's back is no error and frees its slot."""
    kept: list[socket.socket] = []

    async def take_away(stream: Stream) -> None:
        if await stream.receive() == b"mine":
            kept.append(stream.detach())
            return
        raw: Any = stream.extra(SocketAttribute.raw_socket)
        getattr(raw, way)(*([2] if way == "shutdown" else []))

    async with transport.serve(take_away, max_connections=1) as server:
        for count, question in enumerate((b"close", b"mine", b"close", b"mine"), 1):
            client = await within(transport.connect(server))
            await client.send(question)
            while server.stats().completed < count:
                await asyncio.sleep(0)
            while kept:
                kept.pop().close()
            client.close()
            assert not server._poller._connections  # type: ignore[attr-defined]
        assert (server.stats().completed, server.stats().failed) == (4, 0)
    assert not [record for record in caplog.records if record.name == "asyncserver" and record.levelno >= logging.ERROR]


class _FullEpoll:
    """An epoll that has no room for one more, as /proc/sys/fs/epoll/max_user_watches may have it."""

    def __init__(self, epoll: Any, error: int) -> None:
        self._epoll = epoll
        self._error = error
        self.full = True

    def register(self, fd: int, events: int) -> None:
        if self.full:
            raise OSError(self._error, "expected by the test")
        self._epoll.register(fd, events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EPERM, errno.ENOMEM])
async def test_connection_that_cannot_be_watched_is_closed_alone(transport: Transport, error: int) -> None:
    """When epoll takes no more, that connection ends and is counted; the others go on, and the next are served."""
    async with transport.serve(upper_lines) as server:
        before = await transport.connect(server)
        assert await before.ask(b"hello\n") == b"HELLO\n"
        poller = server._poller  # type: ignore[attr-defined]
        poller._epoll = epoll = _FullEpoll(poller._epoll, error)
        client = Client(await open_socket(server.addresses[0]))
        assert await client.receive_all() == b""
        await until(lambda: server.stats().active == 1)
        epoll.full = False
        assert await before.ask(b"still\n") == b"STILL\n"
        after = await transport.connect(server)
        assert await after.ask(b"hello\n") == b"HELLO\n"
        for one in (before, client, after):
            one.close()
        assert server.stats().failed + server.stats().refused == 1
