"""A running server whose handlers misbehave: nobody else is hurt."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import signal
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver import Stream
from asyncserver.servers.handlers import HandlerServer
from tests.kit.checks import errors_in, is_balanced, is_idle
from tests.kit.handlers import Misbehaving, upper
from tests.kit.programs import LOOPS, run_script
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until


async def test_misbehaving_handlers_hurt_nobody_else(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """One raises, one hangs, one swallows its cancellation: the others are served; all is counted, and told once."""
    told: list[tuple[BaseException, Any]] = []

    def on_error(exc: BaseException, source: object) -> None:
        told.append((exc, source))

    async with Misbehaving() as handler, transport.serve(handler, on_error=on_error) as server:
        clients = [await transport.connect(server) for _ in range(5)]
        assert await clients[0].ask(b"before") == b"BEFORE"
        for client, word in zip(clients[1:4], (b"raise", b"hang", b"swallow"), strict=True):
            await client.send(word)
        assert await clients[1].rest() == b""
        assert await clients[0].ask(b"after") == b"AFTER"
        assert await clients[4].ask(b"late") == b"LATE"
        assert server.stats().active == 4
        clients[0].close()
        assert isinstance(server, HandlerServer)
        await until(lambda: server.stats().completed == 1 and not server._closing_sources)
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: server.stats().completed == 2)
        await server.close(0)
        report = await closing
    now = server.stats()
    assert report == asyncserver.DrainReport(completed=1, cancelled=1, aborted=1)
    assert (now.accepted, now.completed, now.failed, now.cancelled, now.active) == (5, 2, 1, 2, 0)
    (record,) = errors_in(caplog)
    ((exc, source),) = told
    assert record.exc_info[1] is exc
    assert isinstance(exc, ValueError)
    assert str(source.peer_address) in record.getMessage()
    for client in clients:
        client.close()


async def test_error_is_logged_with_the_address_of_its_peer(tcp: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """The log line tells which client it was, with its port."""

    async def broken(stream: Stream) -> None:
        raise LookupError("no such thing")

    async with tcp.serve(broken) as server, tcp.connect(server) as client:
        peer = client.sock.getsockname()
        assert await client.rest() == b""
        await until(lambda: server.stats().failed == 1)
    (record,) = errors_in(caplog)
    assert str(peer) in record.getMessage()
    assert "no such thing" in caplog.text


async def test_on_error_may_itself_raise(tcp: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """An on_error that fails is logged too, and the server goes on."""

    def on_error(exc: BaseException, source: object) -> None:
        raise RuntimeError("on_error is broken as well") from exc

    async def broken(stream: Stream) -> None:
        if await stream.receive() == b"raise":
            raise ValueError
        await stream.send(b"fine")

    async with tcp.serve(broken, on_error=on_error) as server:
        async with tcp.connect(server) as client:
            await client.send(b"raise")
            assert await client.rest() == b""
        async with tcp.connect(server) as client:
            await client.send(b"do not")
            assert await client.rest() == b"fine"
        await until(lambda: is_idle(server))
        assert (server.stats().failed, server.stats().completed) == (1, 1)
    handler_record, on_error_record = errors_in(caplog)
    assert isinstance(handler_record.exc_info[1], ValueError)
    assert isinstance(on_error_record.exc_info[1], RuntimeError)


async def test_exception_group_is_an_error_unless_only_the_peer_has_left(
    tcp: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """A task group's error is given whole to on_error; a group of nothing but the peer's leaving is none."""
    told: list[BaseException] = []

    async def grouped(stream: Stream) -> None:
        word = await stream.receive()
        async with asyncio.TaskGroup() as group:
            group.create_task(stream.receive_exactly(10))
            if word == b"raise":
                group.create_task(raising())

    async def raising() -> None:
        raise ValueError("in the group")

    async with tcp.serve(grouped, on_error=lambda exc, _: told.append(exc)) as server:
        for word in (b"raise", b"leave"):
            async with tcp.connect(server) as client:
                await client.send(word)
        await until(lambda: is_idle(server) and server.stats().accepted == 2)
        assert (server.stats().failed, server.stats().completed) == (1, 1)
    (exc,) = told
    assert isinstance(exc, ExceptionGroup)
    assert exc.subgroup(ValueError) is not None
    assert len(errors_in(caplog)) == 1


async def test_handler_with_the_wrong_signature_fails_each_connection_only(
    tcp: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """Calling the handler raises before there is a coroutine: that too is its error, and stays in its connection."""

    async def no_argument() -> None:
        raise AssertionError("cannot be called")

    # As a decorator may claim it; otherwise it would be refused at once.
    no_argument.__signature__ = inspect.signature(upper)  # type: ignore[attr-defined]
    async with tcp.serve(no_argument) as server:
        for _ in range(2):
            async with tcp.connect(server) as client:
                assert await client.rest() == b""
        await until(lambda: server.stats().failed == 2)
        assert is_balanced(server)
    assert all(isinstance(record.exc_info[1], TypeError) for record in errors_in(caplog))


@pytest.mark.parametrize("act", ["receive", "send", "nothing"])
async def test_reset_is_not_an_error(transport: Transport, act: str, caplog: pytest.LogCaptureFixture) -> None:
    """A peer that resets while the handler receives, sends or does neither costs no log line and no on_error."""
    told: list[BaseException] = []
    begun = asyncio.Event()
    leave = asyncio.Event()

    async def handler(stream: Stream) -> None:
        await stream.receive()
        begun.set()
        if act == "nothing":
            await leave.wait()
        while act == "receive":
            await stream.receive()
        while act == "send":
            await stream.send(bytes(1 << 20))

    async with transport.serve(handler, on_error=lambda exc, _: told.append(exc)) as server:
        client = await transport.connect(server)
        await client.send(b"hello")
        await begun.wait()
        client.reset()
        leave.set()
        await until(lambda: is_idle(server))
        assert (server.stats().completed, server.stats().failed) == (1, 0)
        client.close()
    assert told == []
    assert not errors_in(caplog)


async def test_each_connection_has_a_context_of_its_own(tcp: Transport) -> None:
    """A context variable set in one handler is not seen in another, nor by whoever runs the server."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def handler(stream: Stream) -> None:
        before = variable.get()
        variable.set((await stream.receive()).decode())
        await stream.send(f"{before},".encode())
        await stream.receive()
        await stream.send(variable.get().encode())

    async with tcp.serve(handler) as server, tcp.connect(server) as one, tcp.connect(server) as other:
        await one.send(b"one")
        assert await one.receive() == b"unset,"
        await other.send(b"other")
        assert await other.receive() == b"unset,"
        await one.send(b"?")
        assert await one.receive() == b"one"
        await other.send(b"?")
        assert await other.receive() == b"other"
    assert variable.get() == "unset"


