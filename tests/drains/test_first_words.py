"""Drain of those who have just connected: their first bytes are on their way, and waited for a moment."""

from __future__ import annotations

import asyncio
import socketserver
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import asyncserver
import compat
from asyncserver.net import socket_info as _kernel
from asyncserver.net.socket_info import first_words_due
from tests.kit.handlers import UpperProtocol, upper
from tests.kit.proxy_headers import LINE
from tests.kit.transports import KINDS, Transport
from tests.kit.waiting import PATIENCE, until, within

HANDLERS = [pytest.param(upper, id="stream"), pytest.param(asyncserver.from_protocol(UpperProtocol), id="protocol")]


@pytest.mark.usefixtures("slow_clients", "short_pause")
@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("kind", KINDS)
async def test_first_question_on_its_way_when_the_drain_begins_is_answered(
    kind: str, handler: Any, tmp_path: Path
) -> None:
    """Connected, not asked yet, and the server drains: the question that comes then is answered, and no second one."""
    transport = Transport(kind, tmp_path)
    async with transport.serve(handler) as server, transport.connect(server) as client:
        await until(lambda: server.connections)
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: not server.sockets)
        assert await client.ask(b"question") == b"QUESTION"
        assert await client.receive() == b""
        assert await closing == asyncserver.DrainReport(completed=1)


@pytest.mark.usefixtures("slow_clients", "short_pause")
@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("header_first", [True, False])
async def test_first_question_behind_a_proxy(*, header_first: bool, handler: Any, tmp_path: Path) -> None:
    """The moment begins with the header that the proxy sends, before the drain or after its beginning."""
    transport = Transport("tcp", tmp_path)
    async with transport.serve(handler, proxy_protocol=True) as server, transport.connect(server) as client:
        await until(lambda: server.stats().entering)
        if header_first:
            await client.send(LINE)
            await until(lambda: any(one.peer_address[0] == "192.0.2.1" for one in server.connections))
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: not server.sockets)
        if not header_first:
            await client.send(LINE)
        assert await client.ask(b"question") == b"QUESTION"
        assert await closing == asyncserver.DrainReport(completed=1)


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("kind", KINDS)
async def test_who_says_nothing_is_waited_for_no_longer_than_a_moment(
    kind: str, handler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent connection ends by itself, far from the deadline."""
    monkeypatch.setattr(_kernel, "_FIRST_WORDS", 0.05)
    transport = Transport(kind, tmp_path)
    async with transport.serve(handler) as server, transport.connect(server) as client:
        # Under TLS until its session tickets are here: for who is in the middle of the handshake more is waited.
        await until(lambda: server.connections and (kind != "tls" or _kernel.unread(client.sock.fileno())))
        began = time.monotonic()
        assert await server.close(PATIENCE) == asyncserver.DrainReport(completed=1)
        assert time.monotonic() - began < PATIENCE / 2
        assert await client.receive() == b""


@pytest.mark.parametrize("handler", HANDLERS)
async def test_who_has_been_silent_for_long_is_not_waited_for(
    handler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment counts from the connection's beginning, not from the drain's."""
    scheduled: list[str] = []
    transport = Transport("tcp", tmp_path)
    async with transport.serve(handler) as server, transport.connect(server) as client:
        await until(lambda: server.connections)
        (connection,) = server.connections
        assert first_words_due(connection._sock, 0) <= 0.5
        await until(lambda: first_words_due(connection._sock, 0) == 0)
        loop, original = server._loop, server._loop.call_later

        def call_later(delay: float, callback: Any, *arguments: Any, **options: Any) -> Any:
            scheduled.append(getattr(callback, "__name__", ""))
            return original(delay, callback, *arguments, **options)

        monkeypatch.setattr(loop, "call_later", call_later)
        await server.close()
        assert await client.receive() == b""
    assert "_await_first_words" not in scheduled


async def test_who_was_greeted_is_between_two_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server speaks first, its greeting is a message: the next one is the client's to send elsewhere."""
    monkeypatch.setattr(_kernel, "_FIRST_WORDS", PATIENCE)

    async def greeting(stream: asyncserver.Stream) -> None:
        await stream.send(b"hello\n")
        await upper(stream)

    transport = Transport("tcp", tmp_path)
    async with transport.serve(greeting) as server, transport.connect(server) as client:
        assert await client.receive_exactly(6) == b"hello\n"
        async with asyncio.timeout(PATIENCE / 2):
            assert await server.close(PATIENCE) == asyncserver.DrainReport(completed=1)


#: Set once the server drains: then it is time to greet.
DRAINING = threading.Event()


class Greeting(UpperProtocol):
    """Speaks first, once the server drains."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.greeting = asyncio.create_task(self.greet())

    async def greet(self) -> None:
        await until(DRAINING.is_set)
        self.transport.write(b"welcome")


async def greet(stream: asyncserver.Stream) -> None:
    await until(DRAINING.is_set)
    await stream.send(b"welcome")
    await upper(stream)


class HostedGreeting(socketserver.BaseRequestHandler):
    """The same in a thread."""

    def handle(self) -> None:
        DRAINING.wait(PATIENCE)
        self.request.sendall(b"welcome")
        while data := self.request.recv(1000):
            self.request.sendall(data.upper())


GREETINGS = {
    "stream": greet,
    "protocol": asyncserver.from_protocol(Greeting),
    "hosted": compat.hosted(HostedGreeting),
}


@pytest.mark.usefixtures("short_pause")
@pytest.mark.parametrize("name", GREETINGS)
async def test_who_is_greeted_while_first_words_are_waited_for_holds_no_drain(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server sends meanwhile is no first word of the client."""
    monkeypatch.setattr(_kernel, "_FIRST_WORDS", 1.5)  # as a busy machine begins the drain late
    DRAINING.clear()
    transport = Transport("tcp", tmp_path)
    async with transport.serve(GREETINGS[name]) as server, transport.connect(server) as client:
        await until(lambda: server.connections)
        closing = asyncio.create_task(server.close(2 * PATIENCE))
        await until(lambda: not server.sockets)
        DRAINING.set()
        assert await client.receive_all() == b"welcome"
        assert await within(closing) == asyncserver.DrainReport(completed=1)
