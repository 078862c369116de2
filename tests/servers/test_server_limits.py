"""A running server's limits, and connections that are idle."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import anyio
import pytest

import asyncserver
from asyncserver import Stream
from tests.kit.checks import errors_in, is_balanced, is_idle
from tests.kit.clients import Client
from tests.kit.handlers import upper
from tests.kit.transports import KINDS, Transport
from tests.kit.waiting import PATIENCE, until

# -- limits


async def test_max_connections_leaves_the_rest_to_the_kernel_and_serves_it_later(transport: Transport) -> None:
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

    async with transport.serve(counted, max_connections=2) as server:
        first, second = await transport.connect(server), await transport.connect(server)
        assert [await first.ask(b"a"), await second.ask(b"b")] == [b"A", b"B"]
        waiting = [asyncio.ensure_future(transport.connect(server)) for _ in range(3)]
        for _ in range(20):  # the loop has had every chance to accept them
            assert await first.ask(b"still here") == b"STILL HERE"
        assert server.stats().accepted == 2
        first.close()
        second.close()
        for task in waiting:
            client = await task
            assert await client.ask(b"at last") == b"AT LAST"
            client.close()
        await until(lambda: is_idle(server))
        assert server.stats().completed == server.stats().accepted == 5
    assert most == 2


async def test_one_more_connection_than_the_limit_is_not_accepted_from_a_second_address(tmp_path: Path) -> None:
    """The limit is one for all of a server's addresses."""
    async with asyncserver.serve(upper, ["127.0.0.1", "127.0.0.2"], 0, max_connections=1) as server:
        first, second = [await Client.connect(address) for address in server.addresses]
        assert await first.ask(b"a") == b"A"
        await second.send(b"b")
        for _ in range(20):
            assert await first.ask(b"a") == b"A"
        assert server.stats().accepted == 1
        first.close()
        assert await second.receive() == b"B"
        second.close()


async def test_max_connections_per_host_closes_those_over_it_at_once() -> None:
    """A second connection from one host is refused, one from another host served; both again when one has left."""
    async with asyncserver.serve(upper, "127.0.0.1", 0, max_connections_per_host=1) as server:
        address = server.addresses[0]
        first, second = await Client.connect(address), await Client.connect(address)
        assert await first.ask(b"first") == b"FIRST"
        assert await second.receive() == b""
        async with Client.connect(address, host="127.0.0.2") as other:
            assert await other.ask(b"other") == b"OTHER"
            assert server.stats().refused == 1
            first.close()
            await until(lambda: server.stats().completed == 1)
            async with Client.connect(address) as third:
                assert await third.ask(b"third") == b"THIRD"
                assert is_balanced(server)
        second.close()
    assert server.stats().accepted == 4


async def test_limit_per_host_counts_all_unix_peers_as_one(tmp_path: Path) -> None:
    """Unix peers have no address to tell them apart by."""
    transport = Transport("unix", tmp_path)
    async with transport.serve(upper, max_connections_per_host=1) as server, transport.connect(server) as first:
        assert await first.ask(b"a") == b"A"
        async with transport.connect(server) as second:
            assert await second.rest() == b""
        assert server.stats().refused == 1


async def test_silent_client_does_not_hold_a_tls_handshake_open(tmp_path: Path) -> None:
    """Who does not shake hands in time is closed and counted as refused, and nobody's error."""
    transport = Transport("tls", tmp_path)
    async with transport.serve(upper, ssl_handshake_timeout=0.2) as server:
        async with Client.connect(server.addresses[0]) as client:
            assert await client.receive() == b""
        await until(lambda: server.stats().refused == 1)
        assert is_balanced(server)


