"""Logging that fails or is slow: what the server wants to tell is lost, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

import asyncserver.servers.server
from asyncserver import Datagram, Stream
from asyncserver.connections.accepted import Accepted
from asyncserver.listening.binding import BoundSocket
from asyncserver.listening.listener import Listener
from tests.kit.checks import is_balanced, is_idle
from tests.kit.clients import Client
from tests.kit.faults import figure
from tests.kit.handlers import RaiseOrEcho
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until


class Broken(logging.Handler):
    """A handler of its author's own that fails."""

    asked = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.asked += 1
        raise RuntimeError("the log cannot be written")


class Slow(logging.Handler):
    """A handler that waits for a disk, or for somebody else's server."""

    asked = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.asked += 1
        time.sleep(0.02)


@contextlib.contextmanager
def attached(handler: Any) -> Iterator[Any]:
    logger = logging.getLogger("asyncserver")
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


@pytest.fixture(params=[Broken, Slow], ids=["broken", "slow"])
def log(request: pytest.FixtureRequest) -> Iterator[Any]:
    with attached(request.param()) as handler:
        yield handler


async def raise_or_echo(stream: Stream) -> None:
    data = await stream.receive()
    if data == b"raise":
        raise ValueError
    await stream.send(data.upper())


@pytest.mark.parametrize("kind", ["stream", "protocol"])
async def test_error_of_a_handler(tcp: Transport, kind: str, log: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The connection is closed and counted, on_error is told, the next one is served."""
    told: list[BaseException] = []
    handler: Any = raise_or_echo if kind == "stream" else asyncserver.from_protocol(RaiseOrEcho)
    async with tcp.serve(handler, on_error=lambda exc, _: told.append(exc)) as server:
        for _ in range(10):
            client = await tcp.connect(server)
            await client.send(b"raise")
            with contextlib.suppress(ConnectionResetError):
                assert await client.receive() == b""
            client.close()
        client = await tcp.connect(server)
        assert await client.ask(b"served") == b"SERVED"
        client.close()
        await until(lambda: is_idle(server))
        assert is_balanced(server)
    figure(f"10 failing handlers ({kind}), {type(log).__name__} log", None, f"{server.stats().failed} counted", "10")
    assert server.stats().failed == log.asked == len(told) == 10
    # As logging itself does with what a handler cannot do.
    assert ("the log cannot be written" in capsys.readouterr().err) == isinstance(log, Broken)


async def test_error_of_a_datagram_handler(log: Any) -> None:
    """It is counted, and the next datagram answered."""

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"raise":
            raise ValueError
        return datagram.data.upper()

    async with asyncserver.serve_datagrams(handler, "127.0.0.1", 0) as server:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(server.addresses[0])
            client = Client(sock)
            for _ in range(10):
                await client.send(b"raise")
            assert await client.ask(b"served") == b"SERVED"
    assert (server.stats().failed, server.stats().completed, log.asked) == (10, 1, 10)


async def test_handler_that_ignores_its_cancellation(tcp: Transport, log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """close() comes to its end and reports, although it cannot tell whom it had to abort."""
    monkeypatch.setattr("asyncserver.servers.server.Server._cancel_grace", 0.1)
    release = asyncio.Event()

    async def stubborn(stream: Stream) -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async with tcp.serve(stubborn) as server:
        clients = [await tcp.connect(server) for _ in range(3)]
        await until(lambda: server.stats().active == 3)
        async with asyncio.timeout(PATIENCE / 2):
            assert await server.close(0) == asyncserver.DrainReport(aborted=3)
            await server.wait_closed()
        release.set()
        for client in clients:
            client.close()
    assert log.asked == 3


async def test_close_callback_that_fails(tcp: Transport, log: Any) -> None:
    """The callbacks behind it are called all the same."""
    called: list[int] = []
    async with tcp.serve(raise_or_echo) as server:
        server.add_close_callback(lambda: 1 / 0)
        server.add_close_callback(lambda: called.append(1))
    assert (called, log.asked) == ([1], 1)


async def test_on_error_that_fails(tcp: Transport, log: Any) -> None:
    """Both errors are lost, and only they."""
    async with tcp.serve(raise_or_echo, on_error=lambda *_: 1 / 0) as server:
        client = await tcp.connect(server)
        await client.send(b"raise")
        assert await client.receive() == b""
        client.close()
        await until(lambda: server.stats().failed == 1)
    assert log.asked == 2


@pytest.mark.parametrize("reason", ["untrusted", "invalid"])
async def test_refusal_behind_a_proxy(log: Any, reason: str) -> None:
    """Who is refused is closed and counted as refused."""
    networks = ["192.0.2.0/24"] if reason == "untrusted" else []
    options: dict[str, Any] = {"proxy_protocol": True, "trusted_proxies": networks}
    async with asyncserver.serve(raise_or_echo, "127.0.0.1", 0, **options) as server:
        client = await Client.connect(server.addresses[0])
        with contextlib.suppress(ConnectionError):
            await client.send(b"GET / HTTP/1.0\r\n\r\n")
            assert await client.receive() == b""
        client.close()
        await until(lambda: server.stats().refused == 1)
        assert is_balanced(server)
    assert log.asked == 1


class NoDescriptors:
    """A listening socket for which there is no descriptor left."""

    def __init__(self, real: socket.socket) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def _accept(self) -> Any:
        raise OSError(errno.EMFILE, "for the test")


async def test_exhausted_descriptors(log: Any) -> None:
    """Accepting backs off and goes on."""
    failed: list[int] = []
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as real, socket.create_connection(real.getsockname()):
        sock: Any = NoDescriptors(real)
        listener = Listener(loop, BoundSocket(sock), Accepted, lambda _: None, lambda: failed.append(1))
        listener.resume()
        await until(lambda: len(failed) == 3)
        listener.close()
    assert log.asked == 1


async def test_nobody_to_complain_to(tcp: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a standard error, or with one that is closed, the error of the log is lost as well."""
    closed = io.StringIO()
    closed.close()
    with attached(Broken()) as log:
        for stderr in (None, closed):
            monkeypatch.setattr("sys.stderr", stderr)
            async with tcp.serve(raise_or_echo) as server:
                client = await tcp.connect(server)
                await client.send(b"raise")
                assert await client.receive() == b""
                client.close()
                await until(lambda: server.stats().failed == 1)
        monkeypatch.undo()
    assert log.asked == 2


async def test_a_record_tells_where_it_comes_from(tcp: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """The line in the record is that of the server's code, not of what contains its log."""
    async with tcp.serve(raise_or_echo) as server, tcp.connect(server) as client:
        await client.send(b"raise")
        assert await client.receive() == b""
    (record,) = [record for record in caplog.records if record.name == "asyncserver"]
    assert (record.module, record.funcName) == ("handlers", "_report")
