"""Cancellation at every scheduling point of a handler: nothing is left, and the server's counters balance."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

import asyncserver
from asyncserver import Server, Stream
from asyncserver.servers.handlers import HandlerServer
from tests.kit.checks import is_balanced
from tests.kit.clients import Client, TLSClient, open_socket
from tests.kit.handlers import UpperProtocol, upper
from tests.kit.sweep import Cut, sweep
from tests.kit.transports import Transport
from tests.kit.waiting import until, within


def cut_handlers(server: Server, cut: Cut) -> None:
    """Cut what the server runs for its next connection: header, handshake, handler."""
    assert isinstance(server, HandlerServer)
    run: Callable[[Any], Any] = server._run
    others = iter([lambda connection: cut.here(run(connection))])
    server._run = lambda connection: next(others, run)(connection)


async def still_serves(transport: Transport, server: Server) -> None:
    """One more client, and then the accounts."""
    client = await within(transport.connect(server))
    assert await client.ask(b"hello") == b"HELLO"
    client.close()
    await until(lambda: not server._busy())
    assert is_balanced(server)
    assert not server._poller._connections  # type: ignore[attr-defined]


async def talk(transport: Transport, server: Server, act: Callable[[Client], Awaitable[object]]) -> None:
    """Be a client whose server may go at any time."""
    with contextlib.suppress(OSError, EOFError):
        client = Client(await open_socket(server.addresses[0]))
        try:
            if transport.tls:
                client = TLSClient(client.sock, transport.client_context)
                await client.handshake()
            await until(lambda: server.stats().accepted)  # it waits for us
            await act(client)
            await client.receive_all()
        finally:
            client.close()


def _handler(cut: Cut, first: Callable[[Stream], Awaitable[object]]) -> Callable[[Stream], Any]:
    """The first connection gets the handler that is cut, the others capitals."""
    handlers = iter([first])

    async def handler(stream: Stream) -> None:
        act = next(handlers, None)
        await (upper(stream) if act is None else cut.here(act(stream)))  # type: ignore[arg-type]

    return handler


async def test_receiving(transport: Transport) -> None:
    """A handler that receives in every way, and its handshake."""

    async def receive(stream: Stream) -> None:
        assert await stream.receive(3) == b"abc"
        assert await stream.receive_until(b";", 100) == b"def"
        assert await stream.receive_exactly(6) == b"ghijkl"
        assert await stream.receive() == b"m"
        with pytest.raises(anyio.IncompleteRead):
            await stream.receive_exactly(2)

    async def ask(client: Client) -> None:
        for part in (b"abc", b"de", b"f;gh", b"ijkl", b"m", b"n"):
            await client.send(part)
            for _ in range(3):
                await asyncio.sleep(0)
        await client.send_eof()

    async def scenario(cut: Cut) -> None:
        async def handler(stream: Stream) -> None:
            await (receive if server.stats().accepted == 1 else upper)(stream)

        async with transport.serve(handler) as server:
            cut_handlers(server, cut)
            await talk(transport, server, ask)
            await still_serves(transport, server)

    assert await sweep(scenario) >= 3


async def test_sending_much(transport: Transport) -> None:
    """A handler that sends more than the kernel takes at once, and closes by itself."""

    async def send(stream: Stream) -> None:
        stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        await stream.send(bytes(1 << 19))
        await stream.send_eof()
        await stream.aclose()

    async def scenario(cut: Cut) -> None:
        async with transport.serve(_handler(cut, send)) as server:
            await talk(transport, server, lambda client: client.receive(1))
            await still_serves(transport, server)

    assert await sweep(scenario) >= 3


async def test_start_tls(tcp: Transport) -> None:
    """A handler that goes over to TLS in the middle."""

    async def secure(stream: Stream) -> None:
        assert await stream.receive_exactly(8) == b"starttls"
        await stream.send(b"go")
        await stream.start_tls(tcp.server_context)
        await upper(stream)

    async def scenario(cut: Cut) -> None:
        async with tcp.serve(_handler(cut, secure)) as server:
            with contextlib.suppress(OSError):
                sock = await open_socket(server.addresses[0])
                plain, client = Client(sock), TLSClient(sock, tcp.client_context)
                await plain.send(b"starttls")
                if await plain.receive_exactly(2) == b"go":
                    await client.handshake()
                    await client.send(b"hello")
                    await client.send_eof()
                    await client.receive_all()
            sock.close()
            await still_serves(tcp, server)

    assert await sweep(scenario) >= 6


@pytest.mark.parametrize("unread", [False, True])
async def test_aclose(transport: Transport, unread: bool) -> None:
    """A handler that closes, with bytes in the kernel that nobody has read, or without."""

    begun = asyncio.Event()

    async def close(stream: Stream) -> None:
        begun.set()
        await stream.receive_exactly(1)
        await stream.send(b"answer")
        await stream.aclose()

    async def ask(client: Client) -> None:
        await within(begun.wait())
        await client.send(b"x" * (50_000 if unread else 1))

    async def scenario(cut: Cut) -> None:
        async with transport.serve(_handler(cut, close)) as server:
            begun.clear()
            await talk(transport, server, ask)
            await still_serves(transport, server)

    assert await sweep(scenario) >= 3


async def test_what_the_server_closes(transport: Transport) -> None:
    """The server's own task that ends a connection after its handler, when the peer does not."""

    async def one_byte(stream: Stream) -> None:
        if await stream.receive(1) == b"x":
            await stream.send(b"answer")
        else:
            await upper(stream)

    async def scenario(cut: Cut) -> None:
        async with transport.serve(one_byte) as server:
            assert isinstance(server, HandlerServer)
            finish = server._close_source
            cuts = iter([cut.here])

            def cut_finish(source: Any) -> Any:
                coroutine = finish(source)
                here = next(cuts, None)
                return coroutine if coroutine is None or here is None else here(coroutine)

            server._close_source = cut_finish  # type: ignore[method-assign]
            await talk(transport, server, lambda client: client.send(b"x" * 50_000))
            await until(lambda: not server._busy())
            assert is_balanced(server)

    assert await sweep(scenario) >= 1


