"""A running server: limits, idle connections, handlers that misbehave, statistics, pausing, and close()."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import signal
import socket
from typing import TYPE_CHECKING, Any, Self

import anyio
import pytest

import asyncserver
from tests.serverkit import (
    KINDS,
    LOOPS,
    PATIENCE,
    Wire,
    errors_in,
    is_balanced,
    run_script,
    until,
    upper,
)

if TYPE_CHECKING:
    from pathlib import Path

    from asyncserver import Stream


@pytest.fixture(params=KINDS)
def wire(request: pytest.FixtureRequest, tmp_path: Path) -> Wire:
    return Wire(request.param, tmp_path)


@pytest.fixture
def tcp(tmp_path: Path) -> Wire:
    return Wire("tcp", tmp_path)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Abort a third of a second after the cancellation; how long a real one takes is tested in test_drain.py."""
    monkeypatch.setattr("asyncserver.server._CANCEL_GRACE", 0.3)


class Hung:
    """A handler that waits until it is released, and says so when it begins."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.release = asyncio.Event()
        self.running = 0

    async def __call__(self, stream: Stream) -> None:
        self.running += 1
        self.begun.set()
        try:
            await self.release.wait()
        finally:
            self.running -= 1


# -- limits


async def test_max_connections_leaves_the_rest_to_the_kernel_and_serves_it_later(wire: Wire) -> None:
    """Over the limit nobody is refused: accepting pauses, and each who waits is served when one has left."""
    most = now = 0

    async def counted(stream: Stream) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        try:
            await upper(stream)
        finally:
            now -= 1

    async with wire.serve(counted, max_connections=2) as server:
        first, second = await wire.dial(server), await wire.dial(server)
        assert [await first.ask(b"a"), await second.ask(b"b")] == [b"A", b"B"]
        waiting = [asyncio.create_task(wire.dial(server)) for _ in range(3)]
        for _ in range(20):  # the loop has had every chance to accept them
            assert await first.ask(b"still here") == b"STILL HERE"
        assert server.stats().accepted == 2
        await first.aclose()
        await second.aclose()
        for task in waiting:
            client = await task
            assert await client.ask(b"at last") == b"AT LAST"
            await client.aclose()
        await until(lambda: server.stats().active == 0)
        assert server.stats().completed == server.stats().accepted == 5
    assert most == 2


async def test_one_more_connection_than_the_limit_is_not_accepted_from_a_second_address(tmp_path: Path) -> None:
    """The limit is one for all of a server's addresses."""
    async with asyncserver.serve(upper, ["127.0.0.1", "127.0.0.2"], 0, max_connections=1) as server:
        readers = [await asyncio.open_connection(*address[:2]) for address in server.addresses]
        readers[0][1].write(b"a")
        assert await readers[0][0].readexactly(1) == b"A"
        readers[1][1].write(b"b")
        for _ in range(20):
            readers[0][1].write(b"a")
            assert await readers[0][0].readexactly(1) == b"A"
        assert server.stats().accepted == 1
        readers[0][1].close()
        assert await readers[1][0].readexactly(1) == b"B"
        readers[1][1].close()
        for _, writer in readers:
            await writer.wait_closed()


async def test_max_connections_per_host_closes_those_over_it_at_once() -> None:
    """A second connection from one host is refused, one from another host served; both again when one has left."""

    async def dial(address: Any, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*address, local_addr=(host, 0))

    async with asyncserver.serve(upper, "127.0.0.1", 0, max_connections_per_host=1) as server:
        address = server.addresses[0]
        reader, writer = await dial(address, "127.0.0.1")
        writer.write(b"first")
        assert await reader.read(9) == b"FIRST"
        second_reader, second_writer = await dial(address, "127.0.0.1")
        assert await second_reader.read(9) == b""
        other_reader, other_writer = await dial(address, "127.0.0.2")
        other_writer.write(b"other")
        assert await other_reader.read(9) == b"OTHER"
        assert server.stats().refused == 1
        writer.close()
        await until(lambda: server.stats().completed == 1)
        third_reader, third_writer = await dial(address, "127.0.0.1")
        third_writer.write(b"third")
        assert await third_reader.read(9) == b"THIRD"
        assert is_balanced(server)
        for one in (writer, second_writer, other_writer, third_writer):
            one.close()
            await one.wait_closed()
    assert server.stats().accepted == 4


