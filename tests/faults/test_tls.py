"""TLS peers that are wrong, broken or hostile: refused and counted, and what is cut off is never taken for whole."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

import asyncserver
from asyncserver import Server, Stream
from tests.kit.checks import is_idle
from tests.kit.clients import Client
from tests.kit.faults import ServerProcess, figure
from tests.kit.handlers import upper
from tests.kit.programs import LOOPS
from tests.kit.sockets import ask, connect
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until

YEAR = dt.timedelta(days=365)


def client(authority: trustme.CA, *, own: str | None = None, days: int = 365) -> ssl.SSLContext:
    """A client's context, with a certificate of its own that is valid for so many days from now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    if own is not None:
        now = dt.datetime.now(dt.UTC)
        certificate = authority.issue_cert(own, not_before=now - YEAR, not_after=now + dt.timedelta(days=days))
        certificate.configure_cert(context)
    return context


def old(authority: trustme.CA) -> ssl.SSLContext:
    """A client that speaks nothing newer than TLS 1.1."""
    context = client(authority)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    return context


def wrong_clients(authority: trustme.CA) -> dict[str, ssl.SSLContext]:
    """What a server that asks for certificates refuses."""
    strangers = client(authority)
    trustme.CA().issue_cert("eve@example.org").configure_cert(strangers)
    weak = client(authority, own="ann@example.org")
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA")
    distrustful = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("ann@example.org").configure_cert(distrustful)
    return {
        "version too old": old(authority),
        "no certificate": client(authority),
        "expired certificate": client(authority, own="late@example.org", days=-1),
        "certificate of another authority": strangers,
        "cipher that the server does not offer": weak,
        "client that does not trust the server": distrustful,
    }


