"""asyncio's debug mode names handlers that keep the loop busy; a handler that runs the loop again is no flood."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

import asyncserver
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Coroutine


def blocked(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "kept the event loop busy" in record.getMessage()]


def debugging(slow: float) -> asyncio.AbstractEventLoop:
    """Turn the loop's debug mode on; from so many seconds on a step is slow."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = slow
    return loop


async def slow_stream(stream: asyncserver.Stream) -> None:
    async for data in stream:
        time.sleep(0.02)  # noqa: ASYNC251 - that is the mistake
        await stream.send(data)


async def slow_datagram(datagram: asyncserver.Datagram) -> bytes:
    time.sleep(0.02)  # noqa: ASYNC251 - likewise
    return datagram.data


class SlowHandler:
    """A handler that is an object."""

    async def __call__(self, stream: asyncserver.Stream) -> None:
        await slow_stream(stream)

    def __repr__(self) -> str:
        return "<SlowHandler>"


@pytest.mark.parametrize("handler", [slow_stream, SlowHandler()], ids=["function", "object"])
async def test_slow_step_names_the_handler_and_the_peer(
    transport: Transport, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each, with the fields of other records."""
    debugging(0.02)
    async with transport.serve(handler) as server, transport.connect(server) as client:
        for _ in range(2):
            assert await client.ask(b"x") == b"x"
    name = "<SlowHandler>" if handler is not slow_stream else "slow_stream"
    told = [message for message in blocked(caplog) if message.startswith(f"handler {name} of ")]
    assert len(told) >= 2
    (record, *_) = [record for record in caplog.records if record.getMessage() in told]
    assert record.levelname == "WARNING"
    fields = vars(record)
    assert fields["server"] == server.label
    assert f" of {fields['peer']} kept" in told[0]
    assert fields["duration"] >= 0.02


async def test_slow_step_of_a_datagram(caplog: pytest.LogCaptureFixture) -> None:
    """Which shares its task with others."""
    loop = debugging(0.02)
    async with asyncserver.serve_datagrams(slow_datagram, "127.0.0.1", 0) as server:
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(server.addresses[0])
            await loop.sock_sendall(client, b"x")
            assert await asyncio.wait_for(loop.sock_recv(client, 9), PATIENCE) == b"x"
            peer = "{}:{}".format(*client.getsockname())
    assert any(message.startswith(f"handler slow_datagram of {peer} kept") for message in blocked(caplog))


async def test_steps_that_wait_or_are_quick_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a handler that sleeps as it should, nor one that ends by an error or is cancelled."""
    debugging(PATIENCE)
    ended: list[str] = []

    async def handler(stream: asyncserver.Stream) -> None:
        try:
            while await stream.receive() != b"e":
                await asyncio.sleep(0.01)
                await stream.send(b"x")
            raise LookupError
        except BaseException as exc:
            ended.append(type(exc).__name__)
            raise

    async with asyncserver.serve(handler, "127.0.0.1", 0, drain_timeout=0) as server:
        for word in (b"e", b"x"):
            reader, writer = await asyncio.open_connection(*server.addresses[0][:2])
            writer.write(word)
            assert await reader.read(1) == (b"" if word == b"e" else b"x")
            if word == b"e":
                writer.close()
        last = writer
        last.write(b"x")
        assert await reader.read(1) == b"x"
        last.write(b"e")
        assert await reader.read(1) == b""
        last.close()
    assert ended == ["LookupError", "LookupError"]
    assert not blocked(caplog)


@pytest.mark.parametrize("debug", [True, False])
def test_only_in_debug_mode(debug: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Elsewhere nothing is measured."""

    async def main() -> None:
        asyncio.get_running_loop().slow_callback_duration = 0.02
        async with asyncserver.serve(slow_stream, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.addresses[0][:2])
            writer.write(b"x")
            assert await reader.read(1) == b"x"
            writer.close()

    asyncio.run(main(), debug=debug)
    assert bool(blocked(caplog)) == debug


# -- a loop that is run again while it runs


class _Ready(deque[Any]):
    """Handles that are ready: the inner turns of the loop take those that the outer one has counted."""

    def popleft(self) -> Any:
        return super().popleft() if self else asyncio.Handle(bool, (), asyncio.get_running_loop())


class NestedLoop(asyncio.SelectorEventLoop):
    """As nest_asyncio patches the standard loop."""

    def __init__(self) -> None:
        super().__init__()
        self._ready: Any = _Ready()

    def _check_running(self) -> None: ...

    def run_until_complete(self, future: Any) -> Any:
        if not self.is_running():
            return super().run_until_complete(future)
        inner: asyncio.Task[Any] = asyncio.ensure_future(future, loop=self)
        outer: Any = asyncio.current_task(self)
        asyncio.tasks._leave_task(self, outer)
        try:
            while not inner.done():
                self._run_once()  # type: ignore[attr-defined]
        finally:
            asyncio.tasks._enter_task(self, outer)
        return inner.result()


def run_inside(call: Coroutine[Any, Any, bytes]) -> bytes:
    result: bytes = asyncio.get_running_loop().run_until_complete(call)
    return result


async def later(answer: bytes) -> bytes:
    await asyncio.sleep(0.05)
    return answer


def test_handler_that_runs_the_loop_again(caplog: pytest.LogCaptureFixture) -> None:
    """All are answered, also those who come meanwhile, and no error is logged."""

    async def stream_handler(stream: asyncserver.Stream) -> None:
        async for data in stream:
            await stream.send(run_inside(later(data.upper())))

    async def datagram_handler(datagram: asyncserver.Datagram) -> bytes:
        return run_inside(later(datagram.data.upper()))

    async def ask(address: Any, name: bytes) -> None:
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(2):
            writer.write(name)
            assert await reader.readexactly(len(name)) == name.upper()
        writer.close()

    async def ask_datagram(address: Any, name: bytes) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(address)
            await loop.sock_sendall(client, name)
            assert await loop.sock_recv(client, 9) == name.upper()

    async def main() -> None:
        async with (
            asyncserver.serve(stream_handler, "127.0.0.1", 0) as server,
            asyncserver.serve_datagrams(datagram_handler, "127.0.0.1", 0) as datagram_server,
            asyncio.timeout(PATIENCE),
        ):
            names = [b"one", b"two", b"three"]
            await asyncio.gather(
                *(ask(server.addresses[0], name) for name in names),
                *(ask_datagram(datagram_server.addresses[0], name) for name in names),
            )

    with asyncio.Runner(loop_factory=NestedLoop) as runner:
        runner.run(main())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
