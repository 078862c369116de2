"""TLS: handshakes that go wrong, what a stream tells of them, client certificates."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute

import asyncserver
from asyncserver import Stream
from tests.kit.checks import is_idle
from tests.kit.clients import Client, TLSClient, open_socket
from tests.kit.handlers import upper
from tests.kit.sockets import reset
from tests.kit.transports import Transport
from tests.kit.waiting import blocked, until, within

# -- the handshake


async def test_certificate_is_verified(tls: Transport) -> None:
    """A client who trusts our authority gets through, and sees the certificate."""
    async with tls.pair() as (stream, client):
        assert isinstance(client, TLSClient)
        assert client.tls.version() in {"TLSv1.2", "TLSv1.3"}
        certificate = client.tls.getpeercert()
        assert certificate is not None
        assert ("DNS", "localhost") in certificate["subjectAltName"]
        assert stream.bytes_received == stream.bytes_sent == 0


async def test_client_that_does_not_trust_us(tls: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """Its alert is a refused connection, no error of ours; the next client is served."""
    async with tls.serve(upper) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            await Client.connect(server.addresses[0], ssl.create_default_context())
        await until(lambda: server.stats().refused + server.stats().completed == 1)
        client = await tls.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        client.close()
        assert server.stats().failed == 0
    assert not [record for record in caplog.records if record.name == "asyncserver"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(1000),
        b"\x16\x03\x01\x00\x05hello",  # a record that says it is a handshake
        b"\xff" * 100_000,
    ],
    ids=["http", "zeros", "no-hello", "long"],
)
async def test_garbage_instead_of_a_client_hello(
    tls: Transport, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused at once, without an error in the log, and never reaches the handler."""
    called = False

    async def handler(stream: Stream) -> None:
        nonlocal called
        called = True

    async with tls.serve(handler) as server:
        client = Client(await open_socket(server.addresses[0]))
        await client.send(garbage)
        await until(lambda: server.stats().refused == 1 or client.sock.fileno() < 0)
        with contextlib.suppress(ConnectionResetError):
            await client.receive_all()
        client.close()
        await until(lambda: is_idle(server))
    assert not called
    assert not [record for record in caplog.records if record.name == "asyncserver"]


@pytest.mark.parametrize("end", ["eof", "close", "reset"])
@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "in-the-middle"])
async def test_client_leaves_during_the_handshake(tls: Transport, end: str, hello: bytes) -> None:
    """Whenever and however it goes: refused, and nothing stays open."""
    async with tls.serve(upper) as server:
        client = Client(await open_socket(server.addresses[0]))
        await client.send(hello)
        await until(lambda: server.stats().entering == 1)
        if end == "eof":
            await client.send_eof()
        elif end == "close":
            client.close()
        else:
            client.reset()
        await until(lambda: server.stats().refused == 1)
        client.close()
        assert server.stats().active == 0


async def test_client_resets_as_its_handshake_begins(tls: Transport) -> None:
    """Between two looks whether it is connected: its descriptor is closed without the garbage collector."""
    taken = []

    class Meanwhile(ssl.SSLContext):
        def wrap_socket(self, sock: Any, *args: Any, **options: Any) -> ssl.SSLSocket:
            taken.append(sock.fileno())
            reset(client.sock)
            return super().wrap_socket(sock, *args, **options)

    async with tls.serve(upper, ssl=Meanwhile(ssl.PROTOCOL_TLS_SERVER)) as server:
        with tls.blocking(server) as client:
            await until(lambda: server.stats().refused == 1)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(taken[0])


async def test_nothing_plain_is_received_after_a_failed_handshake(tcp: Transport) -> None:
    """What comes behind the broken handshake is protected by nothing: to hand it out would be an injection."""
    async with tcp.pair() as (stream, client):
        securing = await blocked(stream.start_tls(tcp.server_context))
        await client.send(b"\x16\x03\x01\x00\x05wrong" + b"\x17\x03\x03\x00\x05plain")
        with pytest.raises(anyio.BrokenResourceError):
            await within(securing)
        for _ in range(2):
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await stream.receive()
            assert isinstance(caught.value.__cause__, ssl.SSLError)


async def test_handshake_timeout(tls: Transport) -> None:
    """A client that says nothing is closed when its time is up; others do not wait for it."""
    async with tls.serve(upper, ssl_handshake_timeout=2) as server:
        silent = Client(await open_socket(server.addresses[0]))
        client = await tls.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        assert await silent.receive_all() == b""
        silent.close()
        await until(lambda: server.stats().refused == 1)
        assert await client.ask(b"still") == b"STILL"
        client.close()


