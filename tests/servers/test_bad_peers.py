"""What a peer does wrong is not the handler's failure: a line without traceback, once in a while, and a counter."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import asyncserver
from tests.kit.checks import errors_in, is_balanced, records
from tests.kit.clients import Client, open_socket
from tests.kit.proxy_headers import LINE
from tests.kit.waiting import until

if TYPE_CHECKING:
    from asyncserver import Stream


async def lines(stream: Stream) -> None:
    """Answer each line; README's."""
    while True:
        line = await stream.receive_until(b"\n", max_bytes=1024)
        await stream.send(b"%d\n" % len(line))


async def grouped(stream: Stream) -> None:
    """The same in a task group."""
    async with asyncio.TaskGroup() as group:
        group.create_task(lines(stream))


async def starts_tls(stream: Stream) -> None:
    """Go over to TLS when asked."""
    await stream.receive_until(b"\n", 100)
    await stream.start_tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


async def readuntil(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line, as a callback."""
    writer.write(await reader.readuntil(b"\n"))


async def readline(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same, with the method that raises ValueError instead."""
    writer.write(await reader.readline())


async def timeout(stream: Stream) -> None:
    """Give the peer a moment."""
    async with asyncio.timeout(0.01):
        await stream.receive()
        await stream.receive()


async def wait_for(stream: Stream) -> None:
    """The same."""
    await asyncio.wait_for(receive_all(stream), 0.01)


async def receive_all(stream: Stream) -> None:
    """Receive to the end."""
    async for _ in stream:
        pass


async def fail_after(stream: Stream) -> None:
    """The same with anyio."""
    with anyio.fail_after(0.01):
        await receive_all(stream)


async def visit(server: asyncserver.Server, data: bytes) -> None:
    """Send something and wait until the server ends the connection."""
    client = Client(await open_socket(server.addresses[0]))
    await client.send(data)
    while await client.receive():
        pass
    client.close()


MISBEHAVIOUR: dict[str, tuple[Any, bytes]] = {
    "too long a line": (lines, b"x" * 2000),
    "in a group": (grouped, b"x" * 2000),
    "STARTTLS with more behind": (starts_tls, b"STARTTLS\r\nMAIL FROM:<x>\r\n"),
    "readuntil": (asyncserver.from_callback(readuntil), b"x" * 70_000),
    "readline": (asyncserver.from_callback(readline), b"x" * 70_000),
}


@pytest.mark.parametrize("what", MISBEHAVIOUR)
async def test_peer_that_sends_what_it_should_not(what: str, caplog: pytest.LogCaptureFixture) -> None:
    """It ends its handler; told with the handler's line, but once, however many come."""
    handler, data = MISBEHAVIOUR[what]
    told: list[Any] = []
    caplog.set_level(logging.DEBUG, "asyncserver")
    async with asyncserver.serve(handler, "127.0.0.1", 0, on_error=lambda *error: told.append(error)) as server:
        for _ in range(3):
            await visit(server, data)
        await until(lambda: server.stats().completed == 3)
        assert (server.stats().misbehaved, server.stats().failed) == (3, 0)
        assert is_balanced(server)
    assert [one.levelno for one in records(caplog)] == [logging.WARNING, logging.DEBUG, logging.DEBUG]
    assert not any(one.exc_info for one in records(caplog))
    assert "test_bad_peers.py" in records(caplog)[0].getMessage()
    assert not told


@pytest.mark.parametrize("handler", [timeout, wait_for, fail_after])
async def test_peer_that_is_too_slow_for_the_handler(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A deadline of the handler's own counts as the server's idle timeout does."""
    async with asyncserver.serve(handler, "127.0.0.1", 0) as server:
        for _ in range(2):
            await visit(server, b"x")
        await until(lambda: server.stats().timed_out == 2)
        assert (server.stats().misbehaved, server.stats().failed) == (0, 0)
        assert is_balanced(server)
    (warning,) = records(caplog)
    assert warning.levelno == logging.WARNING
    assert not warning.exc_info
    assert handler.__name__ in warning.getMessage()


@pytest.mark.parametrize(
    "exc",
    [
        TimeoutError(110, "Connection timed out"),
        TimeoutError("the database is too slow"),
        ValueError("Separator is not found"),
        ExceptionGroup("", [anyio.DelimiterNotFound(1), ValueError("ours")]),
        RuntimeError("start_tls(): this stream is under TLS already"),
    ],
    ids=repr,
)
async def test_what_looks_alike_is_the_handlers_failure(exc: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """An error that says more than that a deadline of the handler's is over, or that comes with others."""

    async def handler(stream: Stream) -> None:
        raise exc

    async with asyncserver.serve(handler, "127.0.0.1", 0) as server:
        await visit(server, b"")
        await until(lambda: server.stats().failed)
    assert [one.exc_info[1] for one in errors_in(caplog)] == [exc]


@pytest.mark.parametrize("exc", [TimeoutError(), anyio.DelimiterNotFound(1)], ids=repr)
async def test_datagram_has_no_peer_to_blame(exc: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """It has come whole, and nobody waits for its sender."""

    async def handler(datagram: asyncserver.Datagram) -> None:
        raise exc

    async with asyncserver.serve_datagrams(handler, "127.0.0.1", 0) as server:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=server.addresses[0]
        )
        transport.sendto(b"x")
        await until(lambda: server.stats().failed)
        transport.close()
    assert [one.exc_info[1] for one in errors_in(caplog)] == [exc]


@pytest.mark.parametrize("proxied", [False, True])
async def test_host_over_its_limit_is_told(*, proxied: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Whose it is, and once in a while, as those are that come without a PROXY header."""
    caplog.set_level(logging.DEBUG, "asyncserver")
    async with asyncserver.serve(lines, "127.0.0.1", 0, max_connections_per_host=1, proxy_protocol=proxied) as server:
        clients = [Client(await open_socket(server.addresses[0])) for _ in range(3)]
        for client in clients if proxied else []:
            await client.send(LINE)
        await until(lambda: server.stats().refused == 2)
        for client in clients:
            client.close()
    warning, other = records(caplog)
    assert (warning.levelno, other.levelno) == (logging.WARNING, logging.DEBUG)
    assert "max_connections_per_host" in warning.getMessage()
    assert ("192.0.2.1" if proxied else "127.0.0.1") in warning.getMessage()
    assert warning.__dict__["outcome"] == "refused"
