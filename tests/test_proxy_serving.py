"""Servers behind a proxy: whose connections are taken, what of them reaches the handler, and what is left unread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import socketserver
import ssl
import struct
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trustme
from anyio.abc import SocketAttribute

import asyncserver
import compat
from asyncserver import stream_server
from asyncserver.proxy_protocol import HeaderParser

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from asyncserver import Server, Stream

LINE = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
CLIENT = ("192.0.2.1", 56324)
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
INET = socket.inet_aton(CLIENT[0]) + socket.inet_aton("198.51.100.2") + struct.pack("!HH", CLIENT[1], 443)
BINARY = SIGNATURE + b"\x21\x11" + struct.pack("!H", len(INET) + 8) + INET + b"\xe1\0\5hello"
UNIX = SIGNATURE + b"\x21\x31\0\xd8" + b"/run/client".ljust(108, b"\0") + bytes(108)


async def tell(stream: Stream) -> None:
    """Answer the first bytes with the client's address and those bytes."""
    data = await stream.receive()
    await stream.send(repr(stream.peer_address).encode() + b" " + data)


async def ask(server: Server, data: bytes) -> bytes:
    """Send all at once, then read to the end; a reset is no answer."""
    reader, writer = await asyncio.open_connection(*server.addresses[0][:2])
    writer.write(data)
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def proxied(handler: Any, **options: Any) -> asyncserver.Serving:
    return asyncserver.serve(handler, "127.0.0.1", 0, proxy_protocol=True, **options)


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

    async with proxied(handler) as server:
        _, writer = await asyncio.open_connection(*server.addresses[0])
        own = writer.get_extra_info("sockname")
        writer.write(header)
        writer.write_eof()
        await server.close()
        writer.close()
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
    async with proxied(tell) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header[:-1]:
            writer.write(bytes([byte]))
            assert await fed.get() == bytes([byte])
            assert [stream._unread() for stream in server.connections] == [0]
        writer.write(header[-1:] + b"question")
        assert await reader.read() == b"('192.0.2.1', 56324) question"
        assert fed.qsize() == 1
        writer.close()


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


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


class Telling(asyncio.Protocol):
    """An existing protocol that answers as `tell` does."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.transport.get_extra_info("proxy_header").version in {1, 2}
        self.transport.write(repr(self.transport.get_extra_info("peername")).encode() + b" " + data)
        self.transport.close()


@pytest.mark.parametrize("handler", [tell, asyncserver.from_protocol(Telling)])
@pytest.mark.parametrize("header", [LINE, BINARY])
async def test_tls_behind_the_header(handler: Any, header: bytes) -> None:
    """The ClientHello that came along with the header is still there for TLS, in streams and in protocols."""
    theirs, ours = contexts()
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


KINDS = [tell, asyncserver.from_protocol(Telling)]


@pytest.mark.parametrize("handler", KINDS)
async def test_spoofed_header_from_an_untrusted_address(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever is no trusted proxy is refused whatever it says, counted, and shown once in the log."""
    async with proxied(handler, trusted_proxies=["10.0.0.0/8"]) as server:
        for _ in range(3):
            assert await ask(server, LINE + b"question") == b""
    stats = server.stats()
    assert (stats.accepted, stats.refused, stats.proxy_untrusted, stats.completed) == (3, 3, 3, 0)
    assert [record.levelname for record in caplog.records if record.levelno >= logging.INFO] == ["WARNING"]
    assert "127.0.0.1" in caplog.text
    assert "trusted_proxies" in caplog.text


@pytest.mark.parametrize("handler", KINDS)
@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 1.2.3 4.5.6.7 8 9\r\n" + b"x" * 999, BINARY[:-1]]
)
async def test_missing_or_malformed_header(handler: Any, data: bytes) -> None:
    """A trusted proxy that sends no header, a wrong one or half of one is refused at once and counted."""
    async with proxied(handler) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(data)
        if data == BINARY[:-1]:
            writer.write_eof()
        with contextlib.suppress(ConnectionResetError):  # as good
            assert await reader.read() == b""
        writer.close()
    stats = server.stats()
    assert (stats.refused, stats.proxy_invalid, stats.active, stats.completed) == (1, 1, 0, 0)