async def test_nonsense_instead_of_tls_is_refused_without_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A plain-text client of a TLS server costs a counter, not a log line; the others are served."""
    transport = Transport("tls", tmp_path)
    async with transport.serve(upper) as server:
        async with Client.connect(server.addresses[0]) as client:
            await client.send(b"GET / HTTP/1.0\r\n\r\n")
            await client.rest()
        async with transport.connect(server) as client:
            assert await client.ask(b"fine") == b"FINE"
        await until(lambda: is_idle(server))
        assert (server.stats().refused, server.stats().completed) == (1, 1)
    assert not errors_in(caplog)


# -- idle connections


async def test_idle_timeout_strikes_in_time_and_is_not_an_error(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """A silent connection ends soon after idle_timeout; it is counted and not logged."""
    told: list[object] = []
    serving = transport.serve(upper, idle_timeout=0.4, on_error=lambda *event: told.append(event))
    async with serving as server, transport.connect(server) as client:
        assert await client.rest() == b""
        await until(lambda: server.stats().timed_out == 1)
        assert is_balanced(server)
    assert not errors_in(caplog)
    assert told == []


async def test_caught_idle_timeout_leaves_the_stream_usable(transport: Transport) -> None:
    """A handler may catch IdleTimeout, say something, and go on; the next silence is told again."""
    heard: list[str] = []

    async def keeper(stream: Stream) -> None:
        data = b""
        while not data:
            try:
                data = await stream.receive()
            except TimeoutError as exc:
                assert isinstance(exc, asyncserver.IdleTimeout)
                assert repr(stream.peer_address) in str(exc)
                heard.append("silence")
                await stream.send(b"?")
        await stream.send(data.upper())

    async with transport.serve(keeper, idle_timeout=0.1) as server, transport.connect(server) as client:
        assert await client.receive_exactly(2) == b"??"
        await client.send(b"here")
        assert (await client.rest()).lstrip(b"?") == b"HERE"
        await until(lambda: server.stats().completed == 1)
    assert len(heard) >= 2
    assert server.stats().timed_out == 0


async def test_idle_timeout_keeps_what_receive_exactly_had_got(transport: Transport) -> None:
    """The beginning of a message that stopped in its middle is not lost with IdleTimeout."""

    async def keeper(stream: Stream) -> None:
        try:
            await stream.receive_exactly(10)
        except asyncserver.IdleTimeout:
            await stream.send(b"got " + await stream.receive())

    async with transport.serve(keeper, idle_timeout=0.1) as server, transport.connect(server) as client:
        await client.send(b"half")
        assert await client.rest() == b"got half"


async def test_busy_connection_is_not_timed_out(tmp_path: Path) -> None:
    """Bytes in one direction, whichever it is, are enough, however long it takes. All transports at once."""
    async with asyncio.TaskGroup() as group:
        for kind in KINDS:
            group.create_task(busy_is_not_timed_out(Transport(kind, tmp_path)), name=kind)


async def busy_is_not_timed_out(transport: Transport) -> None:
    """Whoever sends, or is sent something, is not idle."""
    pings = 10

    async def handler(stream: Stream) -> None:
        if await stream.receive(1) == b"r":
            await stream.receive_exactly(pings)
            await stream.send(b"ok")
            return
        listening = asyncio.create_task(stream.receive())
        for _ in range(pings):
            await asyncio.sleep(0.25)  # the pace is what is tested
            await stream.send(b".")
        listening.cancel()

    async with transport.serve(handler, idle_timeout=2) as server:
        async with transport.connect(server) as speaking, transport.connect(server) as listening:
            await speaking.send(b"r")
            await listening.send(b"s")
            for _ in range(pings):
                await asyncio.sleep(0.25)
                await speaking.send(b".")
            assert await speaking.rest() == b"ok"
            assert await listening.rest() == b"." * pings
        await until(lambda: is_idle(server))
        assert server.stats().completed == 2


async def test_idle_timeout_ends_a_send_that_nobody_takes(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer that does not read cannot hold a handler for ever."""

    async def flood(stream: Stream) -> None:
        while True:
            await stream.send(bytes(1 << 20))

    async with transport.serve(flood, idle_timeout=0.15) as server, transport.connect(server):
        await until(lambda: server.stats().timed_out == 1)
        assert is_balanced(server)
        await until(lambda: is_idle(server))
    assert not errors_in(caplog)


async def test_idle_timeout_is_told_to_both_directions(tcp: Transport) -> None:
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
        await until(lambda: server.stats().completed == 1)
    assert "receive" in told


async def test_idle_timeout_in_a_task_group_is_no_error(tcp: Transport, caplog: pytest.LogCaptureFixture) -> None:
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
