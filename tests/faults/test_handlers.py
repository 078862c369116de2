"""Handlers that do their worst: each is contained in its own connection or datagram, and told of once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

import asyncserver.servers.server
from asyncserver import Datagram, Stream
from tests.kit.checks import errors_in, is_balanced, is_balanced_for_datagrams
from tests.kit.clients import Client
from tests.kit.faults import figure
from tests.kit.handlers import RaiseOrEcho, upper
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until


class UnspeakableError(Exception):
    """An error that cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words for it")

    __repr__ = __str__


class Own(BaseException):
    """Neither an Exception nor one of those that end a program."""


async def raises(stream: Stream) -> None:
    raise ValueError


async def raises_what_cannot_be_shown(stream: Stream) -> None:
    raise UnspeakableError


async def raises_its_own_kind(stream: Stream) -> None:
    raise Own


async def raises_stop_iteration(stream: Stream) -> None:
    raise StopIteration


async def recurses(stream: Stream) -> None:
    await recurses(stream)


async def says_that_it_was_cancelled(stream: Stream) -> None:
    raise asyncio.CancelledError


async def raises_in_its_cleanup(stream: Stream) -> None:
    try:
        raise ValueError
    finally:
        raise LookupError


async def raises_when_cancelled(stream: Stream) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        raise LookupError


async def hangs(stream: Stream) -> None:
    await asyncio.Event().wait()


async def hangs_in_its_cleanup(stream: Stream) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await until_released.get().wait()


async def ignores_cancellation(stream: Stream) -> None:
    released = until_released.get()
    while not released.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await released.wait()


async def closes_twice(stream: Stream) -> None:
    await stream.aclose()
    await stream.aclose()
    stream.abort()
    stream.abort()


async def closes_in_two_tasks(stream: Stream) -> None:
    await asyncio.gather(stream.aclose(), stream.aclose(), stream.aclose())


async def closes_the_raw_socket(stream: Stream) -> None:
    stream.extra(SocketAttribute.raw_socket).close()


async def cancels_itself(stream: Stream) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await stream.receive()


async def leaves_tasks_that_use_its_stream(stream: Stream) -> None:
    left_behind.get().append(asyncio.create_task(stream.receive()))
    left_behind.get().append(asyncio.create_task(stream.send(bytes(1 << 24))))
    await asyncio.sleep(0)


# What it does, and which counter it is found in when the server has closed; failed ones are logged.
STREAMS: dict[Callable[[Any], Coroutine[Any, Any, None]], str] = {
    raises: "failed",
    raises_what_cannot_be_shown: "failed",
    raises_its_own_kind: "failed",
    raises_stop_iteration: "failed",
    recurses: "failed",
    says_that_it_was_cancelled: "cancelled",
    raises_in_its_cleanup: "failed",
    raises_when_cancelled: "failed",
    hangs: "cancelled",
    hangs_in_its_cleanup: "cancelled",
    ignores_cancellation: "cancelled",
    closes_twice: "completed",
    closes_in_two_tasks: "completed",
    closes_the_raw_socket: "completed",
    cancels_itself: "cancelled",
    leaves_tasks_that_use_its_stream: "completed",
}
# Those that end at the deadline of a drain only.
STAYING = {raises_when_cancelled, hangs, hangs_in_its_cleanup, ignores_cancellation}


class Holder:
    """Something that a handler finds in its test's own context."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.value: Any = None

    def get(self) -> Any:
        return self.value


until_released = Holder(asyncio.Event)
left_behind = Holder(list)


@pytest.fixture(autouse=True)
def _holders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncserver.servers.server.Server._cancel_grace", 0.1)
    until_released.value = asyncio.Event()
    left_behind.value = []


async def close_at_once(server: asyncserver.Server, staying: int) -> None:
    """Close; the deadline of the drain is when all have ended but so many, who would wait for it."""
    closing = asyncio.create_task(server.close())
    await until(lambda: server.stats().active == staying)
    async with asyncio.timeout(PATIENCE / 2):
        await server.close(0)
        await closing


@pytest.mark.parametrize("behaviour", STREAMS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_bad_handler(
    request: pytest.FixtureRequest, kind: str, behaviour: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Others are served beside it and after it; the counters say what became of it; an error is told once."""
    transport: Transport = request.getfixturevalue(kind)
    told: list[BaseException] = []

    async def handler(stream: Stream) -> None:
        data = await stream.receive()
        if data == b"misbehave":
            await behaviour(stream)
        else:
            await stream.send(data.upper())
            await upper(stream)

    outcome = STREAMS[behaviour]
    options: dict[str, Any] = {"drain_timeout": PATIENCE, "on_error": lambda exc, _: told.append(exc)}
    async with transport.serve(handler, **options) as server, contextlib.AsyncExitStack() as stack:

        async def connect() -> Client:
            client = await transport.connect(server)
            stack.callback(client.close)
            return client

        good = await connect()
        for _ in range(3):
            await (await connect()).send(b"misbehave")
            assert await good.ask(b"beside") == b"BESIDE"
        await until(lambda: server.stats().bytes_received >= 3 * len(b"misbehavebeside"))
        assert await (await connect()).ask(b"after") == b"AFTER"
        await close_at_once(server, 3 * (behaviour in STAYING))
        now = server.stats()
        until_released.value.set()
    assert is_balanced(server)
    assert (now.active, getattr(now, outcome) - 2 * (outcome == "completed")) == (0, 3)
    assert len(told) == len(errors_in(caplog)) == now.failed == 3 * (outcome == "failed")
    for task in left_behind.value:
        with pytest.raises((anyio.ClosedResourceError, anyio.BrokenResourceError)):
            await task
    figure(f"handler {behaviour.__name__} ({kind})", None, f"{outcome}, told {len(told)} x", "contained, once")


