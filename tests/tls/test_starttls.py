"""STARTTLS: the dialogue, what is refused, and what interrupts it."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncserver import Stream
from tests.kit.checks import records
from tests.kit.clients import TLSClient
from tests.kit.interruptions import Interrupt
from tests.kit.transports import Transport
from tests.kit.waiting import blocked, until, within


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


@pytest.mark.parametrize("name", ["tcp", "unix"])
async def test_starttls_dialogue(
    name: str, tmp_path: Path, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """Plain, then TLS, on one connection and one stream; the end by close_notify."""
    transport = Transport(name, tmp_path)
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
        await until(lambda: server.stats().completed == 1)
        assert server.stats().bytes_received == len(b"hello\r\nSTARTTLS\r\nhello")


class _StartTLS:
    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    async def __call__(self, stream: Stream) -> None:
        await starttls(stream, self.context)


async def test_starttls_with_plain_bytes_behind_is_refused(tcp: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """A command smuggled in behind STARTTLS is never taken for one that came under TLS (CVE-2011-0411)."""
    async with tcp.serve(_StartTLS(tcp.server_context)) as server:
        client = await tcp.connect(server)
        await client.send(b"STARTTLS\r\nDELETE EVERYTHING\r\n")
        assert await client.receive_all() == b"go ahead\r\n"
        client.close()
        await until(lambda: server.stats().completed == 1)
        assert server.stats().misbehaved == 1
    (warning,) = records(caplog)
    assert "the peer sent plain bytes" in warning.getMessage()


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


async def test_idle_timeout_rests_during_the_handshake(tcp: Transport) -> None:
    """One that is shorter than the handshake neither breaks it nor ends the first receive after it."""

    async def handler(stream: Stream) -> None:
        await stream.receive()
        await stream.send(b"go ahead")
        await stream.start_tls(tcp.server_context)
        await stream.send((await stream.receive()).upper())

    server: Any
    async with tcp.serve(handler, idle_timeout=3600) as server, tcp.connect(server) as client:
        assert await client.ask(b"STARTTLS") == b"go ahead"
        (stream,) = server.connections
        await until(lambda: stream._is_in_handshake and stream._reading.busy)
        secure = TLSClient(client.sock, tcp.client_context)
        server._idle_seen[stream] = stream.bytes_moved, float("-inf")  # long ago
        server._look_for_idle()
        await secure.handshake()
        await until(lambda: not stream._is_in_handshake and stream._reading.busy)
        server._look_for_idle()
        assert await secure.ask(b"question") == b"QUESTION"
    assert server.stats().timed_out == 0
