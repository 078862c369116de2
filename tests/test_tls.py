"""TLS: handshakes that go wrong, STARTTLS, truncation, client certificates, new certificates while connections stay."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trustme
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute

import asyncserver
from tests.support import Client, Interrupt, TLSClient, Transport, blocked, eventually, open_socket, within

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from asyncserver import Stream


async def upper(stream: Stream) -> None:
    async for data in stream:
        await stream.send(data.upper())


async def starttls(stream: Stream, context: ssl.SSLContext) -> None:
    """As in RFC 3207: plain lines until the client asks for TLS."""
    while True:
        line = await stream.receive_until(b"\r\n", 100)
        if line == b"STARTTLS":
            await stream.send(b"go ahead\r\n")
            await stream.start_tls(context)
            break
        await stream.send(b"plain " + line + b"\r\n")
    async for data in stream:
        await stream.send(b"secret " + data)


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
        await eventually(lambda: server.stats().refused + server.stats().completed == 1)
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
        await eventually(lambda: server.stats().refused == 1 or client.sock.fileno() < 0)
        with contextlib.suppress(ConnectionResetError):
            await client.receive_all()
        client.close()
        await eventually(lambda: not server.stats().active)
    assert not called
    assert not [record for record in caplog.records if record.name == "asyncserver"]


@pytest.mark.parametrize("end", ["eof", "close", "reset"])
@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "in-the-middle"])
async def test_client_leaves_during_the_handshake(tls: Transport, end: str, hello: bytes) -> None:
    """Whenever and however it goes: refused, and nothing stays open."""
    async with tls.serve(upper) as server:
        client = Client(await open_socket(server.addresses[0]))
        await client.send(hello)
        await eventually(lambda: server.stats().active == 1)
        if end == "eof":
            await client.send_eof()
        elif end == "close":
            client.close()
        else:
            client.reset()
        await eventually(lambda: server.stats().refused == 1)
        client.close()
        assert server.stats().active == 0


async def test_handshake_timeout(tls: Transport) -> None:
    """A client that says nothing is closed when its time is up; others do not wait for it."""
    async with tls.serve(upper, ssl_handshake_timeout=0.2) as server:
        silent = Client(await open_socket(server.addresses[0]))
        client = await tls.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        assert await silent.receive_all() == b""
        silent.close()
        await eventually(lambda: server.stats().refused == 1)
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
        await eventually(lambda: server.stats().refused == 1)


# -- the end of the stream


async def test_truncation_is_no_end(tls: Transport) -> None:
    """A connection that ends without close_notify may lack data: broken, and it stays so."""
    async with tls.pair() as (stream, client):
        await client.send(b"half a mess")
        client.sock.shutdown(socket.SHUT_WR)
        assert await stream.receive() == b"half a mess"
        for _ in range(3):
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await within(stream.receive())
            assert isinstance(caught.value.__cause__, ssl.SSLEOFError)
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive_until(b"\n", 100)


async def test_close_notify_is_an_end(tls: Transport) -> None:
    """The peer sees close_notify before the connection ends, at aclose() and when a handler returns."""

    async def handler(stream: Stream) -> None:
        await stream.send(b"bye")

    async with tls.serve(handler) as server:
        client = await tls.connect(server)
        assert await client.receive_all() == b"bye"
        client.close()


async def test_end_and_data_in_one_segment(tls: Transport) -> None:
    """The peer's last data and its close_notify may come together, and lie in OpenSSL together."""
    async with tls.pair() as (stream, client):
        assert isinstance(client, TLSClient)
        client.tls.write(b"one")
        client.tls.write(b"two")
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
        await client._flush()
        assert await stream.receive_exactly(6) == b"onetwo"
        with pytest.raises(anyio.EndOfStream):
            await within(stream.receive())


async def test_small_receives_from_a_large_record(tls: Transport) -> None:
    """What OpenSSL has decrypted and nobody has taken is found without another event from the kernel."""
    async with tls.pair() as (stream, client):
        data = bytes(range(256)) * 64
        receiving = await blocked(stream.receive(1000))
        await client.send(data)
        received = await within(receiving)
        while len(received) < len(data):
            received += await within(stream.receive(1000))
        assert received == data


async def test_send_eof_to_a_peer_that_does_not_read(tls: Transport) -> None:
    """send_eof() waits for room like any send; what is sent before arrives whole."""
    async with tls.pair() as (stream, client):
        data = bytes(1 << 22)

        async def send() -> None:
            await stream.send(data)
            await stream.send_eof()

        sending = await blocked(send())
        assert await client.receive_all() == data
        await within(sending)
        await client.send(b"thanks")
        assert await stream.receive() == b"thanks"


