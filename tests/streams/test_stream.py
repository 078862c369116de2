"""Stream: what it tells, what anyio builds on it, and which tasks may use it."""

from __future__ import annotations

import asyncio
import contextvars
import ssl
import sys
from asyncio import tasks
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.text import TextStream
from anyio.streams.tls import TLSAttribute, TLSStream

import asyncserver
import asyncserver.streams.stream
from asyncserver import Stream
from tests.kit.clients import TLSClient
from tests.kit.handlers import upper
from tests.kit.transports import Transport
from tests.kit.waiting import blocked, until, within

# -- what it tells


async def test_addresses(transport: Transport) -> None:
    """Both ends agree on who they are."""
    async with transport.pair() as (stream, client):
        assert stream.local_address == client.sock.getpeername()
        assert stream.peer_address == client.sock.getsockname()
        assert repr(stream) == f"<Stream {stream.peer_address!r} open>"
        peer = stream.peer_address
        stream.abort()
        assert stream.peer_address == peer


async def test_socket_attributes(transport: Transport) -> None:
    """anyio's typed attributes are there; ports only where there are ports."""
    async with transport.pair() as (stream, client):
        assert stream.extra(SocketAttribute.local_address) == client.sock.getpeername()
        assert stream.extra(SocketAttribute.remote_address) == client.sock.getsockname()
        assert stream.extra(SocketAttribute.family) == client.sock.family
        assert stream.extra(SocketAttribute.raw_socket).fileno() >= 0
        if transport.name == "unix":
            assert stream.extra(SocketAttribute.local_port, None) is None
            assert stream.extra(SocketAttribute.remote_port, None) is None
        else:
            assert stream.extra(SocketAttribute.local_port) == client.sock.getpeername()[1]
            assert stream.extra(SocketAttribute.remote_port) == client.sock.getsockname()[1]
        if not transport.tls:
            with pytest.raises(anyio.TypedAttributeLookupError):
                stream.extra(TLSAttribute.tls_version)


async def test_closing_tells_the_handler_of_the_drain(transport: Transport) -> None:
    """The event is set when the server begins to close, and a handler that waits for it can say goodbye."""
    told = asyncio.Event()

    async def goodbye(stream: Stream) -> None:
        assert not stream.closing.is_set()
        told.set()
        await stream.closing.wait()
        await stream.send(b"goodbye")

    async with transport.serve(goodbye) as server, transport.connect(server) as client:
        await within(told.wait())
        report = await within(server.close())
        assert await client.receive_all() == b"goodbye"
        assert (report.completed, report.cancelled, report.aborted) == (1, 0, 0)


async def test_each_connection_has_its_own_context(transport: Transport) -> None:
    """A contextvar set in one handler is not seen in another's, nor in the task that serves."""
    variable = contextvars.ContextVar("variable", default=b"nobody")

    async def remember(stream: Stream) -> None:
        async for data in stream:
            await stream.send(variable.get())
            variable.set(data)

    async with transport.serve(remember) as server:
        one, other = await transport.connect(server), await transport.connect(server)
        for client, name in ((one, b"one"), (other, b"other")):
            await client.send(name)
            assert await client.receive() == b"nobody"
        for client, name in ((one, b"one"), (other, b"other")):
            await client.send(name)
            assert await client.receive() == name
            client.close()
    assert variable.get() == b"nobody"


# -- what anyio builds on it


async def test_under_buffered_byte_stream(transport: Transport) -> None:
    """anyio's own buffer works on it, and its end of stream and errors come through."""
    async with transport.pair() as (stream, client):
        buffered = BufferedByteStream(stream)
        await client.send(b"line\n12345rest")
        await client.send_eof()
        assert await buffered.receive_until(b"\n", 100) == b"line"
        assert await buffered.receive_exactly(5) == b"12345"
        assert await buffered.receive() == b"rest"
        with pytest.raises(anyio.EndOfStream):
            await buffered.receive()
        await buffered.send(b"answer")
        await buffered.aclose()
        assert await client.receive_all() == b"answer"


