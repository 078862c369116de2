"""Faults that a server has had, and must not have again: drains that lose or wait, closing, contexts."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import asyncserver
from asyncserver import DrainReport, Stream
from tests.kit.clients import Client, TLSClient, open_socket
from tests.kit.handlers import upper, upper_lines_callback
from tests.kit.transports import Transport
from tests.kit.waiting import until, within


async def upper_blocks(stream: Stream) -> None:
    """Answer messages that say in their first byte how long they are."""
    while True:
        (length,) = await stream.receive_exactly(1)
        await stream.send((await stream.receive_exactly(length)).upper())


@pytest.fixture
def short_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncserver.net.socket_info._FIRST_WORDS", 0.05)


# -- what the drain owes


async def test_half_a_message_behind_an_answered_one_is_waited_for(transport: Transport) -> None:
    """A (reader, writer) callback gets the rest of the line that came with the one before, not half of it."""
    async with transport.serve(asyncserver.from_callback(upper_lines_callback), drain_timeout=10) as server:
        client = await transport.connect(server)
        await client.send(b"one\nhal")
        assert await client.receive_exactly(4) == b"ONE\n"
        closing = asyncio.create_task(server.close())
        await until(lambda: not server.sockets)
        await client.send(b"f\n")
        assert await client.receive_all() == b"HALF\n"
        client.close()
        assert await within(closing) == DrainReport(completed=1)


async def test_message_whose_header_was_taken_is_waited_for(transport: Transport) -> None:
    """A header that came with the message before, and was read from the buffer, is the beginning of a message."""
    async with transport.serve(upper_blocks, drain_timeout=10) as server:
        client = await transport.connect(server)
        await client.send(b"\x03one\x04")
        assert await client.receive_exactly(3) == b"ONE"
        closing = asyncio.create_task(server.close())
        await until(lambda: not server.sockets)
        await client.send(b"half")
        assert await client.receive_all() == b"HALF"
        client.close()
        assert await within(closing) == DrainReport(completed=1)


@pytest.mark.parametrize("kind", ["stream", "callback"])
async def test_client_that_always_begins_another_message_cannot_hold_the_drain(transport: Transport, kind: str) -> None:
    """Only messages that had begun when the drain did are waited for, however many more come half."""
    handler: Any = upper_blocks if kind == "stream" else asyncserver.from_callback(upper_lines_callback)
    whole, half, answer = (b"\x02ab", b"\x02", b"AB") if kind == "stream" else (b"a\n", b"", b"A\n")
    rest = whole[len(half) :]
    if kind == "callback":
        half, rest = b"a", b"\n"
    async with transport.serve(handler, drain_timeout=30) as server:
        client = await transport.connect(server)
        await client.send(whole + half)
        assert await client.receive_exactly(2) == answer
        closing = asyncio.create_task(server.close())
        await until(lambda: not server.sockets)
        answers = 0
        with contextlib.suppress(ConnectionError):
            await client.send(rest + half)
            while len(await client.receive_exactly(2)) == 2:
                answers += 1
                assert answers < 5
                await client.send(rest + half)
        client.close()
        assert await within(closing) == DrainReport(completed=1)
        assert answers >= 1


async def test_client_that_pipelines_into_the_drain_is_not_reset(tcp: Transport) -> None:
    """Bytes that come after the drain has said that nothing more will, do not cost the client its answer."""
    ended, release = asyncio.Event(), asyncio.Event()

    async def handler(stream: Stream) -> None:
        await upper(stream)
        ended.set()
        await release.wait()

    async with tcp.serve(handler, drain_timeout=10) as server:
        client = await tcp.connect(server)
        assert await client.ask(b"first") == b"FIRST"
        await client.send(b"second")
        closing = asyncio.create_task(server.close())
        await within(ended.wait())
        await client.send(b"third")  # crosses our end
        release.set()
        assert await client.receive_all() == b"SECOND"  # a reset would raise
        client.close()
        assert await within(closing) == DrainReport(completed=1)


# -- who has yet to say the first byte


async def _dialogue(stream: Stream) -> None:
    """A protocol with STARTTLS; the peer has been told to begin, and is silent."""
    await stream.receive_until(b"\n", 100)
    await stream.send(b"go\n")
    await stream.start_tls(_dialogue.context)  # type: ignore[attr-defined]


_SILENT: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "stream": ("tls", lambda: upper, {}),
    "protocol": ("tls", lambda: asyncserver.from_protocol(asyncio.Protocol), {}),
    "callback": ("tls", lambda: asyncserver.from_callback(upper_lines_callback), {}),
    "proxied stream": ("tcp", lambda: upper, {"proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}),
    "proxied protocol": (
        "tcp",
        lambda: asyncserver.from_protocol(asyncio.Protocol),
        {"proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]},
    ),
}


@pytest.mark.parametrize("kind", list(_SILENT))
@pytest.mark.usefixtures("short_first_byte")
async def test_client_silent_in_its_handshake_does_not_hold_the_drain(
    tcp: Transport, tls: Transport, kind: str
) -> None:
    """Who has connected and not said a byte is between messages: refused, with a proper end, soon.

    Also who waited for a slot, and was accepted only when the server drained.
    """
    transport, handler, options = _SILENT[kind]
    async with (tls if transport == "tls" else tcp).serve(
        handler(), drain_timeout=30, max_connections=1, **options
    ) as server:
        clients = [Client(await open_socket(server.addresses[0])) for _ in range(2)]
        await until(lambda: server.stats().entering == 1)
        closing = asyncio.create_task(server.close())
        for client in clients:
            assert await client.receive_all() == b""
            client.close()
        assert await within(closing, 10) == DrainReport()
        assert (server.stats().accepted, server.stats().refused) == (2, 2)


@pytest.mark.usefixtures("short_first_byte")
async def test_client_silent_after_starttls_does_not_hold_the_drain(tcp: Transport) -> None:
    """Also who was asked to begin with TLS and says nothing."""
    _dialogue.context = tcp.server_context  # type: ignore[attr-defined]
    async with tcp.serve(_dialogue, drain_timeout=30) as server:
        client = await tcp.connect(server)
        await client.send(b"starttls\n")
        assert await client.receive_exactly(3) == b"go\n"
        closing = asyncio.create_task(server.close())
        assert await client.receive_all() == b""
        client.close()
        assert await within(closing, 10) == DrainReport(completed=1)


async def test_hello_that_comes_at_once_is_answered(tls: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has begun with its handshake before the time for the first byte is over gets its answer."""
    monkeypatch.setattr("asyncserver.net.socket_info._FIRST_WORDS", 2)
    async with tls.serve(upper, drain_timeout=30) as server:
        sock = await open_socket(server.addresses[0])
        await until(lambda: server.stats().entering == 1)
        client = TLSClient(sock, tls.client_context)
        with contextlib.suppress(Exception):
            client.tls.do_handshake()
        hello = client._outgoing.read()
        closing = asyncio.create_task(server.close())
        await until(lambda: not server.sockets)
        await client.loop.sock_sendall(sock, hello[:10])
        await asyncio.wait([closing], timeout=2.5)  # longer than a silent client would have
        await client.loop.sock_sendall(sock, hello[10:])
        await client.handshake()
        assert await client.ask(b"hello") == b"HELLO"
        assert await client.receive_all() == b""
        client.close()
        assert await within(closing) == DrainReport(completed=1)