@pytest.mark.parametrize("handler", KINDS)
async def test_header_that_does_not_come_in_time(handler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that is dribbled ends the connection, however regular its bytes, and has a counter of its own."""
    monkeypatch.setattr(stream_server, "_PROXY_TIMEOUT", 0.1)
    header = SIGNATURE + b"\x21\x11" + struct.pack("!H", 0xFFFF) + INET
    async with proxied(handler) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        ended = asyncio.create_task(reader.read())
        sent = 0
        while not ended.done():
            writer.write(header[sent : sent + 1] or b"\0")
            sent += 1
            await asyncio.wait([ended], timeout=0.01)
        with contextlib.suppress(ConnectionResetError):
            assert await ended == b""
        writer.close()
    stats = server.stats()
    assert (stats.refused, stats.proxy_timed_out, stats.proxy_invalid) == (1, 1, 0)
    assert 1 < sent < 0xFFFF


@pytest.mark.parametrize("handler", KINDS)
async def test_limit_per_host_counts_clients(handler: Any) -> None:
    """Two clients of one proxy are two hosts; a client's second connection is refused until its first has ended."""
    async with proxied(handler, max_connections_per_host=1) as server:
        first_reader, first = await asyncio.open_connection(*server.addresses[0])
        first.write(LINE)
        other = LINE.replace(b"192.0.2.1", b"192.0.2.9")
        assert await ask(server, other + b"a") == b"('192.0.2.9', 56324) a"
        assert await ask(server, LINE + b"b") == b""
        first.write(b"c")
        assert await first_reader.read() == b"('192.0.2.1', 56324) c"
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


@pytest.mark.parametrize("handler", KINDS)
async def test_header_on_its_way_when_the_drain_begins(handler: Any) -> None:
    """A connection accepted before the drain whose header comes after its beginning is served its question."""
    async with proxied(handler) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        while not server.connections:
            await anyio.lowlevel.checkpoint()
        closing = asyncio.create_task(server.close(10))
        while server.sockets:
            await anyio.lowlevel.checkpoint()
        writer.write(LINE)
        while not any(connection.peer_address == CLIENT for connection in server.connections):
            await anyio.lowlevel.checkpoint()
        for _ in range(20):  # time to do the wrong thing, and end the connection
            await anyio.lowlevel.checkpoint()
        writer.write(b"question")
        assert await reader.read() == b"('192.0.2.1', 56324) question"
        assert await closing == asyncserver.DrainReport(completed=1)
        writer.close()


async def test_no_header_when_the_drain_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose header never comes holds the drain up for the header's time limit and no longer."""
    monkeypatch.setattr(stream_server, "_PROXY_TIMEOUT", 0.1)
    async with proxied(tell) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        while not server.connections:
            await anyio.lowlevel.checkpoint()
        async with asyncio.timeout(5):
            assert await server.close(30) == asyncserver.DrainReport()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    assert server.stats().proxy_timed_out == 1


@pytest.mark.parametrize("handler", KINDS)
async def test_silent_client_behind_a_proxy_does_not_hold_the_drain_up(handler: Any) -> None:
    """Header here, nothing said: as without a proxy, it is between two messages and its stream ends."""
    async with proxied(handler) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(LINE)
        while not any(connection.peer_address == CLIENT for connection in server.connections):
            await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        async with asyncio.timeout(5):
            await server.close(30)
        assert await reader.read() == b""
        writer.close()
        assert not server._poller._connections  # type: ignore[attr-defined] # nobody watches a socket given away


async def test_idle_timeout_begins_behind_the_header() -> None:
    """Waiting for a header has its own limit: it is not the client that is idle."""
    lost: asyncio.Queue[Any] = asyncio.Queue()

    class Losing(Telling):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.put_nowait(self.transport.get_extra_info("peername"))

    async with proxied(asyncserver.from_protocol(Losing), idle_timeout=0.05) as server:
        early, first = await asyncio.open_connection(*server.addresses[0])
        _, second = await asyncio.open_connection(*server.addresses[0])
        second.write(LINE)
        assert await lost.get() == CLIENT
        first.write(LINE + b"late")
        assert await early.read() == b"('192.0.2.1', 56324) late"
        first.close()
        second.close()
    stats = server.stats()
    assert (stats.completed, stats.timed_out) == (1, 1)


@pytest.mark.parametrize(("names", "answer"), [((), b"('192.0.2.1', 56324) a"), (["unix"], b"('192.0.2.1', 56324) a")])
async def test_unix_socket(names: Sequence[str], answer: bytes, tmp_path: Path) -> None:
    """Through a Unix socket, too; by default, and by name."""
    path = str(tmp_path / "s")
    async with asyncserver.serve(tell, path=path, proxy_protocol=True, trusted_proxies=names):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(LINE + b"a")
        assert await reader.read() == answer
        writer.close()
