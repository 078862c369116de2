"""What a program can do with the coroutine of a stream besides awaiting it: refused or taken, compiled or not."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from tests.kit.programs import ROOT
from tests.kit.transports import Transport
from tests.kit.waiting import blocked, until, within

#: What a program may call of a coroutine that it has.
CALLS: dict[str, Any] = {
    "send": lambda coroutine: coroutine.send(None),
    "throw": lambda coroutine: coroutine.throw(KeyError("thrown")),
    "close": lambda coroutine: coroutine.close(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_called_while_it_runs(transport: Transport, call: str) -> None:
    """Whoever gets at it meanwhile, as a signal's handler can, is refused, and it goes on."""
    async with transport.pair() as (stream, _):
        refused = []

        def send(item: bytes) -> int:
            with pytest.raises(ValueError, match="coroutine already executing") as info:
                CALLS[call](sending)
            refused.append(info.value)
            return len(item)

        sending: Any = stream.send(b"abc")
        send_before, stream._send = stream._send, send
        await within(sending)
        stream._send = send_before
        assert len(refused) == 1


async def test_awaited_by_two(transport: Transport) -> None:
    """The second is refused; the first gets what comes."""
    async with transport.pair() as (stream, client):
        receiving = stream.receive()
        waiting = await blocked(receiving)
        with pytest.raises(RuntimeError, match="coroutine is being awaited already"):
            await within(receiving)
        await client.send(b"abc")
        assert await within(waiting) == b"abc"


async def test_thrown_into_when_it_is_done(transport: Transport) -> None:
    """It refuses, as it does to be awaited again."""
    async with transport.pair() as (stream, _):
        sending: Any = stream.send(b"abc")
        await within(sending)
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            sending.throw(KeyError("thrown"))


async def test_result_is_kept_by_who_has_it(transport: Transport) -> None:
    """A StopIteration is its owner's: what is received later does not change it."""
    async with transport.pair() as (stream, client):
        kept = []
        for word in (b"first", b"then"):
            await client.send(word)
            receiving: Any = stream.receive()
            with pytest.raises(StopIteration) as info:
                while True:
                    receiving.send(None)
                    await asyncio.sleep(0)
            kept.append(info.value)
        assert [one.value for one in kept] == [b"first", b"then"]


def test_end_of_the_interpreter_while_it_waits() -> None:
    """What the last collection finds together with the type goes as well."""
    script = """
        import asyncio, socket
        from asyncserver import Stream
        from asyncserver.net.poller import Poller
        from asyncserver.streams.sending import PostLimit

        loop = asyncio.new_event_loop()
        listening = socket.create_server(("127.0.0.1", 0))
        theirs = socket.create_connection(listening.getsockname())

        async def main():
            stream = Stream(Poller(loop), asyncio.Event(), PostLimit(1, print))
            assert stream._accept(listening, (listening.family, listening.type, listening.proto))
            waiting = stream.receive()
            while waiting.send(None) is None:
                pass
            Stream.__init__.kept = [waiting, stream]  # for as long as there is a class

        loop.run_until_complete(main())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=False)
    assert done.returncode == 0


class Acting:
    """Called, it does nothing; let go, it acts."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __call__(self, _: object) -> None:
        pass

    def __del__(self) -> None:
        self.act()


@pytest.mark.parametrize("call", CALLS)
async def test_called_while_its_wakeup_is_let_go(transport: Transport, call: str) -> None:
    """It is refused as while it runs, and takes nothing that is not returned."""
    async with transport.pair() as (stream, client):
        receiving: Any = stream.receive()
        while receiving.send(None) is None:
            await asyncio.sleep(0)
        await client.send(b"abc")
        await until(stream._unread)
        refused: list[BaseException] = []

        def act() -> None:
            with pytest.raises((ValueError, RuntimeError)) as info:
                receiving.send(None)
            refused.append(info.value)

        stream._reading.add_done_callback(Acting(act), context=contextvars.copy_context())
        with contextlib.suppress(StopIteration, KeyError):
            CALLS[call](receiving)
        assert len(refused) == 1
        if call != "send":
            assert await within(stream.receive()) == b"abc"


async def test_never_awaited_in_a_cycle(transport: Transport) -> None:
    """The warning has its name also when the collector finds it."""
    async with transport.pair() as (stream, _):
        cycle: list[Any] = [stream.receive()]
        cycle.append(cycle)
        with pytest.warns(RuntimeWarning, match="coroutine 'Receiving.receive' was never awaited"):
            del cycle
            gc.collect()


async def test_exception_with_the_result(transport: Transport) -> None:
    """What `send()` raises has its arguments, as a coroutine's has."""
    async with transport.pair() as (stream, _):
        sending: Any = stream.send(b"abc")
        with pytest.raises(StopIteration) as info:
            sending.send(None)
        assert info.value.args == ()
        stream._buffer = bytearray(b"line;")
        receiving: Any = stream.receive_until(b";", 10)
        with pytest.raises(StopIteration) as info:
            receiving.send(None)
        assert info.value.args == (b"line",)


async def test_state_that_returns_no_bytes(transport: Transport) -> None:
    """It is not kept, whether it is refused or not."""
    async with transport.pair() as (stream, client):
        waiting = await blocked(stream.receive())
        other = bytearray(b"abc")
        stream._recv = lambda _: other  # type: ignore[assignment, return-value]
        count = sys.getrefcount(other)
        await client.send(b"abc")
        with contextlib.suppress(TypeError):
            await within(waiting)
        del waiting
        stream.abort()
        await until(lambda: sys.getrefcount(other) <= count)  # the task's end lets a result go