async def test_no_common_version(tls: Transport, client_context: ssl.SSLContext) -> None:
    """A client that speaks less than the server's minimum is refused."""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    strict = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    strict.minimum_version = ssl.TLSVersion.TLSv1_3
    async with tls.serve(upper, ssl=strict) as server:
        with pytest.raises(ssl.SSLError):
            await Client.connect(server.addresses[0], old)
        await until(lambda: server.stats().refused == 1)


# -- what it tells


async def test_tls_attributes(tls: Transport, client_context: ssl.SSLContext, certfile: Path) -> None:
    """anyio's TLS attributes, beside those of the socket."""
    server_context = asyncserver.tls_context(certfile, alpn=("h2", "http/1.1"))
    client_alpn = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_alpn.check_hostname, client_alpn.verify_mode = False, ssl.CERT_NONE
    client_alpn.set_alpn_protocols(["http/1.1"])
    transport = Transport("tls", tls.directory, server_context, client_alpn)
    async with transport.pair() as (stream, client):
        assert isinstance(client, TLSClient)
        assert stream.extra(TLSAttribute.alpn_protocol) == "http/1.1" == client.tls.selected_alpn_protocol()
        assert stream.extra(TLSAttribute.tls_version) == client.tls.version()
        assert stream.extra(TLSAttribute.cipher) == client.tls.cipher()
        assert stream.extra(TLSAttribute.server_side) is True
        assert stream.extra(TLSAttribute.standard_compatible) is True
        assert stream.extra(TLSAttribute.peer_certificate) in (None, {})
        assert stream.extra(TLSAttribute.peer_certificate_binary) is None
        assert stream.extra(TLSAttribute.shared_ciphers)
        assert stream.extra(TLSAttribute.ssl_object) is not None
        stream.extra(TLSAttribute.channel_binding_tls_unique)
        assert stream.extra(SocketAttribute.remote_port) == client.sock.getsockname()[1]


# -- client certificates


@pytest.fixture
def mutual(tmp_path: Path, authority: trustme.CA, certfile: Path) -> asyncserver.TLSContext:
    """A server's context that asks clients for a certificate of our authority."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return asyncserver.tls_context(certfile, client_ca=tmp_path / "ca.pem")


async def test_mutual_tls(tls: Transport, mutual: asyncserver.TLSContext, authority: trustme.CA) -> None:
    """A client with a certificate of the right authority is served, and the handler sees who it is."""

    async def who(stream: Stream) -> None:
        certificate = stream.extra(TLSAttribute.peer_certificate)
        assert certificate is not None
        await stream.send(dict(certificate["subjectAltName"])["email"].encode())  # type: ignore[arg-type]

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    authority.issue_cert("ann@example.org").configure_cert(context)
    async with tls.serve(who, ssl=mutual) as server, Client.connect(server.addresses[0], context) as client:
        assert await client.receive_all() == b"ann@example.org"


@pytest.mark.parametrize("certificate", ["none", "strangers"])
async def test_mutual_tls_refuses_strangers(
    tls: Transport,
    mutual: asyncserver.TLSContext,
    client_context: ssl.SSLContext,
    authority: trustme.CA,
    certificate: str,
) -> None:
    """No certificate, or one of another authority: the handler never sees the client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    if certificate == "strangers":
        trustme.CA().issue_cert("eve@example.org").configure_cert(context)
    async with tls.serve(upper, ssl=mutual) as server:
        with pytest.raises(OSError):  # TLS 1.3 tells a client only after its own side of the handshake
            client = await Client.connect(server.addresses[0], context)
            try:
                await client.ask(b"hello")
                if not await client.receive():
                    raise ConnectionResetError
            finally:
                client.close()
        await until(lambda: server.stats().refused == 1)
        assert server.stats().bytes_received == 0


# -- while the server drains


@pytest.mark.usefixtures("slow_clients")
async def test_handshake_during_the_drain(tls: Transport) -> None:
    """A client that was in the middle of its handshake when the drain began gets its one answer, then the end."""
    async with tls.serve(upper, drain_timeout=10) as server:
        sock = await open_socket(server.addresses[0])
        await until(lambda: server.stats().entering == 1)
        closing = asyncio.create_task(server.close())
        client = TLSClient(sock, tls.client_context)
        await client.handshake()
        await client.send(b"hello")
        assert await client.receive_all() == b"HELLO"
        client.close()
        report = await within(closing, 5)
        assert (report.completed, report.cancelled, report.aborted) == (1, 0, 0)


async def test_any_stage_of_the_handshake(tls: Transport) -> None:
    """A hello that comes byte by byte is a hello."""
    async with tls.serve(upper) as server:
        sock = await open_socket(server.addresses[0])
        client = TLSClient(sock, tls.client_context)
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
        hello = client._outgoing.read()
        for start in range(0, len(hello), 50):
            await client.loop.sock_sendall(sock, hello[start : start + 50])
            await asyncio.sleep(0)
        await client.handshake()
        assert await client.ask(b"hello") == b"HELLO"
        client.close()