async def test_limit_per_host_counts_all_unix_peers_as_one(tmp_path: Path) -> None:
    """Unix peers have no address to tell them apart by."""
    wire = Wire("unix", tmp_path)
    async with wire.serve(upper, max_connections_per_host=1) as server, wire.connect(server) as first:
        assert await first.ask(b"a") == b"A"
        async with wire.connect(server) as second:
            assert await second.rest() == b""
        assert server.stats().refused == 1


async def test_silent_client_does_not_hold_a_tls_handshake_open(tmp_path: Path) -> None:
    """Who does not shake hands in time is closed and counted as refused, and nobody's error."""
    wire = Wire("tls", tmp_path)
    async with wire.serve(upper, ssl_handshake_timeout=0.2) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0][:2])
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        await until(lambda: server.stats().refused == 1)
        assert is_balanced(server)
        writer.close()
        await writer.wait_closed()


async def test_nonsense_instead_of_tls_is_refused_without_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A plain-text client of a TLS server costs a counter, not a log line; the others are served."""
    wire = Wire("tls", tmp_path)
    async with wire.serve(upper) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0][:2])
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        async with wire.connect(server) as client:
            assert await client.ask(b"fine") == b"FINE"
        await until(lambda: server.stats().active == 0)
        assert (server.stats().refused, server.stats().completed) == (1, 1)
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    assert not errors_in(caplog)


# -- idle connections


async def test_idle_timeout_strikes_in_time_and_is_not_an_error(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """A silent connection ends after idle_timeout, at most an eighth later; it is counted and not logged."""
    took = asyncio.get_running_loop().create_future()
    told: list[object] = []

    async def patient(stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            await stream.receive()
        finally:
            took.set_result(loop.time() - begun)

    serving = wire.serve(patient, idle_timeout=0.4, on_error=lambda *event: told.append(event))
    async with serving as server, wire.connect(server) as client:
        assert await client.rest() == b""
        assert 0.4 <= await took + 0.03 <= 0.45 + 0.25  # TLS: what counts begins before; and a busy machine's delay
        await until(lambda: server.stats().timed_out == 1)
        assert is_balanced(server)
    assert not errors_in(caplog)
    assert told == []


async def test_caught_idle_timeout_leaves_the_stream_usable(wire: Wire) -> None:
    """A handler may catch IdleTimeout, say something, and go on; the next silence is told again."""
    heard: list[str] = []

    async def keeper(stream: Stream) -> None:
        for _ in range(2):
            try:
                await stream.receive()
            except TimeoutError as exc:
                assert isinstance(exc, asyncserver.IdleTimeout)
                assert repr(stream.peer_address) in str(exc)
                heard.append("silence")
                await stream.send(b"?")
        async for data in stream:
            await stream.send(data.upper())

    async with wire.serve(keeper, idle_timeout=0.1) as server, wire.connect(server) as client:
        assert await client.receive_exactly(2) == b"??"
        assert await client.ask(b"here") == b"HERE"
        await client.aclose()
        await until(lambda: server.stats().completed == 1)
    assert heard == ["silence"] * 2
    assert server.stats().timed_out == 0


async def test_idle_timeout_keeps_what_receive_exactly_had_got(wire: Wire) -> None:
    """The beginning of a message that stopped in its middle is not lost with IdleTimeout."""

    async def keeper(stream: Stream) -> None:
        try:
            await stream.receive_exactly(10)
        except asyncserver.IdleTimeout:
            await stream.send(b"got " + await stream.receive())

    async with wire.serve(keeper, idle_timeout=0.1) as server, wire.connect(server) as client:
        await client.send(b"half")
        assert await client.rest() == b"got half"


async def test_busy_connection_is_not_timed_out(wire: Wire) -> None:
    """Bytes in one direction, whichever it is, are enough, however long it takes."""
    pings = 10

    async def handler(stream: Stream) -> None:
        if await stream.receive(1) == b"r":
            await stream.receive_exactly(pings)
            await stream.send(b"ok")
            return
        listening = asyncio.create_task(stream.receive())
        for _ in range(pings):
            await asyncio.sleep(0.05)  # the pace is what is tested
            await stream.send(b".")
        listening.cancel()

    async with wire.serve(handler, idle_timeout=0.4) as server:
        async with wire.connect(server) as speaking, wire.connect(server) as listening:
            await speaking.send(b"r")
            await listening.send(b"s")
            for _ in range(pings):
                await asyncio.sleep(0.05)
                await speaking.send(b".")
            assert await speaking.rest() == b"ok"
            assert await listening.rest() == b"." * pings
        await until(lambda: server.stats().active == 0)
        assert server.stats().completed == 2


async def test_idle_timeout_ends_a_send_that_nobody_takes(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """A peer that does not read cannot hold a handler for ever."""

    async def flood(stream: Stream) -> None:
        while True:
            await stream.send(bytes(1 << 20))

    async with wire.serve(flood, idle_timeout=0.15) as server, wire.connect(server):
        await until(lambda: server.stats().timed_out == 1)
        assert is_balanced(server)
        await until(lambda: server.stats().active == 0)
    assert not errors_in(caplog)


async def test_idle_timeout_is_told_to_both_directions(tcp: Wire) -> None:
    """A receive and a send that both wait on a silent peer are both told, neither instead of the other."""
    told: list[str] = []

    async def both(stream: Stream) -> None:
        async def take() -> None:
            while "send" not in told:  # room that the kernel finds at the last moment may delay the send's
                with contextlib.suppress(asyncserver.IdleTimeout):
                    await stream.receive()
                told.append("receive")

        async def give() -> None:
            with contextlib.suppress(asyncserver.IdleTimeout):
                while True:
                    await stream.send(bytes(1 << 20))
            told.append("send")

        await asyncio.gather(take(), give())

    async with tcp.serve(both, idle_timeout=0.2, drain_timeout=0.1) as server, tcp.connect(server):
        await until(lambda: server.stats().completed == 1, 5)
    assert "receive" in told


async def test_idle_timeout_in_a_task_group_is_no_error(tcp: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """An exception group that holds only IdleTimeout and the peer's leaving counts as the time-out it is."""

    async def grouped(stream: Stream) -> None:
        async def leave() -> None:
            try:
                await asyncio.sleep(PATIENCE)
            except asyncio.CancelledError:
                raise anyio.EndOfStream from None

        async with asyncio.TaskGroup() as group:
            group.create_task(stream.receive())
            group.create_task(leave())

    async with tcp.serve(grouped, idle_timeout=0.1) as server, tcp.connect(server) as client:
        assert await client.rest() == b""
        await until(lambda: server.stats().timed_out == 1)
    assert not errors_in(caplog)