DATAGRAMS: dict[Callable[[Any], Coroutine[Any, Any, Any]], str] = {
    one: outcome
    for one, outcome in STREAMS.items()
    if not {"closes", "cancels", "leaves"} & set(one.__name__.split("_"))
}


@pytest.mark.parametrize("behaviour", DATAGRAMS, ids=lambda one: one.__name__)
async def test_bad_datagram_handler(behaviour: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The same for datagrams."""
    told: list[BaseException] = []

    async def handler(datagram: Datagram) -> bytes | None:
        if datagram.data == b"misbehave":
            await behaviour(datagram)
        return datagram.data.upper()

    options: dict[str, Any] = {"drain_timeout": PATIENCE, "on_error": lambda exc, _: told.append(exc)}
    async with asyncserver.serve_datagrams(handler, "127.0.0.1", 0, **options) as server:
        client = await datagram_client(server)
        for _ in range(3):
            await client.send(b"misbehave")
            assert await client.ask(b"beside") == b"BESIDE"
        await close_at_once(server, 3 * (behaviour in STAYING))
        now = server.stats()
        until_released.value.set()
        client.close()
    assert is_balanced_for_datagrams(server)
    assert (now.active, now.completed, getattr(now, DATAGRAMS[behaviour])) == (0, 3, 3)
    assert len(told) == len(errors_in(caplog)) == now.failed


async def datagram_client(server: asyncserver.Server) -> Client:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.connect(server.addresses[0])
    return Client(sock)


# -- on_error


def fails(exc: BaseException, source: Any) -> None:
    raise RuntimeError


def says_cancelled(exc: BaseException, source: Any) -> None:
    """As from the result of a future that was cancelled."""
    raise asyncio.CancelledError


def aborts(exc: BaseException, source: Any) -> None:
    source.abort()


def takes_its_time(exc: BaseException, source: Any) -> None:
    time.sleep(0.1)


@pytest.mark.parametrize("on_error", [fails, says_cancelled, aborts, takes_its_time], ids=lambda one: one.__name__)
@pytest.mark.parametrize("kind", ["stream", "protocol", "datagram"])
async def test_bad_on_error(on_error: Any, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever on_error does, the connection is closed and counted, and the next one is served."""

    async def handler(source: Any) -> Any:
        data = source.data if kind == "datagram" else await source.receive()
        if data == b"raise":
            raise ValueError
        return data.upper() if kind == "datagram" else await source.send(data.upper())

    if kind == "datagram":
        serving = asyncserver.serve_datagrams(handler, "127.0.0.1", 0, on_error=on_error)
    else:
        made: Any = handler if kind == "stream" else asyncserver.from_protocol(RaiseOrEcho)
        serving = asyncserver.serve(made, "127.0.0.1", 0, on_error=on_error)
    async with serving as server:
        for _ in range(3):
            client = await (datagram_client(server) if kind == "datagram" else Client.connect(server.addresses[0]))
            await client.send(b"raise")
            if kind != "datagram":
                with contextlib.suppress(ConnectionResetError):
                    assert await client.receive() == b""
            client.close()
        await until(lambda: server.stats().failed == 3)
        client = await (datagram_client(server) if kind == "datagram" else Client.connect(server.addresses[0]))
        assert await client.ask(b"served") == b"SERVED"
        client.close()
    assert (server.stats().active, server.stats().failed) == (0, 3)
    assert len([one for one in errors_in(caplog) if one.exc_info[0] is ValueError]) == 3


async def test_on_error_that_closes_the_server(tcp: Transport) -> None:
    """It is told of an error and ends the program's serving: an orderly end."""
    closing: list[asyncio.Task[Any]] = []

    def close(exc: BaseException, source: Any) -> None:
        closing.append(asyncio.get_running_loop().create_task(server.close()))

    async with tcp.serve(raises, on_error=close) as server, tcp.connect(server):
        async with asyncio.timeout(PATIENCE):
            await server.wait_closed()
            assert await asyncio.gather(*closing) == [asyncserver.DrainReport()]
    assert server.stats().failed == 1