async def test_proxy_header(tcp: Transport) -> None:
    """A header that comes in pieces, before a handler."""
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 2000\r\n"

    async def ask(client: Client) -> None:
        for part in (header[:5], header[5:20], header[20:] + b"he", b"llo"):
            await client.send(part)
            for _ in range(3):
                await asyncio.sleep(0)
        await client.send_eof()

    async def scenario(cut: Cut) -> None:
        async with tcp.serve(upper, proxy_protocol=True, max_connections_per_host=1) as server:
            cut_handlers(server, cut)
            await talk(tcp, server, ask)
            await until(lambda: not server._busy())
            client = await tcp.connect(server)
            await client.send(header)
            assert await client.ask(b"hello") == b"HELLO"
            client.close()
            await until(lambda: not server._busy())
            assert is_balanced(server)
            assert not server._per_host  # type: ignore[attr-defined]
            assert not server._unnamed  # type: ignore[attr-defined]

    assert await sweep(scenario) >= 9


async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(100):
            writer.write(data.upper())
            await writer.drain()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "make", [lambda: asyncserver.from_protocol(UpperProtocol), lambda: asyncserver.from_callback(callback)]
)
async def test_protocols(transport: Transport, make: Callable[[], Any]) -> None:
    """What the server runs around an existing protocol, from the first byte to the end of the transport."""

    async def ask(client: Client) -> None:
        assert await client.receive_exactly(0) == b""
        await client.send(b"hello")
        await client.receive_exactly(5)
        await client.send_eof()

    async def scenario(cut: Cut) -> None:
        async with transport.serve(make()) as server:
            cut_handlers(server, cut)
            await talk(transport, server, ask)
            await still_serves(transport, server)

    assert await sweep(scenario) >= 3