async def test_reset_while_send_eof_is_under_way(tls: Transport) -> None:
    """A connection that is broken by then says so."""
    async with tls.pair() as (stream, client):
        client.reset()
        with pytest.raises(anyio.BrokenResourceError):
            for _ in range(100):
                await stream.send_eof()
                await stream.receive()


# -- STARTTLS


@pytest.mark.parametrize("name", ["tcp", "unix"])
async def test_starttls_dialogue(
    name: str, tmp_path: Path, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """Plain, then TLS, on one connection and one stream; the end by close_notify."""
    transport = Transport(name, tmp_path, server_context, client_context)
    async with transport.serve(_StartTLS(server_context)) as server:
        client = await transport.connect(server)
        await client.send(b"hello\r\n")
        assert await client.receive() == b"plain hello\r\n"
        await client.send(b"STARTTLS\r\n")
        assert await client.receive() == b"go ahead\r\n"
        secure = TLSClient(client.sock, client_context)
        await secure.handshake()
        await secure.send(b"hello")
        assert await secure.receive() == b"secret hello"
        await secure.send_eof()
        assert await secure.receive_all() == b""
        secure.close()
        await eventually(lambda: server.stats().completed == 1)
        assert server.stats().bytes_received == len(b"hello\r\nSTARTTLS\r\nhello")


class _StartTLS:
    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    async def __call__(self, stream: Stream) -> None:
        await starttls(stream, self.context)


async def test_starttls_with_plain_bytes_behind_is_refused(tcp: Transport) -> None:
    """A command smuggled in behind STARTTLS is never taken for one that came under TLS (CVE-2011-0411)."""
    errors: list[BaseException] = []
    async with tcp.serve(_StartTLS(tcp.server_context), on_error=lambda exc, _: errors.append(exc)) as server:
        client = await tcp.connect(server)
        await client.send(b"STARTTLS\r\nDELETE EVERYTHING\r\n")
        assert await client.receive_all() == b"go ahead\r\n"
        client.close()
        await eventually(lambda: server.stats().failed == 1)
    assert [type(exc) for exc in errors] == [RuntimeError]
    assert "plain bytes" in str(errors[0])


async def test_starttls_with_plain_bytes_in_the_kernel(tcp: Transport) -> None:
    """Also bytes that the stream has not seen yet are not taken for TLS."""
    async with tcp.pair() as (stream, client):
        await client.send(b"DELETE EVERYTHING\r\n")
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await within(stream.start_tls(tcp.server_context))
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()


async def test_start_tls_twice(tls: Transport) -> None:
    """Under TLS there is no second TLS."""
    async with tls.pair() as (stream, client):
        with pytest.raises(RuntimeError, match="under TLS already"):
            await stream.start_tls(tls.server_context)
        await client.send(b"abc")
        assert await stream.receive() == b"abc"


async def test_start_tls_after_send_eof(tcp: Transport) -> None:
    """A handshake needs both directions."""
    async with tcp.pair() as (stream, client):
        await stream.send_eof()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.start_tls(tcp.server_context)
        await client.send(b"abc")
        assert await stream.receive() == b"abc"


async def test_start_tls_while_a_send_waits(tcp: Transport) -> None:
    """A send under way and a handshake do not mix; the send goes on."""
    async with tcp.pair() as (stream, client):
        data = bytes(1 << 23)
        sending = await blocked(stream.send(data))
        with pytest.raises(anyio.BusyResourceError):
            await stream.start_tls(tcp.server_context)
        assert await client.receive_exactly(len(data)) == data
        await within(sending)


async def test_start_tls_with_a_clients_context(tcp: Transport) -> None:
    """A context that cannot be a server's: an error with its cause, and a closed stream; the peer sees the end."""
    async with tcp.pair() as (stream, client):
        with pytest.raises((anyio.BrokenResourceError, ssl.SSLError, ValueError)):
            await stream.start_tls(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        await stream.aclose()
        assert await client.receive_all() == b""


async def test_interrupted_start_tls(tcp: Transport, interrupt: Interrupt) -> None:
    """A handshake that is given up leaves a stream that can only be closed, and nothing open."""
    async with tcp.pair() as (stream, client):
        await within(interrupt(lambda: stream.start_tls(tcp.server_context)))
        for use in (stream.receive(), stream.send(b"x"), stream.send_eof()):
            with pytest.raises(anyio.BrokenResourceError, match="TLS was interrupted"):
                await use
        await within(stream.aclose())
        with contextlib.suppress(ConnectionResetError):
            await client.receive_all()
        assert stream._fd == -1


async def test_aclose_during_start_tls(tcp: Transport) -> None:
    """A handshake that waits when another task closes the stream ends with ClosedResourceError."""
    async with tcp.pair() as (stream, client):
        handshake = await blocked(stream.start_tls(tcp.server_context))
        await within(stream.aclose())
        with pytest.raises((anyio.ClosedResourceError, anyio.BrokenResourceError)):
            await within(handshake)
        assert await client.receive_all() == b""


@pytest.mark.parametrize("way", ["abort", "reset"])
async def test_abort_during_start_tls(tcp: Transport, way: str) -> None:
    """So it does when the connection is torn away, from either side."""
    async with tcp.pair() as (stream, client):
        handshake = await blocked(stream.start_tls(tcp.server_context))
        if way == "abort":
            stream.abort()
        else:
            client.reset()
        with pytest.raises((anyio.ClosedResourceError, anyio.BrokenResourceError)):
            await within(handshake)


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
    async with tls.serve(who, ssl=mutual) as server:
        client = await Client.connect(server.addresses[0], context)
        assert await client.receive_all() == b"ann@example.org"
        client.close()


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
        await eventually(lambda: server.stats().refused == 1)
        assert server.stats().bytes_received == 0


# -- tls_context


def test_defaults(server_context: asyncserver.TLSContext) -> None:
    """Nothing older than TLS 1.2, no certificate asked for."""
    assert server_context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert server_context.verify_mode == ssl.CERT_NONE
    assert isinstance(server_context, ssl.SSLContext)


def test_minimum_version(certfile: Path) -> None:
    """Stricter than the default, if asked for; also after a reload."""
    context = asyncserver.tls_context(certfile, minimum_version=ssl.TLSVersion.TLSv1_3)
    assert context.minimum_version == context.reload().minimum_version == ssl.TLSVersion.TLSv1_3


def test_key_in_a_file_of_its_own(tmp_path: Path, authority: trustme.CA) -> None:
    """Certificate and key may be apart."""
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for kind in (str, lambda path: path):
        context = asyncserver.tls_context(kind(tmp_path / "cert.pem"), kind(tmp_path / "key.pem"))
        assert isinstance(context, ssl.SSLContext)


@pytest.mark.parametrize("argument", ["certfile", "keyfile", "client_ca"])
def test_missing_file_is_named(tmp_path: Path, certfile: Path, argument: str) -> None:
    """OpenSSL does not say which file it was; we do."""
    arguments: Any = {"certfile": certfile, argument: tmp_path / "missing.pem"}
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        asyncserver.tls_context(**arguments)


def test_file_without_a_certificate_is_named(tmp_path: Path, certfile: Path) -> None:
    """Neither does it when the file holds something else."""
    (tmp_path / "empty.pem").write_text("nothing of the kind\n")
    with pytest.raises(ssl.SSLError, match=r"empty\.pem"):
        asyncserver.tls_context(tmp_path / "empty.pem")
    with pytest.raises(ssl.SSLError, match=r"empty\.pem"):
        asyncserver.tls_context(certfile, client_ca=tmp_path / "empty.pem")


def test_key_that_does_not_fit(tmp_path: Path, authority: trustme.CA) -> None:
    """A certificate and another one's key."""
    authority.issue_cert("localhost").cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "key.pem")
    with pytest.raises(ssl.SSLError, match="no usable certificate and key"):
        asyncserver.tls_context(tmp_path / "cert.pem", tmp_path / "key.pem")


def _encrypted(tmp_path: Path, authority: trustme.CA) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization

    certificate = authority.issue_cert("localhost")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"sesame")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (tmp_path / "key.pem").write_bytes(pem)
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def test_encrypted_key(tmp_path: Path, authority: trustme.CA) -> None:
    """With its password it works, also again; without, nobody is asked on the terminal."""
    certfile, keyfile = _encrypted(tmp_path, authority)
    assert isinstance(asyncserver.tls_context(certfile, keyfile, password="sesame").reload(), ssl.SSLContext)
    with pytest.raises(ValueError, match="password"):
        asyncserver.tls_context(certfile, keyfile)
    with pytest.raises(ssl.SSLError, match="no usable certificate and key"):
        asyncserver.tls_context(certfile, keyfile, password="wrong")


