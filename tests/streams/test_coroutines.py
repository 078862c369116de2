"""What `receive()`, `send()` and their kin return: a coroutine, whether Python made it or C."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Coroutine
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from asyncserver import Stream
from tests.kit.transports import Transport
from tests.kit.waiting import blocked, until, within

OPERATIONS: dict[str, Any] = {
    "receive": lambda stream: stream.receive(),
    "receive_until": lambda stream: stream.receive_until(b";", 100),
    "receive_exactly": lambda stream: stream.receive_exactly(4),
}
operations = pytest.mark.parametrize("operation", OPERATIONS)


@operations
async def test_tasks_take_it(transport: Transport, operation: str) -> None:
    """Everything that wants a coroutine is content with it."""
    async with transport.pair() as (stream, client):
        receive = OPERATIONS[operation]
        made = receive(stream)
        assert isinstance(made, Coroutine)
        assert made.__qualname__ == f"Receiving.{operation}"  # type: ignore[attr-defined]
        task = asyncio.create_task(made)
        assert f"Receiving.{operation}" in repr(task)
        await client.send(b"abc;")
        results = [await within(task)]
        await client.send(b"abc;")
        results.append(await asyncio.wait_for(receive(stream), 20))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(receive(stream))
            await client.send(b"abc;")
        results.append(task.result())
        async with anyio.create_task_group() as scope:
            scope.start_soon(lambda: receive(stream))
            await client.send(b"abc;")
        await client.send(b"abc;")
        results += await within(asyncio.gather(receive(stream)))
        assert {one.rstrip(b";") for one in results} == {b"abc"}


@operations
async def test_never_awaited(transport: Transport, operation: str) -> None:
    """Who forgets `await` is told, by the name of the method."""
    async with transport.pair() as (stream, _):
        with pytest.warns(RuntimeWarning, match=f"coroutine 'Receiving.{operation}' was never awaited"):
            OPERATIONS[operation](stream)
        with pytest.warns(RuntimeWarning, match="coroutine 'Sending.send' was never awaited"):
            stream.send(b"unsent")  # type: ignore[unused-coroutine]
        assert stream.bytes_sent == 0


async def test_it_is_for_once(transport: Transport) -> None:
    """Awaited again it refuses."""
    async with transport.pair() as (stream, _):
        sending = stream.send(b"once")
        await sending
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await sending


@operations
async def test_closed_before_it_began(transport: Transport, operation: str) -> None:
    """Closed, it takes nothing, and nobody warns."""
    async with transport.pair() as (stream, client):
        await client.send(b"abc;")
        OPERATIONS[operation](stream).close()
        assert await within(stream.receive()) == b"abc;"


@operations
async def test_stream_is_closed_before_it_began(transport: Transport, operation: str) -> None:
    """What it meets is the state of the stream when it runs, not when it was called."""
    async with transport.pair() as (stream, client):
        await client.send(b"abc;")
        receiving, sending = OPERATIONS[operation](stream), stream.send(b"late")
        await stream.aclose()
        for late in (receiving, sending):
            with pytest.raises(anyio.ClosedResourceError):
                await within(late)


@operations
async def test_object_that_goes_while_it_waits(transport: Transport, operation: str) -> None:
    """It takes its wake-up with it: the next receive gets what comes."""
    async with transport.pair() as (stream, client):
        waiting = OPERATIONS[operation](stream)
        while waiting.send(None) is None:  # it pauses
            pass
        del waiting
        gc.collect()
        assert not stream._reading.busy
        receiving = await blocked(stream.receive())
        await client.send(b"abc")
        assert await within(receiving) == b"abc"


async def test_cancelled_with_a_message(transport: Transport) -> None:
    """The message of `task.cancel()` arrives."""
    async with transport.pair() as (stream, _):
        task = asyncio.create_task(stream.receive())
        await until(lambda: stream._reading.busy)
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await within(task)


async def test_socket_that_the_program_has_closed(tcp: Transport) -> None:
    """Its number may be another's by now: nothing is received from there, and nothing sent to it."""
    async with tcp.pair() as (stream, _):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            raw = stream.extra(SocketAttribute.raw_socket)
            number = raw.fileno()
            raw.close()
            os.dup2(ours.fileno(), number)
            theirs.send(b"not for the stream")
            stream._unwatch()
            with pytest.raises(anyio.BrokenResourceError):
                await within(stream.receive())
            with pytest.raises(anyio.BrokenResourceError):
                await within(stream.send(b"not for them"))
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                theirs.recv(100)
        os.close(number)


async def test_receivers_of_different_sizes(transport: Transport) -> None:
    """A flood, then little: sizes are kept, whatever the last receive took."""
    async with transport.pair() as (stream, client):
        sent = os.urandom(1_000_000)
        sending = asyncio.create_task(client.send(sent))
        received = b""
        sizes = (100, 1, 65536, 200_000, 7)
        while len(received) < len(sent):
            most = sizes[len(received) % len(sizes)]
            data = await within(stream.receive(most))
            assert 0 < len(data) <= most
            received += data
        await within(sending)
        assert received == sent
        await client.send(b"abc")
        assert await within(stream.receive()) == b"abc"


async def test_error_has_its_cause(tcp: Transport) -> None:
    """A reset: the error that is raised has the system's as its cause, in both directions, again and again."""
    async with tcp.pair() as (stream, client):
        receiving = await blocked(stream.receive())
        client.reset()
        for operation in (receiving, stream.receive(), stream.send(b"x"), Stream.send(stream, b"x")):
            with pytest.raises(anyio.BrokenResourceError, match="broke") as caught:
                await within(operation)
            assert isinstance(caught.value.__cause__, OSError)
