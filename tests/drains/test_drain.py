"""close(): every connection ends well, and none that has reached us is lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

import asyncserver
from asyncserver import Stream
from tests.kit.checks import is_balanced
from tests.kit.handlers import upper, upper_lines
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until


class Mixed:
    """A handler of lines: "slow" is answered, at length, when told; "hung" never; others at once."""

    answer = b"x" * 300_000 + b"\n"

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.slow = 0
        self.hung = 0

    async def __call__(self, stream: Stream) -> None:
        while True:
            line = await stream.receive_until(b"\n", 100)
            if line == b"slow":
                self.slow += 1
                await self.go.wait()
                await stream.send(self.answer)
            elif line == b"hung":
                self.hung += 1
                await asyncio.Event().wait()
            else:
                await stream.send(line.upper() + b"\n")


async def test_200_connections_in_every_state(transport: Transport) -> None:
    """Between messages: ended at once. In the middle of one: finished whole. Hung: cancelled at the deadline."""
    handler = Mixed()
    async with transport.serve(handler, backlog=300) as server:
        clients = [await transport.connect(server) for _ in range(200)]
        between, silent, slow, hung = clients[:60], clients[60:100], clients[100:160], clients[160:]
        for client in between:
            assert await client.ask(b"hello\n") == b"HELLO\n"
        for client in slow:
            await client.send(b"slow\n")
        for client in hung:
            await client.send(b"hung\n")
        await until(lambda: (handler.slow, handler.hung) == (60, 40))
        closing = asyncio.create_task(server.close(PATIENCE))
        for client in (*between, *silent):
            assert await client.rest() == b""
        assert not closing.done()
        assert server.stats().completed >= 100 - (transport.name == "tls")
        handler.go.set()
        for client in slow:
            assert await client.rest() == handler.answer
        assert not closing.done()
        await server.close(0.1)  # the deadline that the hung ones wait for
        assert await closing == asyncserver.DrainReport(completed=160, cancelled=40)
        assert is_balanced(server)
        now = server.stats()
        assert (now.accepted, now.completed, now.cancelled, now.active) == (200, 160, 40, 0)
        for client in clients:
            client.close()


async def test_report_counts_those_that_ignore_cancellation(tcp: Transport) -> None:
    """A handler that will not end is given up a second after its cancellation: aborted."""
    release = asyncio.Event()

    async def stubborn(stream: Stream) -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async with contextlib.AsyncExitStack() as stack:
        stack.callback(release.set)
        server = await stack.enter_async_context(tcp.serve(stubborn))
        for _ in range(3):
            await stack.enter_async_context(tcp.connect(server))
        await until(lambda: server.stats().active == 3)
        begun = asyncio.get_running_loop().time()
        assert await server.close(0.1) == asyncserver.DrainReport(aborted=3)
        assert asyncio.get_running_loop().time() - begun < 10
        assert is_balanced(server)


async def test_handlers_are_told_by_the_closing_event(transport: Transport) -> None:
    """A handler that sends on its own account learns that it is time to stop."""

    async def ticking(stream: Stream) -> None:
        assert not stream.closing.is_set()
        await stream.send(b"tick")
        await stream.closing.wait()
        await stream.send(b"bye")

    async with transport.serve(ticking) as server, transport.connect(server) as client:
        assert await client.receive_exactly(4) == b"tick"
        report = await server.close()
        assert await client.rest() == b"bye"
        assert report == asyncserver.DrainReport(completed=1)


async def test_bytes_in_the_kernel_are_answered(transport: Transport) -> None:
    """What a client had sent before close() was called is answered, however many messages it is."""

    async with transport.serve(upper_lines) as server, contextlib.AsyncExitStack() as stack:
        clients = [stack.enter_context(transport.blocking(server)) for _ in range(5)]
        await asyncio.gather(*(asyncio.to_thread(client.handshake) for client in clients))
        await until(lambda: server.stats().active == 5)
        for client in clients:
            client.sock.sendall(b"first\n")
        answers = await asyncio.gather(*(asyncio.to_thread(client.receive_exactly, 6) for client in clients))
        assert answers == [b"FIRST\n"] * 5
        for client in clients:  # from here to close() the loop does not run
            client.sock.sendall(b"second\nthird\nfourth\n")
        report = await server.close(5)
        answers = await asyncio.gather(*(asyncio.to_thread(client.rest) for client in clients))
        assert answers == [b"SECOND\nTHIRD\nFOURTH\n"] * 5
        assert report == asyncserver.DrainReport(completed=5)


@pytest.mark.usefixtures("slow_clients")
async def test_connections_in_the_backlog_are_answered(transport: Transport) -> None:
    """Who had connected before close() was called is served, though nobody had accepted it yet."""
    async with transport.serve(upper) as server, contextlib.AsyncExitStack() as stack:
        clients = [stack.enter_context(transport.blocking(server)) for _ in range(40)]
        assert server.stats().accepted == 0
        asking = [client.ask_now(b"hello") for client in clients]
        report = await server.close(10)
        assert await asyncio.gather(*asking) == [b"HELLO"] * 40
        assert report == asyncserver.DrainReport(completed=40)
        assert (server.stats().accepted, server.stats().completed) == (40, 40)


@pytest.mark.usefixtures("slow_clients")
async def test_paused_server_answers_its_backlog_when_it_closes(transport: Transport) -> None:
    """pause() only postpones: who waits in the kernel's queue is served before the end."""
    async with transport.serve(upper) as server:
        server.pause()
        with transport.blocking(server) as client:
            asking = client.ask_now(b"hello")
            report = await server.close(5)
            assert await asking == b"HELLO"
            assert report == asyncserver.DrainReport(completed=1)


