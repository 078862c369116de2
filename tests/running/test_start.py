"""start(): a server that one holds, and what becomes of it when nobody closes it."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import socket
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import asyncserver
from tests.kit.clients import Client
from tests.kit.handlers import upper, upper_datagram
from tests.kit.programs import LOOPS
from tests.kit.sockets import free_port
from tests.kit.waiting import blocked, until, within

Serve = Callable[..., asyncserver.Serving]


@pytest.fixture(params=["serve", "serve_datagrams"])
def serve(request: pytest.FixtureRequest) -> Serve:
    if request.param == "serve":
        return functools.partial(asyncserver.serve, upper)
    return functools.partial(asyncserver.serve_datagrams, upper_datagram)


async def ask(server: asyncserver.Server) -> bytes:
    if server.sockets[0].type == socket.SOCK_STREAM:
        async with Client.connect(server.addresses[0]) as client:
            return await client.ask(b"hello")
    with socket.socket(server.sockets[0].family, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect(server.addresses[0])
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, b"hello")
        return await within(loop.sock_recv(client, 100))


async def test_start_serves_until_close(serve: Serve) -> None:
    """It has bound and serves; when close() has returned, the port is free, and the report tells of the handlers."""
    server = await serve("127.0.0.1", free_port()).start()
    assert await ask(server) == b"HELLO"
    place = server.addresses[0][:2]
    report = await server.close()
    assert isinstance(report, asyncserver.DrainReport)
    again = await serve(*place).start()
    await again.close()


async def test_close_takes_a_drain_timeout() -> None:
    """A handler that does not end is cancelled when that time is over."""
    server = await asyncserver.serve(upper, "127.0.0.1", 0).start()
    async with Client.connect(server.addresses[0]) as client:
        await client.ask(b"hello")
        await client.send(b"x")  # a message under way
        report = await within(server.close(drain_timeout=0.0))
    assert report.completed + report.cancelled + report.aborted == 1


async def test_unix_sockets_start_too(serve: Serve, tmp_path: Path) -> None:
    """Its file is there, and gone after close()."""
    path = tmp_path / "socket"
    server = await serve(path=path).start()
    assert path.is_socket()
    await server.close()
    await server.wait_closed()
    assert not path.exists()


async def test_server_is_a_block(serve: Serve) -> None:
    """`async with server` closes what start() has returned."""
    server = await serve("127.0.0.1", 0).start()
    async with server as same:
        assert same is server
        assert await ask(server) == b"HELLO"
    assert server.closed


async def test_used_twice_says_so(serve: Serve) -> None:
    """One call serves once, started, awaited or as a block."""
    message = "has been used already: call serve"
    started = serve("127.0.0.1", 0)
    server = await started.start()
    with pytest.raises(RuntimeError, match=message):
        await started.start()
    with pytest.raises(RuntimeError, match=message):
        await started
    with pytest.raises(RuntimeError, match=message):
        async with started:
            pass
    await server.close()
    block = serve("127.0.0.1", 0)
    async with block:
        with pytest.raises(RuntimeError, match=message):
            await block.start()


async def test_start_that_fails_raises(serve: Serve) -> None:
    """An address that is taken is told at once."""
    server = await serve("127.0.0.1", 0).start()
    with pytest.raises(asyncserver.BindError):
        await serve(*server.addresses[0][:2]).start()
    await server.close()


async def test_cancelled_start_leaves_nothing(serve: Serve) -> None:
    """Cancelled in any round of the loop it has started, or has bound nothing."""
    place = "127.0.0.1", free_port()
    outcomes = []
    for rounds in range(20):
        task = asyncio.ensure_future(serve(*place).start())
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        outcomes.append(type(outcome))
        if isinstance(outcome, asyncserver.Server):
            await outcome.close()
        server = await serve(*place).start()  # the port is free
        await server.close()
    assert asyncio.CancelledError in outcomes


async def test_await_says_that_it_gives_no_server(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """`server = await serve(...)` waits for ever: the log says so, and what to write."""
    with caplog.at_level(logging.INFO, "asyncserver"):
        task = await blocked(_awaited(serve("127.0.0.1", 0)))
        await until(lambda: caplog.records)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"serving on {record.server}; ")  # type: ignore[attr-defined]
    assert "returns when it is closed; for a Server write `await serve" in record.getMessage()
    assert "(...).start()`" in record.getMessage()
    task.cancel()
    await asyncio.wait([task])


async def _awaited(serving: asyncserver.Serving) -> None:
    await serving


@pytest.mark.parametrize("loop", LOOPS)
def test_never_closed_warns(serve: Serve, loop: str) -> None:
    """A server that its loop leaves behind warns, as asyncio's transports do, and nothing hangs."""
    factory = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop

    async def forget() -> None:
        server = await serve("127.0.0.1", 0).start()
        await ask(server)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(forget())
        del runner
        gc.collect()
    told = [str(one.message) for one in caught if one.category is ResourceWarning]
    assert any("unclosed server <" in text and "`await server.close()`" in text for text in told), told


async def test_server_whose_protocol_fails_was_never_there() -> None:
    """A factory that raises is the error of start(), and no server is left that could warn."""

    def broken() -> asyncio.DatagramProtocol:
        raise LookupError("no protocol")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LookupError, match="no protocol"):
            await asyncserver.serve_datagrams(asyncserver.from_protocol(broken), "127.0.0.1", 0).start()
        gc.collect()
