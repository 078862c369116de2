"""Servers behind a proxy: what of a header reaches handlers, limits and logs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import socketserver
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from anyio.abc import SocketAttribute

import asyncserver
import compat
from asyncserver import Stream
from asyncserver.proxy.proxy_protocol import HeaderParser
from tests.kit.certificates import client_context, plain_context
from tests.kit.clients import Client
from tests.kit.proxy_headers import BINARY, CLIENT, KINDS, LINE, SIGNATURE, Telling, ask, proxied, tell

UNIX = SIGNATURE + b"\x21\x31\0\xd8" + b"/run/client".ljust(108, b"\0") + bytes(108)


@pytest.mark.parametrize("header", [LINE, BINARY])
async def test_the_client_is_whom_the_header_names(header: bytes) -> None:
    """Header and first bytes in one segment: the handler gets the address and the bytes, and only those count."""
    async with proxied(tell) as server:
        assert await ask(server, header + b"question") == b"('192.0.2.1', 56324) question"
        await server.close()
        stats = server.stats()
    assert (stats.completed, stats.refused, stats.bytes_received) == (1, 0, 8)


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x20\0\0\0", SIGNATURE + b"\x21\0\0\0"])
async def test_a_proxy_that_speaks_for_itself(header: bytes) -> None:
    """A health check (LOCAL), or a client of an unknown kind, is served under the connection's own address."""
    seen: list[Any] = []

    async def handler(stream: Stream) -> None:
        seen.append((stream.peer_address, stream.proxy_header))

    async with proxied(handler) as server, Client.connect(server.addresses[0]) as client:
        own = client.sock.getsockname()
        await client.send(header)
        await client.send_eof()
        await server.close()
    address, said = seen[0]
    assert (address, said.source) == (own, None)
    assert server.stats().completed == 1


async def test_header_and_attributes() -> None:
    """The handler finds the header with its TLVs; the typed attributes are the client's, whatever its family."""
    seen: list[Any] = []

    async def handler(stream: Stream) -> None:
        assert stream.proxy_header is not None
        remote = stream.extra(SocketAttribute.remote_address), stream.extra(SocketAttribute.remote_port, None)
        seen.append((*remote, stream.proxy_header.destination, stream.proxy_header.tlv(0xE1)))

    async with proxied(handler) as server:
        await ask(server, BINARY)
        await ask(server, UNIX)
    assert seen == [(CLIENT, CLIENT[1], ("198.51.100.2", 443), b"hello"), ("/run/client", None, "", None)]


async def test_without_a_proxy_there_is_no_header() -> None:
    """Not asked for, the header is the handler's bytes, and the property says None."""
    seen: list[Any] = []

    async def handler(stream: Stream) -> None:
        seen.append((stream.proxy_header, await stream.receive()))

    async with asyncserver.serve(handler, "127.0.0.1", 0) as server:
        await ask(server, LINE)
    assert seen == [(None, LINE)]


