"""A device that vanishes without a word is noticed in time; one that only reads slowly lives on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import socketserver
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

import asyncserver
import compat
from asyncserver import Server, Stream
from tests.kit.faults import allowed, figure
from tests.kit.hosts import CLIENT, Hosts, missing
from tests.kit.waiting import until

KEEPALIVE = 2.0
CHUNK = bytes(1 << 16)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """The server's host and its clients' host."""
    if reason := missing():
        pytest.skip(reason)
    with Hosts() as both:
        yield both


async def connect(hosts: Hosts, server: Server, tls: ssl.SSLContext | None = None, protocol: int = 0) -> socket.socket:
    """Connect a client from the other host, under TLS if a context is given."""
    sock = hosts.open_socket(CLIENT, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    sock.settimeout(20)
    await asyncio.to_thread(sock.connect, server.addresses[0])
    if tls is None:
        return sock
    return hosts.keep(await asyncio.to_thread(tls.wrap_socket, sock, server_hostname="localhost"))


# -- what handlers do when their peer vanishes


async def receives(stream: Stream) -> None:
    """Wait for a request."""
    await stream.receive()


async def is_blocked(stream: Stream) -> None:
    """Send more than the peer takes."""
    while True:
        await stream.send(CHUNK)


async def pushes(stream: Stream) -> None:
    """Send a little, again and again."""
    while True:
        await stream.send(b"news")
        await asyncio.sleep(0.1)


async def pushed_once(stream: Stream) -> None:
    """Have a byte in flight, and wait for the answer."""
    await asyncio.sleep(0.3)  # the cable is cut by now
    await stream.send(b"!")
    await stream.receive()


async def queues(_: Stream) -> None:
    """Wait for something else."""
    await asyncio.Queue[bytes]().get()


async def waits(stream: Stream) -> None:
    """Wait for the peer's end, and find what it was."""
    await stream.wait_disconnected()
    await stream.receive()


HANDLERS = (receives, is_blocked, pushes, pushed_once, queues, waits)


@contextlib.asynccontextmanager
async def serving(hosts: Hosts, handler: Any, protocol: int = 0, **options: Any) -> AsyncIterator[Server]:
    options = {"keepalive": KEEPALIVE, "drain_timeout": 0.0} | options
    async with asyncserver.serve(handler, sock=hosts.listener(protocol), **options) as server:
        yield server


def noting(handler: Callable[[Stream], Awaitable[None]], ends: list[BaseException]) -> Callable[[Any], Any]:
    async def noted(stream: Stream) -> None:
        try:
            await handler(stream)
        except BaseException as exc:
            ends.append(exc)
            raise

    return noted


