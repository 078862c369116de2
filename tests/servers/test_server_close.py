"""close(): once, twice, from inside, cancelled; and what is over when it returns."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket

import anyio
import pytest

import asyncserver
from asyncserver import Stream
from tests.kit.checks import is_balanced
from tests.kit.handlers import Misbehaving, upper
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until


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


async def test_close_twice_gives_the_same_report(transport: Transport) -> None:
    """The second call, and any later one, waits for the same end."""
    async with transport.serve(upper) as server, transport.connect(server) as client:
        assert await client.ask(b"a") == b"A"
        reports = list(await asyncio.gather(server.close(), server.close(5), server.close()))
        assert reports == [asyncserver.DrainReport(completed=1)] * 3
        assert await server.close() == reports[0]
        await server.wait_closed()
        assert is_balanced(server)


async def test_second_close_may_be_more_impatient(transport: Transport) -> None:
    """A shorter deadline of a later call counts for all who wait; a longer one does not."""
    hung = Hung()
    async with transport.serve(hung, drain_timeout=PATIENCE) as server, transport.connect(server):
        await hung.begun.wait()
        patient = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        longer = asyncio.create_task(server.close(10 * PATIENCE))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            assert await server.close(0) == asyncserver.DrainReport(cancelled=1)
        assert await patient == await longer == asyncserver.DrainReport(cancelled=1)


async def test_close_from_inside_a_handler_does_not_wait_for_it(transport: Transport) -> None:
    """The handler that closes the server gets its report, and may still send its last word."""
    reports: list[asyncserver.DrainReport] = []

    async def closer(stream: Stream) -> None:
        if await stream.receive() == b"close":
            reports.append(await server.close())
            await stream.send(b"closed")
        else:
            await stream.send(b"working")
            await upper(stream)

    async with (
        transport.serve(closer) as server,
        transport.connect(server) as other,
        transport.connect(server) as client,
    ):
        await other.send(b"work")
        assert await other.receive() == b"working"
        await client.send(b"close")
        assert await client.rest() == b"closed"
        async with asyncio.timeout(PATIENCE):
            await server.wait_closed()
        assert reports == [asyncserver.DrainReport(completed=1)]
        assert server.stats().completed == 2
        assert is_balanced(server)


async def test_two_handlers_that_close_do_not_wait_for_each_other(transport: Transport) -> None:
    """close() from two handlers at once: both get the report at once."""
    both = asyncio.Barrier(2)
    reports: list[asyncserver.DrainReport] = []

    async def closer(stream: Stream) -> None:
        await both.wait()
        reports.append(await server.close())

    async with (
        transport.serve(closer, drain_timeout=PATIENCE) as server,
        transport.connect(server),
        transport.connect(server),
    ):
        async with asyncio.timeout(PATIENCE / 2):
            await server.wait_closed()
    assert reports == [asyncserver.DrainReport()] * 2
    assert server.stats().completed == 2


async def test_second_handler_may_close_while_the_first_waits(transport: Transport) -> None:
    """The handler that closes later was being waited for: its own call lets go the first."""
    order: list[str] = []

    async def closer(stream: Stream) -> None:
        word = (await stream.receive()).decode()
        if word == "second":
            await stream.closing.wait()
        order.append(word)
        await server.close()

    serving = transport.serve(closer, drain_timeout=PATIENCE)
    async with serving as server, transport.connect(server) as second, transport.connect(server) as first:
        await second.send(b"second")
        await until(lambda: server.stats().bytes_received == 6)
        await first.send(b"first")
        async with asyncio.timeout(PATIENCE / 2):
            await server.wait_closed()
    assert order == ["first", "second"]
    assert server.stats().completed == 2


async def test_close_from_a_child_task_of_a_handler_ends_at_the_deadline(transport: Transport) -> None:
    """The handler waits for its child and the child for the handler: the deadline resolves that."""

    async def parent(stream: Stream) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.close())

    async with transport.serve(parent, drain_timeout=0.2) as server, transport.connect(server):
        async with asyncio.timeout(5):
            await server.wait_closed()
        assert server.stats().active == 0
        assert is_balanced(server)


async def test_handler_that_closed_and_then_hangs_is_cancelled_at_the_deadline(transport: Transport) -> None:
    """wait_closed() does not wait for ever for the handler that called close()."""
    forever = asyncio.Event()

    async def closer(stream: Stream) -> None:
        await server.close(0.1)
        await forever.wait()

    async with transport.serve(closer) as server, transport.connect(server):
        async with asyncio.timeout(5):
            await server.wait_closed()
        assert server.stats().cancelled == 1
        assert is_balanced(server)


async def test_cancelled_close_ends_at_once_and_counts_right(transport: Transport) -> None:
    """Being cancelled while close() waits makes the deadline now; CancelledError comes when all is over."""
    hung = Hung()
    async with transport.serve(hung, drain_timeout=PATIENCE) as server, transport.connect(server):
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


async def test_close_under_asyncio_timeout_ends_about_when_that_says(transport: Transport) -> None:
    """asyncio.timeout around close() is a deadline for the drain."""
    hung = Hung()
    async with transport.serve(hung, drain_timeout=PATIENCE) as server, transport.connect(server):
        await hung.begun.wait()
        begun = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await server.close()
        assert asyncio.get_running_loop().time() - begun < 5
        assert (server.stats().cancelled, server.stats().active) == (1, 0)


async def test_close_under_an_anyio_scope_ends_about_when_that_says(transport: Transport) -> None:
    """An anyio scope that is cancelled while close() waits is a deadline for the drain too."""
    hung = Hung()
    async with transport.serve(hung, drain_timeout=PATIENCE) as server, transport.connect(server):
        await hung.begun.wait()
        begun = asyncio.get_running_loop().time()
        with anyio.move_on_after(0.2) as scope:
            await server.close()
        assert asyncio.get_running_loop().time() - begun < 5
        assert scope.cancelled_caught
        assert (server.stats().cancelled, server.stats().active) == (1, 0)


async def test_close_in_a_scope_that_is_cancelled_already_still_drains(transport: Transport) -> None:
    """Cleaning up after a cancellation is when close() is needed most: handlers get to finish."""
    finished = asyncio.Event()

    async def finishing(stream: Stream) -> None:
        await stream.receive()
        await stream.closing.wait()
        await asyncio.sleep(0.1)
        await stream.send(b"finished")
        finished.set()

    async with transport.serve(finishing, drain_timeout=5) as server, transport.connect(server) as client:
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


async def test_serving_in_a_cancelled_task_group_drains_and_returns(transport: Transport) -> None:
    """Cancelling the task group that serves is how an anyio program stops: polite, and counted right."""
    hung = Hung()
    async with anyio.create_task_group() as group, contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(transport.serve(hung, drain_timeout=0.1))
        await stack.enter_async_context(transport.connect(server))
        await hung.begun.wait()
        group.cancel_scope.cancel()
    assert server is not None
    assert (server.stats().cancelled, server.stats().active) == (1, 0)
    assert repr(server).startswith("<StreamServer closed")


async def test_close_gives_up_a_handler_that_swallows_cancellation(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """Some time after its cancellation its connection is aborted, which is logged, and close() returns."""
    async with (
        Misbehaving() as handler,
        transport.serve(handler, drain_timeout=0.1) as server,
        transport.connect(server) as client,
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


async def test_wait_closed_returns_only_when_all_is_over(tcp: Transport) -> None:
    """It waits for close() by somebody else, and for the last handler; any number may wait."""
    async with tcp.serve(upper) as server, tcp.connect(server) as client:
        waiting = [asyncio.create_task(server.wait_closed()) for _ in range(2)]
        assert await client.ask(b"a") == b"A"
        assert not any(task.done() for task in waiting)
        await server.close()
        await asyncio.gather(*waiting)
        assert server.stats().active == 0


async def test_close_callbacks_are_called_when_all_is_over(tcp: Transport, caplog: pytest.LogCaptureFixture) -> None:
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
async def test_server_used_after_close_says_so(tcp: Transport, method: str) -> None:
    """The error names the call, the server, and what to do."""
    async with tcp.serve(upper) as server:
        pass
    with pytest.raises(RuntimeError, match=rf"{method}\(\): <StreamServer closed .*start another with serve"):
        getattr(server, method)()
    assert await server.close() == asyncserver.DrainReport()


async def test_port_is_free_again_after_close(tcp: Transport) -> None:
    """A closed server refuses connections, and another can have its port at once."""
    async with tcp.serve(upper) as server, tcp.connect(server) as client:
        assert await client.ask(b"a") == b"A"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.addresses[0])
    host, port = server.addresses[0][:2]
    async with asyncserver.serve(upper, str(host), int(port)):
        pass


async def test_reload_tls_without_tls_says_so(tcp: Transport) -> None:
    """There is nothing to reload on a server that does not speak TLS."""
    async with tcp.serve(upper) as server:
        with pytest.raises(RuntimeError, match="does not speak TLS"):
            server.reload_tls()