@pytest.mark.parametrize("header", [LINE, BINARY])
async def test_dribbled_header(header: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte, each is taken once: none lies in the kernel to be reported again, and none of the next is taken."""
    fed: asyncio.Queue[bytes] = asyncio.Queue()
    original = HeaderParser.feed

    def feed(parser: HeaderParser, data: bytes) -> None:
        original(parser, data)
        fed.put_nowait(data)

    monkeypatch.setattr(HeaderParser, "feed", feed)
    async with proxied(tell) as server, Client.connect(server.addresses[0]) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header[:-1]:
            await client.send(bytes([byte]))
            assert await fed.get() == bytes([byte])
            assert [stream._unread() for stream in server._live.values()] == [0]  # type: ignore[attr-defined]
        await client.send(header[-1:] + b"question")
        assert await client.rest() == b"('192.0.2.1', 56324) question"
        assert fed.qsize() == 1


class GluedHello(asyncio.Protocol):
    """Speaks TLS through memory, so that the header and the ClientHello leave in one segment."""

    def __init__(self, header: bytes, question: bytes, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.header, self.question, self.answer = header, question, b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.step()

    def data_received(self, data: bytes) -> None:
        self.incoming.write(data)
        self.step()

    def step(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):  # more is to come
            self.tls.do_handshake()
            if self.question:
                self.question = self.question[self.tls.write(self.question) :]
            with contextlib.suppress(ssl.SSLZeroReturnError):
                while data := self.tls.read(999):
                    self.answer += data
            self.transport.close()  # the server has ended
        self.transport.write(self.header + self.outgoing.read())
        self.header = b""

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)


@pytest.mark.parametrize("handler", [tell, asyncserver.from_protocol(Telling)])
@pytest.mark.parametrize("header", [LINE, BINARY])
async def test_tls_behind_the_header(handler: Any, header: bytes) -> None:
    """The ClientHello that came along with the header is still there for TLS, in streams and in protocols."""
    theirs, ours = plain_context(), client_context()
    async with proxied(handler, ssl=theirs) as server:
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: GluedHello(header, b"question", ours), *server.addresses[0]
        )
        await client.ended
    assert client.answer == b"('192.0.2.1', 56324) question"


async def told(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as `tell` does, in the manner of `asyncio.start_server`."""
    data = await reader.read(999)
    writer.write(repr(writer.get_extra_info("peername")).encode() + b" " + data)
    writer.close()


@pytest.mark.parametrize("handler", [asyncserver.from_protocol(Telling), asyncserver.from_callback(told)])
async def test_existing_servers_get_the_clients_address(handler: Any) -> None:
    """`get_extra_info("peername")` is the client's, and its bytes arrive."""
    async with proxied(handler) as server:
        assert await ask(server, BINARY + b"question") == b"('192.0.2.1', 56324) question"
    assert server.stats().completed == 1


class Answering(socketserver.BaseRequestHandler):
    """A legacy handler that answers as `tell` does."""

    def handle(self) -> None:
        self.request.sendall(repr(self.client_address).encode() + b" " + self.request.recv(999))


async def test_hosted_handler_classes_get_the_clients_address() -> None:
    """`client_address` of a legacy handler is the client's, and the bytes behind the header are on its socket."""
    async with proxied(compat.hosted(Answering)) as server:
        assert await ask(server, BINARY + b"question") == b"('192.0.2.1', 56324) question"


@pytest.mark.parametrize("handler", KINDS)
async def test_limit_per_host_counts_clients(handler: Any) -> None:
    """Two clients of one proxy are two hosts; a client's second connection is refused until its first has ended."""
    async with (
        proxied(handler, max_connections_per_host=1) as server,
        Client.connect(server.addresses[0]) as first,
    ):
        await first.send(LINE)
        other = LINE.replace(b"192.0.2.1", b"192.0.2.9")
        assert await ask(server, other + b"a") == b"('192.0.2.9', 56324) a"
        assert await ask(server, LINE + b"b") == b""
        await first.send(b"c")
        assert await first.rest() == b"('192.0.2.1', 56324) c"
        first.close()
        assert await ask(server, LINE + b"d") == b"('192.0.2.1', 56324) d"
        await ask(server, b"no header")
    stats = server.stats()
    assert (stats.completed, stats.refused, stats.proxy_invalid) == (3, 2, 1)
    assert not server._per_host  # type: ignore[attr-defined] # nothing is counted for ever


async def test_log_carries_the_clients_address(caplog: pytest.LogCaptureFixture) -> None:
    """The line about a failed handler names the client, not the proxy."""

    async def handler(stream: Stream) -> None:
        raise ValueError(stream)

    async with proxied(handler) as server:
        await ask(server, LINE)
    assert "192.0.2.1" in caplog.text
    assert "127.0.0.1" not in caplog.records[0].getMessage()


@pytest.mark.parametrize(("names", "answer"), [((), b"('192.0.2.1', 56324) a"), (["unix"], b"('192.0.2.1', 56324) a")])
async def test_unix_socket(names: Sequence[str], answer: bytes, tmp_path: Path) -> None:
    """Through a Unix socket, too; by default, and by name."""
    path = str(tmp_path / "s")
    async with asyncserver.serve(tell, path=path, proxy_protocol=True, trusted_proxies=names) as server:
        assert await ask(server, LINE + b"a") == answer