async def test_task_factory_of_the_program_is_used(tcp: Transport) -> None:
    """Handlers run in the tasks that the program's own factory makes."""
    made: list[str] = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        made.append(getattr(coroutine, "__name__", ""))
        return asyncio.Task(coroutine, loop=loop, **options)

    asyncio.get_running_loop().set_debug(False)  # where nothing is put around the handler
    asyncio.get_running_loop().set_task_factory(factory)
    async with tcp.serve(upper) as server, tcp.connect(server) as client:
        assert await client.ask(b"made") == b"MADE"
        assert "upper" in made
    asyncio.get_running_loop().set_task_factory(None)


PROGRAM_THAT_ENDS = """
import asyncio, importlib, socket, sys
import asyncserver

exception, where, loop_name, way = sys.argv[1:]
bound = socket.create_server(("127.0.0.1", 0))
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind(bound.getsockname())
client = socket.create_connection(bound.getsockname())
client.sendall(b"hello")
if way == "run":
    client.shutdown(socket.SHUT_WR)  # so that the drain does not wait for more
udp_client = socket.socket(type=socket.SOCK_DGRAM)
udp_client.sendto(b"hello", udp.getsockname())

async def end(source):
    if where == "after a byte":
        await source.receive()
        client.sendall(b"again")
        await source.receive()
    if where == "after a sleep":
        await asyncio.sleep(0.01)
    raise {"SystemExit": SystemExit(3), "KeyboardInterrupt": KeyboardInterrupt()}[exception]

with client, udp_client, bound, udp:
    if way == "datagram":
        serving = asyncserver.serve_datagrams(end, sock=udp)
    else:
        serving = asyncserver.serve(end, sock=bound)
    if way == "run":
        asyncserver.run(serving, loop=loop_name)
    else:
        async def main():
            await serving

        with asyncio.Runner(loop_factory=importlib.import_module(loop_name).new_event_loop) as runner:
            runner.run(main())
print("never reached")
"""


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("way", "where"),
    [
        ("await", "at once"),
        ("await", "after a byte"),
        ("run", "after a sleep"),
        ("datagram", "at once"),
        ("datagram", "after a sleep"),
    ],
)
def test_system_exit_in_a_handler_ends_the_program(way: str, where: str, loop: str, tmp_path: Path) -> None:
    """As in any asyncio program: the process ends with the status that was asked for."""
    status, output, errors = run_script(PROGRAM_THAT_ENDS, tmp_path, "SystemExit", where, loop, way)
    assert (status, output) == (3, ""), errors


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("way", "where"), [("await", "after a byte"), ("run", "at once"), ("datagram", "at once")])
def test_keyboard_interrupt_in_a_handler_ends_the_program(way: str, where: str, loop: str, tmp_path: Path) -> None:
    """As in any asyncio program: the process ends as if Ctrl-C had ended it."""
    status, output, errors = run_script(PROGRAM_THAT_ENDS, tmp_path, "KeyboardInterrupt", where, loop, way)
    assert status in {130, -signal.SIGINT}, errors
    assert output == ""
    assert errors.rstrip().endswith("KeyboardInterrupt")
