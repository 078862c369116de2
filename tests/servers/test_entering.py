"""Nobody gets at a connection before it has been let in: by its PROXY header, its host's limit, its TLS handshake."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Self

import anyio
import pytest

import asyncserver
from tests.kit.checks import is_balanced
from tests.kit.clients import Client, TLSClient, open_socket
from tests.kit.handlers import upper
from tests.kit.proxy_headers import LINE
from tests.kit.waiting import until, within

if TYPE_CHECKING:
    import ssl

    from asyncserver import Server


class Upper(asyncio.Protocol):
    """Send back in capitals whatever comes."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data.upper())


async def upper_callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same as a callback."""
    while data := await reader.read(100):
        writer.write(data.upper())
    writer.close()


HANDLERS = [upper, asyncserver.from_protocol(Upper), asyncserver.from_callback(upper_callback)]
WAYS = ["proxy", "tls", "proxy and tls"]


class Intruder:
    """Sends to whatever `server.connections` shows, in each round of the loop, as a careless broadcaster would."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.seen: set[Any] = set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._intrude())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _intrude(self) -> None:
        while True:
            for connection in self._server.connections:
                self.seen.add(connection)
                with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError, AttributeError):
                    await connection.send(b"SECRET")
            await asyncio.sleep(0)


@pytest.mark.parametrize("handler", HANDLERS, ids=["stream", "protocol", "callback"])
@pytest.mark.parametrize("way", WAYS)
async def test_connection_is_shown_when_it_has_been_let_in(
    way: str, handler: Any, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """Not before, from the accept on; until then it is counted apart."""
    options: dict[str, Any] = {"proxy_protocol": "proxy" in way, "ssl": server_context if "tls" in way else None}
    async with asyncserver.serve(handler, "127.0.0.1", 0, drain_timeout=0.2, **options) as server:
        async with Intruder(server) as intruder:
            client = Client(await open_socket(server.addresses[0]))
            await until(lambda: server.stats().entering)
            for piece in [LINE[:10], LINE[10:]] if "proxy" in way else []:
                assert (server.connections, server.stats().active) == (frozenset(), 0)
                await client.send(piece)
                await asyncio.sleep(0.01)  # the intruder's: nothing to wait for, as nothing may happen
            if "tls" in way:
                assert not intruder.seen
                client = TLSClient(client.sock, client_context)
                await client.handshake()  # which plain bytes would break
            await until(lambda: server.connections)
        assert (server.stats().active, server.stats().entering) == (1, 0)
        assert is_balanced(server)
        await client.send(b"hello")
        answer = b""
        while not answer.endswith(b"HELLO"):
            answer += await client.receive()
        client.close()


@pytest.mark.parametrize("tls", [False, True])
async def test_stream_that_has_not_been_let_in_refuses_to_send(
    tls: bool, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """Also to whoever has got hold of it in some other way."""
    context = server_context if tls else None
    async with asyncserver.serve(upper, "127.0.0.1", 0, proxy_protocol=True, ssl=context) as server:
        client = Client(await open_socket(server.addresses[0]))
        await until(lambda: server.stats().entering)
        (stream,) = server._live.values()  # type: ignore[attr-defined]
        for use in (stream.send(b"SECRET"), stream.send_eof()):
            with pytest.raises((anyio.ClosedResourceError, anyio.BrokenResourceError)):
                await use
        for use in (stream.receive(), stream.receive_exactly(1), stream.receive_until(b"\n", 100)):
            with pytest.raises((anyio.BrokenResourceError, anyio.BusyResourceError)):
                await use
        await client.send(LINE)
        if tls:
            client = TLSClient(client.sock, client_context)
            await client.handshake()
        assert await client.ask(b"hello") == b"HELLO"
        client.close()


async def test_host_over_its_limit_is_never_shown() -> None:
    """Behind a proxy its limit is known only when its header has come."""
    async with asyncserver.serve(upper, "127.0.0.1", 0, proxy_protocol=True, max_connections_per_host=1) as server:
        first = Client(await open_socket(server.addresses[0]))
        await first.send(LINE + b"hello")
        assert await first.receive_exactly(5) == b"HELLO"
        shown = server.connections
        async with Intruder(server) as intruder:
            second = Client(await open_socket(server.addresses[0]))
            await second.send(LINE)
            with contextlib.suppress(ConnectionResetError):
                assert await second.receive_all() == b""
            await until(lambda: server.stats().refused)
        assert intruder.seen == shown
        first.close()
        second.close()


async def test_connection_that_is_not_let_in_leaves_nothing_behind(server_context: ssl.SSLContext) -> None:
    """Hanging up in the header, in the handshake, and a drain in both."""
    async with asyncserver.serve(
        upper, "127.0.0.1", 0, proxy_protocol=True, ssl=server_context, drain_timeout=0.1
    ) as server:
        for sent in (b"", LINE[:5], LINE, LINE + b"\x16"):
            client = Client(await open_socket(server.addresses[0]))
            await client.send(sent)
            await until(lambda: server.stats().entering)
            client.close()
            await until(lambda: not server.stats().entering)
        staying = [Client(await open_socket(server.addresses[0])) for _ in range(2)]
        await staying[1].send(LINE + b"\x16")
        await until(lambda: server.stats().entering == 2)
        await within(server.close())
        assert not server._entering  # type: ignore[attr-defined]
        assert is_balanced(server)
        for client in staying:
            client.close()


async def test_idle_timeout_begins_when_the_connection_is_let_in(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """A handshake that takes longer is not the client's silence, and leaves no mark for its first word."""
    async with asyncserver.serve(upper, "127.0.0.1", 0, ssl=server_context, idle_timeout=0.4) as server:
        client = TLSClient(await open_socket(server.addresses[0]), client_context)
        begun = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() - begun > 1)
        await client.handshake()
        assert await client.ask(b"hello") == b"HELLO"
        client.close()
        await until(lambda: server.stats().completed)
        assert server.stats().timed_out == 0