@pytest.mark.parametrize("tls", [False, True])
async def test_host_that_vanishes(
    hosts: Hosts, tls: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """It is found in time, whatever its handlers do; those that use their streams get the error with its cause."""
    options: dict[str, Any] = {"ssl": server_context} if tls else {}
    ends: dict[Any, list[BaseException]] = {handler: [] for handler in HANDLERS}
    async with contextlib.AsyncExitStack() as stack:
        servers = {}
        for handler, raised in ends.items():
            server = await stack.enter_async_context(serving(hosts, noting(handler, raised), **options))
            await connect(hosts, server, client_context if tls else None)
            await until(lambda server=server: server.connections)  # type: ignore[misc]
            servers[handler] = server
        hosts.cut()
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for handler, server in servers.items():
                group.create_task(_found(server, handler, begun))
        for handler, server in servers.items():
            await until(lambda server=server: not server.connections)  # type: ignore[misc]
            _check_end(handler, server, ends[handler])


async def _found(server: Server, handler: Callable[..., object], begun: float) -> None:
    await until(lambda: server.stats().vanished)
    took = time.monotonic() - begun
    figure(f"vanished host of a handler that {handler.__name__}", None, f"found after {took:.1f} s", f"{KEEPALIVE:g} s")
    assert took < allowed(KEEPALIVE + 0.5)


def _check_end(handler: Callable[..., object], server: Server, ends: list[BaseException]) -> None:
    stats = server.stats()
    assert (stats.vanished, stats.failed, len(ends)) == (1, 0, 1)
    if handler is queues:
        assert isinstance(ends[0], asyncio.CancelledError)
        assert stats.cancelled == 1
    else:
        assert isinstance(ends[0], anyio.BrokenResourceError)
        cause = ends[0].__cause__
        assert isinstance(cause, TimeoutError)
        assert cause.errno == errno.ETIMEDOUT
        assert stats.completed == 1


async def test_host_that_vanishes_before_its_handshake(hosts: Hosts, server_context: ssl.SSLContext) -> None:
    """A handler that has started TLS gets the error, too; so does one whose client has sent its hello."""
    ends: list[BaseException] = []

    async def starts_tls(stream: Stream) -> None:
        await stream.start_tls(server_context)

    async with serving(hosts, noting(starts_tls, ends)) as server:
        _silent, begun = await connect(hosts, server), await connect(hosts, server)
        begun.send(b"\x16\x03\x01")  # of a record's header
        await until(lambda: len(server.connections) == 2)
        hosts.cut()
        await until(lambda: len(ends) == 2)
        for end in ends:
            assert isinstance(end, anyio.BrokenResourceError)
            assert isinstance(end.__cause__, TimeoutError)


async def test_without_a_bound_on_probes(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an older kernel a peer that pauses lives, too; one that vanishes meanwhile is found, later."""
    monkeypatch.setattr("asyncserver.net.probes._TCP_RTO_MAX_MS", 999)
    async with serving(hosts, is_blocked) as server:
        client = await connect(hosts, server)
        await asyncio.sleep(2 * KEEPALIVE)
        assert (server.stats().vanished, server.stats().active) == (0, 1)
        assert await asyncio.to_thread(client.recv, 1 << 20)  # its window opens: the probes begin anew
        hosts.cut()
        await until(lambda: server.stats().vanished)


@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.soak)])
@pytest.mark.parametrize("tls", [False, True])
async def test_slow_reader_lives(
    hosts: Hosts, tls: bool, times: int, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """A peer that takes 20 KiB a second, and one that pauses for several times the time, are not ended."""
    options: dict[str, Any] = {"ssl": server_context} if tls else {}
    async with serving(hosts, is_blocked, **options) as server:
        context = client_context if tls else None
        slow, pausing = await connect(hosts, server, context), await connect(hosts, server, context)
        end = time.monotonic() + times * KEEPALIVE
        taken = 0
        while time.monotonic() < end:
            taken += len(await asyncio.to_thread(slow.recv, 2048))
            await asyncio.sleep(0.1)
        assert taken > 0
        assert (server.stats().vanished, server.stats().active) == (0, 2)
        assert await asyncio.to_thread(pausing.recv, 2048)
        hosts.cut()
        await until(lambda: server.stats().vanished == 2)


async def test_idle_client_lives(hosts: Hosts) -> None:
    """A client that says nothing for several times the time is there: its host answers for it."""

    async def answer(stream: Stream) -> None:
        await stream.send(await stream.receive())

    async with serving(hosts, answer) as server:
        client = await connect(hosts, server)
        await asyncio.sleep(3 * KEEPALIVE)
        client.send(b"still")
        assert await asyncio.to_thread(client.recv, 100) == b"still"
        assert server.stats().vanished == 0


class Lost(asyncio.Protocol):
    """Pushes, or only waits, until its connection is lost."""

    ends: list[Exception | None]

    def __init__(self, pushed: bytes) -> None:
        self._pushed = pushed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        transport.write(self._pushed)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ends.append(exc)


@pytest.mark.parametrize("pushed", [b"", CHUNK * 64], ids=["idle", "blocked"])
async def test_protocol(hosts: Hosts, pushed: bytes) -> None:
    """A protocol gets `connection_lost()` with ETIMEDOUT, also one that has paused reading."""
    Lost.ends = []
    handler = asyncserver.from_protocol(lambda: Lost(pushed))
    async with serving(hosts, handler) as server:
        await connect(hosts, server)
        await until(lambda: server.connections)
        hosts.cut()
        await until(lambda: Lost.ends)
        assert isinstance(Lost.ends[0], TimeoutError)
        assert Lost.ends[0].errno == errno.ETIMEDOUT
        await until(lambda: not server.connections)
        stats = server.stats()
        assert (stats.vanished, stats.failed) == (1, 0)


@pytest.mark.parametrize("waits_for", ["read", "drain", "queue"])
async def test_callback(hosts: Hosts, waits_for: str) -> None:
    """A `(reader, writer)` callback gets the error from what it waits for; elsewhere it is cancelled."""
    ends: list[BaseException] = []

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if waits_for == "read":
                await reader.read()
            elif waits_for == "drain":
                writer.write(CHUNK * 64)
                await writer.drain()
            else:
                await asyncio.Queue[bytes]().get()
        except BaseException as exc:
            ends.append(exc)
            raise

    async with serving(hosts, asyncserver.from_callback(callback)) as server:
        await connect(hosts, server)
        await until(lambda: server.connections)
        hosts.cut()
        await until(lambda: not server.connections)
        cancelled = isinstance(ends[0], asyncio.CancelledError)
        assert cancelled == (waits_for == "queue")
        assert cancelled or isinstance(ends[0], TimeoutError | ConnectionError)
        stats = server.stats()
        assert (stats.vanished, stats.failed) == (1, 0)


class Hosted(socketserver.BaseRequestHandler):
    """Blocks in a thread."""

    def handle(self) -> None:
        while self.request.recv(1) == b"!":
            self.request.sendall(CHUNK * 64)


@pytest.mark.parametrize("request_", [b"", b"!"], ids=["idle", "blocked"])
async def test_hosted(hosts: Hosts, request_: bytes) -> None:
    """The thread of a hosted handler is freed, in a receive as in a send; the peer's end is no error."""
    async with serving(hosts, compat.hosted(Hosted)) as server:
        client = await connect(hosts, server)
        client.send(request_)
        await until(lambda: server.stats().active)
        await asyncio.sleep(0.3)  # the thread is in its send
        hosts.cut()
        begun = time.monotonic()
        await until(lambda: not server.connections)
        figure("vanished: hosted", None, f"ended after {time.monotonic() - begun:.1f} s", f"{KEEPALIVE:g} s")
        stats = server.stats()
        assert (stats.completed, stats.failed, stats.timed_out) == (1, 0, 0)


async def test_multipath(hosts: Hosts) -> None:
    """Of Multipath TCP the same is true, though the kernel refuses some of its options there."""
    try:
        socket.socket(proto=socket.IPPROTO_MPTCP).close()
    except OSError as exc:
        pytest.skip(f"no Multipath TCP here: {exc}")
    async with serving(hosts, receives, socket.IPPROTO_MPTCP) as server:
        await connect(hosts, server, protocol=socket.IPPROTO_MPTCP)
        await until(lambda: server.connections)
        hosts.cut()
        await until(lambda: not server.connections)
        assert server.stats().vanished == 1


async def test_line_in_the_log(hosts: Hosts, caplog: pytest.LogCaptureFixture) -> None:
    """Of many that vanish with their network, one has a line at WARNING."""
    async with serving(hosts, queues) as server:
        for _ in range(5):
            await connect(hosts, server)
        await until(lambda: len(server.connections) == 5)
        hosts.cut()
        await until(lambda: server.stats().vanished == 5)
        warned = [record for record in caplog.records if "its host answers nothing" in record.getMessage()]
        assert [record.levelname for record in warned].count("WARNING") == 1