async def test_under_text_stream(transport: Transport) -> None:
    """Characters cut in the middle come out whole."""
    async with transport.pair() as (stream, client):
        text = TextStream(stream)
        for part in ("grün".encode()[:3], "grün".encode()[3:]):
            await client.send(part)
        received = ""
        while len(received) < 4:
            received += await text.receive()
        assert received == "grün"
        await text.send("schön")
        await text.aclose()
        assert (await client.receive_all()).decode() == "schön"


@pytest.mark.parametrize("name", ["tcp", "unix"])
async def test_under_anyios_tls(
    name: str, tmp_path: Path, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """anyio's TLSStream.wrap on our stream: handshake, both ways, closing handshake."""
    transport = Transport(name, tmp_path)
    async with transport.pair() as (stream, client):
        wrapping = asyncio.create_task(TLSStream.wrap(stream, server_side=True, ssl_context=server_context))
        secure = TLSClient(client.sock, client_context)
        await secure.handshake()
        wrapped = await within(wrapping)
        await secure.send(b"hello" * 10_000)
        data = b""
        while len(data) < 50_000:
            data += await wrapped.receive()
        assert data == b"hello" * 10_000
        await wrapped.send(b"bye")
        await secure.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await wrapped.receive()
        await within(wrapped.aclose())
        assert await secure.receive_all() == b"bye"


# -- kinds of tasks


def _python_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Future[Any]:
    task: asyncio.Future[Any] = tasks._PyTask(coroutine, loop=loop, **options)  # type: ignore[attr-defined]
    return task


def _eager_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Future[Any]:
    return asyncio.Task(coroutine, loop=loop, **{**options, "eager_start": True})


@pytest.mark.parametrize(
    "factory",
    [
        pytest.param(_python_task, id="python"),
        pytest.param(
            _eager_task,
            id="eager",
            marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="came with Python 3.12"),
        ),
    ],
)
@pytest.mark.parametrize("debug", [True, False])
async def test_any_kind_of_task(transport: Transport, factory: Any, debug: bool) -> None:
    """A task factory of the program's own, in debug mode or not: echo, timeout and cancellation work."""
    if factory is _python_task and transport.tls and sys.version_info >= (3, 14):
        pytest.skip("asyncio.timeout() works in no task that is implemented in Python from 3.14 on")
    loop = asyncio.get_running_loop()
    loop.set_debug(debug)
    loop.set_task_factory(factory)
    try:
        async with transport.serve(upper) as server, transport.connect(server) as client:
            for _ in range(10):
                assert await client.ask(b"hello") == b"HELLO"
        async with transport.pair() as (stream, client):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.receive(), 0.01)
            task = await blocked(stream.receive())
            task.cancel()
            await asyncio.wait([task])
            await client.send(b"kept")
            assert await within(stream.receive()) == b"kept"
    finally:
        loop.set_task_factory(None)


async def test_receive_is_a_coroutine_function(transport: Transport) -> None:
    """People pass it to create_task, gather and wait."""
    async with transport.pair() as (stream, client):
        receiving = asyncio.create_task(stream.receive())
        await asyncio.gather(stream.send(b"abc"), client.send(b"def"))
        done, _ = await asyncio.wait([receiving], timeout=10)
        assert [task.result() for task in done] == [b"def"]
        assert await client.receive() == b"abc"


# -- silence


async def test_idle_timeout_wakes_the_receiver(transport: Transport) -> None:
    """A receive that waits raises IdleTimeout; the stream can still be used."""
    async with transport.pair(idle_timeout=0.1) as (stream, client):
        with pytest.raises(asyncserver.IdleTimeout):
            await within(stream.receive())
        await stream.send(b"still there?")
        assert await client.receive() == b"still there?"
        await client.send(b"yes")
        assert await within(stream.receive()) == b"yes"


async def test_idle_timeout_wakes_the_sender(transport: Transport) -> None:
    """A send that waits for a peer that takes nothing raises IdleTimeout."""
    async with transport.pair(idle_timeout=0.1) as (stream, _):
        with pytest.raises(asyncserver.IdleTimeout):
            await within(stream.send(bytes(1 << 24)))


async def test_idle_timeout_uncaught_is_no_error(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """It closes the connection, is counted, and is not in the log."""
    async with transport.serve(upper, idle_timeout=0.1) as server:
        client = await transport.connect(server)
        assert await client.receive_all() == b""
        client.close()
        await until(lambda: server.stats().timed_out)
    assert not caplog.records