@pytest.mark.parametrize("loop", LOOPS)
def test_wrong_clients_are_refused(loop: str, authority: trustme.CA, certfile: Path, tmp_path: Path) -> None:
    """Each kind, fifty times over: none reaches a handler, all are counted, none is an error in the log."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    options = {"certfile": str(certfile), "client_ca": str(tmp_path / "ca.pem")}
    contexts = wrong_clients(authority)
    with ServerProcess(loop, mutual=options) as server:
        address = server.addresses["mutual"]
        before = server.report()
        for context in contexts.values():
            for _ in range(50):
                with contextlib.suppress(OSError), connect(address) as sock:
                    tls = context.wrap_socket(sock, server_hostname="localhost")
                    with tls:  # TLS 1.3 tells a client only after its own side of the handshake
                        tls.sendall(b"hello")
                        assert not tls.recv(5)
        told = server.until(lambda now: now["mutual"]["refused"] == 50 * len(contexts))
        server.until(lambda now: now["descriptors"] == before["descriptors"])
        good = client(authority, own="ann@example.org")
        with good.wrap_socket(connect(address), server_hostname="localhost") as served:
            assert ask(served, b"hello") == b"HELLO"
    refused, received = told["mutual"]["refused"], told["mutual"]["bytes_received"]
    figure(
        f"wrong TLS clients: {', '.join(contexts)}",
        loop,
        f"{refused} of {50 * len(contexts)} refused, {received} bytes to handlers, {sum(told['log'].values())} lines",
        "all; 0; 0",
    )
    assert received == 0
    assert not told["log"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command for a renegotiation")
@pytest.mark.parametrize("loop", LOOPS)
def test_renegotiation_is_refused(loop: str, certfile: Path) -> None:
    """A client of TLS 1.2 that asks for another handshake gets none; others notice nothing."""
    with ServerProcess(loop, tls={"certfile": str(certfile)}, tcp={}) as server:
        host, port = server.addresses["tls"]
        command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-tls1_2", "-no_ign_eof"]
        done = subprocess.run(command, input=b"R\n", capture_output=True, timeout=PATIENCE, check=False)
        with connect(server.addresses["tcp"]) as plain:
            assert ask(plain, b"hello") == b"HELLO"
        told = server.until(lambda now: not now["tls"]["active"])
    figure("renegotiation", loop, "refused: no renegotiation", "refused")
    assert b"RENEGOTIATING" in done.stdout + done.stderr
    assert b"no renegotiation" in done.stderr
    assert (told["tls"]["accepted"], told["tls"]["completed"], told["tls"]["failed"]) == (1, 1, 0)
    assert not told["log"]


# -- cut off


class Whole(asyncio.Protocol):
    """An existing protocol that takes the end of the stream for the end of a message."""

    ends: list[tuple[bytes, str]]

    def __init__(self, ends: list[tuple[bytes, str]]) -> None:
        self.ends = ends
        self.data = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> None:
        self.ends.append((self.data, "whole"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.ends.append((self.data, "broken" if exc else "lost"))


async def test_truncated_message_is_not_taken_for_whole(tls: Transport) -> None:
    """A stream that ends without close_notify, at whichever byte of a record, never ends as one that is complete."""
    ends: list[tuple[bytes, str]] = []

    async def read_to_the_end(stream: Stream) -> None:
        data = b""
        try:
            async for piece in stream:
                data += piece
        except anyio.BrokenResourceError:
            ends.append((data, "broken"))
        else:
            ends.append((data, "whole"))

    async with tls.serve(read_to_the_end) as server:
        record = b"amount 1000000"
        for kept in range(len(record) + 22):  # a record is 22 bytes longer than its payload: RFC 8446, 5.2
            sent = await truncated(tls, server, record, kept)
            await until(lambda: ends)
            assert ends.pop() == (sent, "broken"), kept
        peer = await tls.connect(server)
        await peer.send(record)
        await peer.send_eof()
        await until(lambda: ends)
        peer.close()
    figure(f"TLS cut off at each of {len(record) + 22} bytes", None, "told as broken each time", "never as complete")
    assert ends == [(record, "whole")]


async def truncated(tls: Transport, server: Server, record: bytes, kept: int) -> bytes:
    """Send the first bytes of a record and end the connection; returns the payload that the peer must have."""
    peer: Any = await tls.connect(server)
    peer.tls.write(b"first")
    peer.tls.write(record)
    data = peer._outgoing.read()
    whole = len(data) - len(record) - 22  # up to the end of the first record
    await peer.loop.sock_sendall(peer.sock, data[: whole + kept])
    peer.sock.shutdown(socket.SHUT_WR)
    peer.close()
    return b"first" + (record if kept >= len(record) + 22 else b"")


async def test_truncated_message_is_not_taken_for_whole_by_a_protocol(tls: Transport) -> None:
    """The same for an existing protocol: no end of file, but a connection that was lost. An end is still an end."""
    ends: list[tuple[bytes, str]] = []
    record = b"amount 1000000"
    async with tls.serve(asyncserver.from_protocol(lambda: Whole(ends))) as server:
        for kept in (0, 1, 5, 20, len(record) + 22):
            sent = await truncated(tls, server, record, kept)
            await until(lambda: is_idle(server) and ends)
            assert ends == [(sent, "broken")], kept
            ends.clear()
        peer = await tls.connect(server)
        await peer.send(record)
        await peer.send_eof()
        await until(lambda: is_idle(server))
        peer.close()
    assert ends == [(record, "whole"), (record, "lost")]
    assert server.stats().failed == 0


async def test_truncated_message_is_not_taken_for_whole_by_a_callback(
    tls: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """The reader of an existing callback raises instead of ending, and that is nobody's error."""
    ends: list[str] = []

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ends.append("whole" if await reader.read() else "empty")
        except ConnectionError:
            ends.append("broken")
            raise
        finally:
            writer.close()

    async with tls.serve(asyncserver.from_callback(callback)) as server:
        await truncated(tls, server, b"amount 1000000", 5)
        await until(lambda: is_idle(server) and ends)
        peer = await tls.connect(server)
        await peer.send(b"all of it")
        await peer.send_eof()
        await until(lambda: len(ends) == 2)
        peer.close()
    assert ends == ["broken", "whole"]
    assert server.stats().failed == 0
    assert not [record for record in caplog.records if record.name == "asyncserver"]


@pytest.mark.parametrize("garbage", [b"\x17\x03\x03\x00\x10" + b"x" * 16, b"GET / HTTP/1.0\r\n\r\n", bytes(100)])
async def test_garbage_in_the_middle(tls: Transport, garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that are no TLS, or were changed on their way: broken, and the handler gets none of them."""
    received: list[bytes] = []

    async def collect(stream: Stream) -> None:
        async for data in stream:
            received.append(data)
        raise AssertionError("the end of a stream that was tampered with")

    async with tls.serve(collect) as server:
        peer = await tls.connect(server)
        await peer.send(b"good")
        await until(lambda: received)
        await peer.loop.sock_sendall(peer.sock, garbage)
        await until(lambda: server.stats().completed == 1)
        peer.close()
        other = await tls.connect(server)
        other.close()
    assert received == [b"good"]
    assert not [record for record in caplog.records if record.name == "asyncserver"]


async def test_handshakes_that_stop_at_every_byte(tls: Transport) -> None:
    """A ClientHello cut off behind each of its bytes: refused each time, nothing stays."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()
    async with tls.serve(upper) as server:
        for kept in range(0, len(hello), 7):
            peer = await Client.connect(server.addresses[0])
            await peer.send(hello[:kept])
            await peer.send_eof()
            with contextlib.suppress(ConnectionResetError):
                await peer.receive_all()
            peer.close()
        count = len(range(0, len(hello), 7))
        await until(lambda: server.stats().refused == count)
        assert server.stats().active == 0
    figure(f"ClientHello cut off at {count} places", None, f"{count} refused", "all")