@pytest.mark.usefixtures("slow_clients")
async def test_backlog_beyond_max_connections_is_answered_one_after_the_other(transport: Transport) -> None:
    """At the limit those in the queue are not reset but served in turn, and each comes to its message boundary."""
    most = now = 0

    async def counted(stream: Stream) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        assert is_balanced(server)
        try:
            await upper(stream)
        finally:
            now -= 1

    async with transport.serve(counted, max_connections=2) as server, contextlib.AsyncExitStack() as stack:
        clients = [stack.enter_context(transport.blocking(server)) for _ in range(8)]
        asking = [client.ask_now(b"hello") for client in clients]
        report = await server.close(10)
        assert await asyncio.gather(*asking) == [b"HELLO"] * 8
        assert report == asyncserver.DrainReport(completed=8)
        assert (server.stats().refused, server.stats().completed) == (0, 8)
    assert most <= 2


async def test_backlog_behind_a_hung_connection_is_refused_at_the_deadline(tcp: Transport) -> None:
    """The limit holds in the drain too: who got no turn is closed and counted as refused."""

    async def hung(stream: Stream) -> None:
        await asyncio.Event().wait()

    async with tcp.serve(hung, max_connections=1) as server, contextlib.AsyncExitStack() as stack:
        clients = [stack.enter_context(tcp.blocking(server)) for _ in range(3)]
        assert await server.close(0.1) == asyncserver.DrainReport(cancelled=1)
        now = server.stats()
        assert (now.accepted, now.cancelled, now.refused, now.active) == (3, 1, 2, 0)
        for client in clients:
            with contextlib.suppress(ConnectionResetError):
                assert client.sock.recv(1) == b""


async def test_new_connections_are_refused_while_it_drains(tcp: Transport) -> None:
    """The listener is closed first: a load balancer sees at once that this server is leaving."""
    release = asyncio.Event()

    async def slow(stream: Stream) -> None:
        await stream.receive()
        await release.wait()

    async with tcp.serve(slow) as server, tcp.connect(server) as client:
        await client.send(b"begin")
        await until(lambda: server.stats().bytes_received == 5)
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*server.addresses[0][:2])
        assert server.sockets == ()
        release.set()
        assert await closing == asyncserver.DrainReport(completed=1)


async def test_client_that_leaves_during_the_drain_counts_as_completed(transport: Transport) -> None:
    """Whoever resets or leaves in the middle of a message does not hold the drain."""
    async with transport.serve(upper_lines) as server:
        leaving, resetting = await transport.connect(server), await transport.connect(server)
        await leaving.send(b"half")
        await resetting.send(b"half")
        await until(lambda: server.stats().bytes_received == 8)
        closing = asyncio.create_task(server.close(PATIENCE))
        await asyncio.sleep(0)
        resetting.reset()
        leaving.close()
        async with asyncio.timeout(PATIENCE / 2):
            assert await closing == asyncserver.DrainReport(completed=2)
        resetting.close()


async def test_end_of_the_with_block_drains(transport: Transport) -> None:
    """`async with serve(...)` returns only when the answer under way has been sent."""
    release = asyncio.Event()

    async def slow(stream: Stream) -> None:
        await stream.receive()
        await release.wait()
        await stream.send(b"answer")

    async with contextlib.AsyncExitStack() as stack:
        async with transport.serve(slow, drain_timeout=PATIENCE) as server:
            client = await stack.enter_async_context(transport.connect(server))
            await client.send(b"question")
            await until(lambda: server.stats().bytes_received == 8)
            asyncio.get_running_loop().call_later(0.05, release.set)
        assert server.stats().completed == 1
        assert await client.rest() == b"answer"


async def test_cancelled_await_serve_drains() -> None:
    """Cancelling the task that serves stops it politely: who is in the middle of a message gets its answer."""
    begun = asyncio.Event()
    release = asyncio.Event()

    async def slow(stream: Stream) -> None:
        await stream.receive()
        begun.set()
        await release.wait()
        await stream.send(b"answer")

    sock = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(asyncserver.serve(slow, sock=sock))
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    writer.write(b"question")
    await begun.wait()
    serving.cancel()
    await asyncio.sleep(0)
    release.set()
    assert await reader.read() == b"answer"
    with pytest.raises(asyncio.CancelledError):
        await serving
    writer.close()
    await writer.wait_closed()