# -- reload


def _subject(client: Client) -> str:
    assert isinstance(client, TLSClient)
    certificate = client.tls.getpeercert()
    assert certificate is not None
    names: Any = certificate["subjectAltName"]
    return " ".join(str(name) for _, name in names)


async def test_reload_tls(tls: Transport, tmp_path: Path, authority: trustme.CA) -> None:
    """New files, new certificates for new connections; one that is open stays open, with the one it had."""
    path = tmp_path / "server.pem"
    authority.issue_cert("localhost", "old.example").private_key_and_cert_chain_pem.write_to_path(path)
    async with tls.serve(upper, ssl=asyncserver.tls_context(path)) as server:
        before = await tls.connect(server)
        assert "old.example" in _subject(before)
        authority.issue_cert("localhost", "new.example").private_key_and_cert_chain_pem.write_to_path(path)
        server.reload_tls()
        after = await tls.connect(server)
        assert "new.example" in _subject(after)
        assert await before.ask(b"still here") == b"STILL HERE"
        assert await after.ask(b"hello") == b"HELLO"
        before.close()
        after.close()


async def test_reload_tls_with_a_broken_file_keeps_the_old_one(
    tls: Transport, tmp_path: Path, authority: trustme.CA
) -> None:
    """An error to whoever asked, and everybody is served as before."""
    path = tmp_path / "server.pem"
    authority.issue_cert("localhost", "old.example").private_key_and_cert_chain_pem.write_to_path(path)
    async with tls.serve(upper, ssl=asyncserver.tls_context(path)) as server:
        path.write_text("half written")
        with pytest.raises(ssl.SSLError, match=r"server\.pem"):
            server.reload_tls()
        path.unlink()
        with pytest.raises(FileNotFoundError):
            server.reload_tls()
        client = await tls.connect(server)
        assert "old.example" in _subject(client)
        client.close()