# -- handlers that misbehave


class Misbehaving:
    """A handler that does what the first word asks for; otherwise it sends capitals. At the end it is let go."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release.set()
        await asyncio.sleep(0)

    async def __call__(self, stream: Stream) -> None:
        word = await stream.receive()
        if word == b"raise":
            raise ValueError("the handler's own mistake")
        if word == b"hang":
            await self.release.wait()
        while word == b"swallow" and not self.release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.release.wait()
        await stream.send(word.upper())
        await upper(stream)


async def test_misbehaving_handlers_hurt_nobody_else(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """One raises, one hangs, one swallows its cancellation: the others are served; all is counted, and told once."""
    told: list[tuple[BaseException, Any]] = []

    def on_error(exc: BaseException, source: object) -> None:
        told.append((exc, source))

    async with Misbehaving() as handler, wire.serve(handler, drain_timeout=0.1, on_error=on_error) as server:
        clients = [await wire.dial(server) for _ in range(5)]
        assert await clients[0].ask(b"before") == b"BEFORE"
        for client, word in zip(clients[1:4], (b"raise", b"hang", b"swallow"), strict=True):
            await client.send(word)
        assert await clients[1].rest() == b""
        assert await clients[0].ask(b"after") == b"AFTER"
        assert await clients[4].ask(b"late") == b"LATE"
        assert server.stats().active == 4
        await clients[0].aclose()
        await until(lambda: server.stats().completed == 1)
        report = await server.close()
    now = server.stats()
    assert report == asyncserver.DrainReport(completed=1, cancelled=1, aborted=1)
    assert (now.accepted, now.completed, now.failed, now.cancelled, now.active) == (5, 2, 1, 2, 0)
    (record,) = errors_in(caplog)
    ((exc, source),) = told
    assert record.exc_info[1] is exc
    assert isinstance(exc, ValueError)
    assert str(source.peer_address) in record.getMessage()
    for client in clients:
        await client.aclose()


async def test_error_is_logged_with_the_address_of_its_peer(tcp: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """The log line tells which client it was, with its port."""

    async def broken(stream: Stream) -> None:
        raise LookupError("no such thing")

    async with tcp.serve(broken) as server, tcp.connect(server) as client:
        peer = client.writer.get_extra_info("sockname")
        assert await client.rest() == b""
        await until(lambda: server.stats().failed == 1)
    (record,) = errors_in(caplog)
    assert str(peer) in record.getMessage()
    assert "no such thing" in caplog.text


async def test_on_error_may_itself_raise(tcp: Wire, caplog: pytest.LogCaptureFixture) -> None:
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
        await until(lambda: server.stats().active == 0)
        assert (server.stats().failed, server.stats().completed) == (1, 1)
    handler_record, on_error_record = errors_in(caplog)
    assert isinstance(handler_record.exc_info[1], ValueError)
    assert isinstance(on_error_record.exc_info[1], RuntimeError)


async def test_exception_group_is_an_error_unless_only_the_peer_has_left(
    tcp: Wire, caplog: pytest.LogCaptureFixture
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
        await until(lambda: server.stats().active == 0 and server.stats().accepted == 2)
        assert (server.stats().failed, server.stats().completed) == (1, 1)
    (exc,) = told
    assert isinstance(exc, ExceptionGroup)
    assert exc.subgroup(ValueError) is not None
    assert len(errors_in(caplog)) == 1


async def test_handler_with_the_wrong_signature_fails_each_connection_only(
    tcp: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    """Calling the handler raises before there is a coroutine: that too is its error, and stays in its connection."""

    async def no_argument() -> None:
        raise AssertionError("cannot be called")

    async with tcp.serve(no_argument) as server:
        for _ in range(2):
            async with tcp.connect(server) as client:
                assert await client.rest() == b""
        await until(lambda: server.stats().failed == 2)
        assert is_balanced(server)
    assert all(isinstance(record.exc_info[1], TypeError) for record in errors_in(caplog))


@pytest.mark.parametrize("act", ["receive", "send", "nothing"])
async def test_reset_is_not_an_error(wire: Wire, act: str, caplog: pytest.LogCaptureFixture) -> None:
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

    async with wire.serve(handler, on_error=lambda exc, _: told.append(exc)) as server:
        client = await wire.dial(server)
        await client.send(b"hello")
        await begun.wait()
        client.reset()
        leave.set()
        await until(lambda: server.stats().active == 0)
        assert (server.stats().completed, server.stats().failed) == (1, 0)
        await client.aclose()
    assert told == []
    assert not errors_in(caplog)


async def test_each_connection_has_a_context_of_its_own(tcp: Wire) -> None:
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


async def test_task_factory_of_the_program_is_used(tcp: Wire) -> None:
    """Handlers run in the tasks that the program's own factory makes."""
    made: list[str] = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        made.append(getattr(coroutine, "__name__", ""))
        return asyncio.Task(coroutine, loop=loop, **options)

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


