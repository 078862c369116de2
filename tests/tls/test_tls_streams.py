"""TLS: the end of a stream, truncation, and what OpenSSL holds back."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable

import anyio
import pytest
from anyio.abc import SocketAttribute

from asyncserver import Stream
from tests.kit.clients import TLSClient
from tests.kit.transports import Transport
from tests.kit.waiting import blocked, within

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

    async with tls.serve(handler) as server, tls.connect(server) as client:
        assert await client.receive_all() == b"bye"


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


# -- what OpenSSL holds


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


async def test_send_on_a_raw_socket_that_the_handler_has_closed(tls: Transport) -> None:
    """It breaks as one without TLS does, and says why."""
    async with tls.pair() as (stream, client):
        await client.send(b"abc")
        assert await stream.receive() == b"abc"
        stream.extra(SocketAttribute.raw_socket).close()
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await stream.send(b"nothing")
        assert isinstance(caught.value.__cause__, OSError)


async def test_messages_do_without_methods_of_sslsocket(tls: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take as long as all our own code for a small message, see tls_connection.py."""
    async with tls.pair() as (stream, client):
        for name in ("read", "recv", "write", "send"):
            monkeypatch.delattr(ssl.SSLSocket, name)
        await client.send(b"question")
        assert await within(stream.receive()) == b"question"
        await stream.send(b"answer")
        assert await client.receive_exactly(6) == b"answer"
        monkeypatch.undo()