async def test_silent_handshake_of_a_protocol_times_out(tls: Transport) -> None:
    """The time for the first byte is a part of the handshake's."""
    handler = asyncserver.from_protocol(asyncio.Protocol)
    async with tls.serve(handler, ssl_handshake_timeout=0.1) as server:
        client = Client(await open_socket(server.addresses[0]))
        assert await client.receive_all() == b""
        client.close()
        await until(lambda: server.stats().refused == 1)


# -- closing


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.eager_task_factory is new in Python 3.12")
@pytest.mark.parametrize("inside", [False, True])
async def test_close_under_the_eager_task_factory(transport: Transport, inside: bool) -> None:
    """The drain knows who calls close(), also where tasks start at once."""
    loop = asyncio.get_running_loop()
    if type(loop).__module__.startswith("uvloop") and sys.version_info < (3, 14):
        pytest.skip("asyncio's eager_task_factory breaks on uvloop 0.23 before CPython 3.14")

    async def handler(stream: Stream) -> None:
        async for data in stream:
            await stream.send(data.upper())
            if inside:
                await server.close()

    loop.set_task_factory(vars(asyncio)["eager_task_factory"])  # which type checkers of 3.11 do not know
    try:
        async with transport.serve(handler, drain_timeout=10) as server, transport.connect(server) as client:
            assert await client.ask(b"hello") == b"HELLO"
            if not inside:
                await within(server.close(), 5)
            assert await client.receive_all() == b""
            await within(server.wait_closed(), 5)
        assert (server.stats().completed, server.stats().cancelled) == (1, 0)
    finally:
        loop.set_task_factory(None)


async def test_callback_that_closes_the_server_is_not_waited_for(transport: Transport) -> None:
    """close() inside a (reader, writer) callback returns while that callback runs."""
    reports = []

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        reports.append(await within(server.close(), 5))
        writer.write(b"closed\n")
        writer.close()

    async with transport.serve(asyncserver.from_callback(callback), drain_timeout=10) as server:
        client = await transport.connect(server)
        await client.send(b"close\n")
        assert await client.receive_all() == b"closed\n"
        client.close()
        await within(server.wait_closed(), 5)
        assert reports == [DrainReport()]
        assert (server.stats().completed, server.stats().cancelled) == (1, 0)


# -- contexts

_whose: contextvars.ContextVar[str] = contextvars.ContextVar("_whose", default="the server's")


@pytest.mark.parametrize("kind", ["stream", "protocol", "callback"])
async def test_context_of_who_resumes_is_not_the_handlers(transport: Transport, kind: str) -> None:
    """Handlers run in the context in which the server started, whoever pauses, resumes or makes room."""
    seen: list[str] = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            seen.append(_whose.get())
            transport.close()

    async def handler(stream: Stream) -> None:
        seen.append(_whose.get())

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(_whose.get())
        writer.close()

    async def resume() -> None:
        _whose.set("somebody else's")
        server.pause()
        await anyio.lowlevel.checkpoint()
        server.resume()

    handlers: dict[str, Any] = {
        "stream": handler,
        "protocol": asyncserver.from_protocol(Protocol),
        "callback": asyncserver.from_callback(callback),
    }
    async with transport.serve(handlers[kind], max_connections=1) as server:
        await asyncio.create_task(resume())
        for number in (1, 2):
            client = await within(transport.connect(server))
            assert await client.receive_all() == b""
            client.close()
            while server.stats().completed < number:
                await asyncio.sleep(0)
    assert seen == ["the server's"] * 2