# -- statistics, pausing, the snapshot


def over_the_limit(server: asyncserver.Server) -> socket.socket:
    """Connect, at a level where it does not matter whether the server speaks TLS."""
    address: Any = server.addresses[0]
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.connect(address)
    sock.setblocking(False)
    return sock


async def test_statistics_balance_over_every_way_to_end(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """Accepted connections and bytes add up at any time, whatever became of the connections."""
    caplog.set_level(logging.CRITICAL, "asyncserver")
    words = (b"hello", b"raise", b"hang", b"swallow", b"silent", b"reset") * 4
    sent = received = 0
    limits = {"max_connections_per_host": 20, "drain_timeout": 0.1}
    async with Misbehaving() as handler, wire.serve(handler, **limits) as server:
        clients = [await wire.dial(server) for _ in words[:20]]
        for _ in range(2):
            over = await asyncio.open_connection(sock=over_the_limit(server))
            assert await over[0].read() == b""
            over[1].close()
        assert server.stats().refused == 2
        for client, word in zip(clients, words, strict=False):
            if word == b"reset":
                client.reset()
            elif word != b"silent":
                sent += len(word)
                await client.send(word)
            if word == b"hello":
                assert await client.receive_exactly(5) == b"HELLO"
                received += 5
            assert is_balanced(server)
        await until(lambda: server.stats().bytes_received == sent)
        assert server.stats().bytes_sent == received
        await until(lambda: server.stats().failed == 4)
        assert is_balanced(server)
        await server.close()
        assert is_balanced(server)
        handler.release.set()
        for client in clients:
            await client.aclose()
    assert is_balanced(server)
    assert server.stats().active == 0
    assert (server.stats().bytes_received, server.stats().bytes_sent) == (sent, received)


async def test_pause_leaves_connections_to_the_kernel_until_resume(wire: Wire) -> None:
    """While paused nothing is accepted and open connections go on; resume serves who has waited."""
    async with wire.serve(upper) as server, wire.connect(server) as early:
        assert await early.ask(b"early") == b"EARLY"
        server.pause()
        server.pause()
        late = asyncio.create_task(wire.dial(server))
        for _ in range(20):
            assert await early.ask(b"still") == b"STILL"
        assert server.stats().accepted == 1
        server.resume()
        server.resume()
        client = await late
        assert await client.ask(b"late") == b"LATE"
        assert server.stats().accepted == 2
        await client.aclose()


async def test_resume_does_not_lift_the_limit(tcp: Wire) -> None:
    """pause() and max_connections are two reasons not to accept: both must be gone."""
    async with tcp.serve(upper, max_connections=1) as server, tcp.connect(server) as first:
        assert await first.ask(b"a") == b"A"
        server.pause()
        server.resume()
        async with tcp.connect(server) as second:
            await second.send(b"b")
            for _ in range(20):
                assert await first.ask(b"a") == b"A"
            assert server.stats().accepted == 1
            server.pause()
            await first.aclose()
            await until(lambda: server.stats().completed == 1)
            assert server.stats().accepted == 1
            server.resume()
            assert await second.receive_exactly(1) == b"B"


async def test_connections_is_a_snapshot_of_live_streams(wire: Wire) -> None:
    """It holds the streams whose handlers run; what happens later does not change it."""
    seen: list[frozenset[Any]] = []

    async def handler(stream: Stream) -> None:
        seen.append(server.connections)  # also before the first wait
        await upper(stream)

    async with wire.serve(handler) as server:
        assert server.connections == frozenset()
        async with wire.connect(server) as client:
            assert await client.ask(b"a") == b"A"
            before = server.connections
            (stream,) = before
            assert isinstance(stream, asyncserver.Stream)
            assert stream.bytes_received == 1
        await until(lambda: not server.connections)
        assert before == {stream}
    assert seen == [{stream}]


async def test_abort_from_outside_ends_a_connection(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """An operator may abort a stream of the snapshot; its handler gets an error, the others nothing."""
    caplog.set_level(logging.CRITICAL, "asyncserver")
    async with wire.serve(upper) as server, wire.connect(server) as client:
        assert await client.ask(b"a") == b"A"
        (stream,) = server.connections
        async with wire.connect(server) as other:
            assert await other.ask(b"b") == b"B"
            stream.abort()
            assert await client.rest() == b""
            await until(lambda: server.stats().active == 1)
            assert await other.ask(b"b") == b"B"
            assert is_balanced(server)


async def test_repr_tells_the_state(tcp: Wire) -> None:
    """A server's repr says where it listens and whether it does."""
    async with tcp.serve(upper) as server:
        assert repr(server) == f"<StreamServer serving on {server.addresses[0]}>"
        (sock,) = server.sockets
        assert sock.getsockname() == server.addresses[0]
    assert repr(server) == f"<StreamServer closed on {server.addresses[0]}>"
    assert not server.sockets


# -- how it is closed


async def test_close_twice_gives_the_same_report(wire: Wire) -> None:
    """The second call, and any later one, waits for the same end."""
    async with wire.serve(upper) as server, wire.connect(server) as client:
        assert await client.ask(b"a") == b"A"
        reports = list(await asyncio.gather(server.close(), server.close(5), server.close()))
        assert reports == [asyncserver.DrainReport(completed=1)] * 3
        assert await server.close() == reports[0]
        await server.wait_closed()
        assert is_balanced(server)


async def test_second_close_may_be_more_impatient(wire: Wire) -> None:
    """A shorter deadline of a later call counts for all who wait; a longer one does not."""
    hung = Hung()
    async with wire.serve(hung, drain_timeout=PATIENCE) as server, wire.connect(server):
        await hung.begun.wait()
        patient = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        longer = asyncio.create_task(server.close(10 * PATIENCE))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            assert await server.close(0) == asyncserver.DrainReport(cancelled=1)
        assert await patient == await longer == asyncserver.DrainReport(cancelled=1)


async def test_close_from_inside_a_handler_does_not_wait_for_it(wire: Wire) -> None:
    """The handler that closes the server gets its report, and may still send its last word."""
    reports: list[asyncserver.DrainReport] = []

    async def closer(stream: Stream) -> None:
        if await stream.receive() == b"close":
            reports.append(await server.close())
            await stream.send(b"closed")
        else:
            await stream.send(b"working")
            await upper(stream)

    async with wire.serve(closer) as server, wire.connect(server) as other, wire.connect(server) as client:
        await other.send(b"work")
        assert await other.receive() == b"working"
        await client.send(b"close")
        assert await client.rest() == b"closed"
        async with asyncio.timeout(PATIENCE):
            await server.wait_closed()
        assert reports == [asyncserver.DrainReport(completed=1)]
        assert server.stats().completed == 2
        assert is_balanced(server)


async def test_two_handlers_that_close_do_not_wait_for_each_other(wire: Wire) -> None:
    """close() from two handlers at once: both get the report at once."""
    both = asyncio.Barrier(2)
    reports: list[asyncserver.DrainReport] = []

    async def closer(stream: Stream) -> None:
        await both.wait()
        reports.append(await server.close())

    async with wire.serve(closer, drain_timeout=PATIENCE) as server, wire.connect(server), wire.connect(server):
        async with asyncio.timeout(PATIENCE / 2):
            await server.wait_closed()
    assert reports == [asyncserver.DrainReport()] * 2
    assert server.stats().completed == 2


async def test_second_handler_may_close_while_the_first_waits(wire: Wire) -> None:
    """The handler that closes later was being waited for: its own call lets go the first."""
    order: list[str] = []

    async def closer(stream: Stream) -> None:
        word = (await stream.receive()).decode()
        if word == "second":
            await stream.closing.wait()
        order.append(word)
        await server.close()

    serving = wire.serve(closer, drain_timeout=PATIENCE)
    async with serving as server, wire.connect(server) as second, wire.connect(server) as first:
        await second.send(b"second")
        await until(lambda: server.stats().bytes_received == 6)
        await first.send(b"first")
        async with asyncio.timeout(PATIENCE / 2):
            await server.wait_closed()
    assert order == ["first", "second"]
    assert server.stats().completed == 2


async def test_close_from_a_child_task_of_a_handler_ends_at_the_deadline(wire: Wire) -> None:
    """The handler waits for its child and the child for the handler: the deadline resolves that."""

    async def parent(stream: Stream) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.close())

    async with wire.serve(parent, drain_timeout=0.2) as server, wire.connect(server):
        async with asyncio.timeout(5):
            await server.wait_closed()
        assert server.stats().active == 0
        assert is_balanced(server)


async def test_handler_that_closed_and_then_hangs_is_cancelled_at_the_deadline(wire: Wire) -> None:
    """wait_closed() does not wait for ever for the handler that called close()."""
    forever = asyncio.Event()

    async def closer(stream: Stream) -> None:
        await server.close(0.1)
        await forever.wait()

    async with wire.serve(closer) as server, wire.connect(server):
        async with asyncio.timeout(5):
            await server.wait_closed()
        assert server.stats().cancelled == 1
        assert is_balanced(server)


async def test_cancelled_close_ends_at_once_and_counts_right(wire: Wire) -> None:
    """Being cancelled while close() waits makes the deadline now; CancelledError comes when all is over."""
    hung = Hung()
    async with wire.serve(hung, drain_timeout=PATIENCE) as server, wire.connect(server):
        await hung.begun.wait()
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.sleep(0)
        closing.cancel()  # twice: an impatient caller
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(5):
                await closing
        assert hung.running == 0
        assert (server.stats().cancelled, server.stats().active) == (1, 0)
        assert await server.close() == asyncserver.DrainReport(cancelled=1)


async def test_close_under_asyncio_timeout_ends_about_when_that_says(wire: Wire) -> None:
    """asyncio.timeout around close() is a deadline for the drain."""
    hung = Hung()
    async with wire.serve(hung, drain_timeout=PATIENCE) as server, wire.connect(server):
        await hung.begun.wait()
        begun = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await server.close()
        assert asyncio.get_running_loop().time() - begun < 5
        assert (server.stats().cancelled, server.stats().active) == (1, 0)


async def test_close_under_an_anyio_scope_ends_about_when_that_says(wire: Wire) -> None:
    """An anyio scope that is cancelled while close() waits is a deadline for the drain too."""
    hung = Hung()
    async with wire.serve(hung, drain_timeout=PATIENCE) as server, wire.connect(server):
        await hung.begun.wait()
        begun = asyncio.get_running_loop().time()
        with anyio.move_on_after(0.2) as scope:
            await server.close()
        assert asyncio.get_running_loop().time() - begun < 5
        assert scope.cancelled_caught
        assert (server.stats().cancelled, server.stats().active) == (1, 0)


async def test_close_in_a_scope_that_is_cancelled_already_still_drains(wire: Wire) -> None:
    """Cleaning up after a cancellation is when close() is needed most: handlers get to finish."""
    finished = asyncio.Event()

    async def finishing(stream: Stream) -> None:
        await stream.receive()
        await stream.closing.wait()
        await asyncio.sleep(0.1)
        await stream.send(b"finished")
        finished.set()

    async with wire.serve(finishing, drain_timeout=5) as server, wire.connect(server) as client:
        await client.send(b"begin")
        await until(lambda: server.stats().bytes_received == 5)
        with anyio.CancelScope() as scope:
            scope.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                assert await server.close() == asyncserver.DrainReport(completed=1)
        await server.wait_closed()
        assert server.stats().active == 0
        assert finished.is_set()
        assert await client.rest() == b"finished"


async def test_serving_in_a_cancelled_task_group_drains_and_returns(wire: Wire) -> None:
    """Cancelling the task group that serves is how an anyio program stops: polite, and counted right."""
    hung = Hung()
    async with anyio.create_task_group() as group, contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(wire.serve(hung, drain_timeout=0.1))
        await stack.enter_async_context(wire.connect(server))
        await hung.begun.wait()
        group.cancel_scope.cancel()
    assert server is not None
    assert (server.stats().cancelled, server.stats().active) == (1, 0)
    assert repr(server).startswith("<StreamServer closed")


async def test_close_gives_up_a_handler_that_swallows_cancellation(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    """Some time after its cancellation its connection is aborted, which is logged, and close() returns."""
    async with (
        Misbehaving() as handler,
        wire.serve(handler, drain_timeout=0.1) as server,
        wire.connect(server) as client,
    ):
        await client.send(b"swallow")
        await until(lambda: server.stats().bytes_received == 7)
        async with asyncio.timeout(5):
            assert await server.close() == asyncserver.DrainReport(aborted=1)
            await server.wait_closed()
        assert await client.rest() == b""
        assert (server.stats().cancelled, server.stats().active) == (1, 0)
        assert server.connections == frozenset()
        assert "ignored its cancellation" in caplog.text
        handler.release.set()
        await asyncio.sleep(0)
    gc.collect()  # what it raised when its connection had gone is nobody's unhandled error
    assert (server.stats().cancelled, server.stats().completed) == (1, 0)


async def test_wait_closed_returns_only_when_all_is_over(tcp: Wire) -> None:
    """It waits for close() by somebody else, and for the last handler; any number may wait."""
    async with tcp.serve(upper) as server, tcp.connect(server) as client:
        waiting = [asyncio.create_task(server.wait_closed()) for _ in range(2)]
        assert await client.ask(b"a") == b"A"
        assert not any(task.done() for task in waiting)
        await server.close()
        await asyncio.gather(*waiting)
        assert server.stats().active == 0


async def test_close_callbacks_are_called_when_all_is_over(tcp: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """Once each, after the last handler; one that raises is logged and keeps nobody from closing."""
    events: list[str] = []

    async def handler(stream: Stream) -> None:
        await stream.closing.wait()
        events.append("handler")

    def broken() -> None:
        raise ValueError("in a close callback")

    async with tcp.serve(handler) as server, tcp.connect(server):
        await until(lambda: server.stats().active == 1)
        server.add_close_callback(lambda: events.append("first"))
        server.add_close_callback(broken)
        server.add_close_callback(lambda: events.append("last"))
        await server.close()
        await server.close()
    assert events == ["handler", "first", "last"]
    assert "in a close callback" in caplog.text


@pytest.mark.parametrize("method", ["pause", "resume", "reload_tls"])
async def test_server_used_after_close_says_so(tcp: Wire, method: str) -> None:
    """The error names the call, the server, and what to do."""
    async with tcp.serve(upper) as server:
        pass
    with pytest.raises(RuntimeError, match=rf"{method}\(\): <StreamServer closed .*start another with serve"):
        getattr(server, method)()
    assert await server.close() == asyncserver.DrainReport()


async def test_port_is_free_again_after_close(tcp: Wire) -> None:
    """A closed server refuses connections, and another can have its port at once."""
    async with tcp.serve(upper) as server, tcp.connect(server) as client:
        assert await client.ask(b"a") == b"A"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.addresses[0])
    host, port = server.addresses[0][:2]
    async with asyncserver.serve(upper, str(host), int(port)):
        pass


async def test_reload_tls_without_tls_says_so(tcp: Wire) -> None:
    """There is nothing to reload on a server that does not speak TLS."""
    async with tcp.serve(upper) as server:
        with pytest.raises(RuntimeError, match="does not speak TLS"):
            server.reload_tls()