async def test_reload_tls_with_a_context(tls: Transport, authority: trustme.CA, server_context: ssl.SSLContext) -> None:
    """Any ssl.SSLContext can be given; one that was not made by us cannot be read again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "given.example").configure_cert(context)
    async with tls.serve(upper) as server:
        server.reload_tls(context)
        client = await tls.connect(server)
        assert "given.example" in _subject(client)
        client.close()
        with pytest.raises(RuntimeError, match="tls_context"):
            server.reload_tls()


async def test_reload_tls_needs_tls(tcp: Transport, server_context: ssl.SSLContext) -> None:
    """A plain server has nothing to reload, nor has one that is closed."""
    async with tcp.serve(upper) as server:
        with pytest.raises(RuntimeError, match="does not speak TLS"):
            server.reload_tls(server_context)
    with pytest.raises(RuntimeError, match="closed"):
        server.reload_tls(server_context)


# -- while the server drains


async def test_handshake_during_the_drain(tls: Transport) -> None:
    """A client that was in the middle of its handshake when the drain began gets its one answer, then the end."""
    async with tls.serve(upper, drain_timeout=10) as server:
        sock = await open_socket(server.addresses[0])
        await eventually(lambda: server.stats().active == 1)
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


async def test_want_write_while_receiving(tls: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL that must write before it can read on (a key update) is let do so, and loses nothing."""
    async with tls.pair() as (stream, client):
        await client.send(b"abc")
        read: Callable[[int], bytes] = stream._recv
        calls = 0

        def want_write_first(max_bytes: int) -> bytes:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise ssl.SSLWantWriteError
            return read(max_bytes)

        stream._recv = want_write_first
        assert await within(stream.receive()) == b"abc"
        assert calls >= 2


async def test_send_eof_keeps_what_openssl_holds(tls: Transport) -> None:
    """The rest of a record that was received in part is neither lost nor an error when our side ends."""
    async with tls.pair() as (stream, client):
        await client.send(b"abcdef")
        assert await stream.receive(2) == b"ab"
        await stream.send_eof()
        assert await client.receive_all() == b""
        assert stream.bytes_received == 6
        assert await within(stream.receive()) == b"cdef"
        await client.send(b"more")
        assert await within(stream.receive()) == b"more"


async def test_send_eof_after_the_peers_end_and_reset(tls: Transport) -> None:
    """A stream that broke while it ended reports that, whatever is left of its TLS."""
    async with tls.pair() as (stream, client):
        await client.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        client.reset()
        for _ in range(2):
            with contextlib.suppress(anyio.BrokenResourceError):
                await stream.send_eof()
        for _ in range(2):
            with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
                await within(stream.receive())
