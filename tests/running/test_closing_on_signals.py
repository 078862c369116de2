"""closing_on_signals(): a polite end under asyncio.run(), in programs of their own, on both loops."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from tests.kit.handlers import upper
from tests.kit.programs import LOOPS, Program
from tests.kit.waiting import PATIENCE

HEAD = """
import asyncio, contextlib, logging, os, signal, sys, time
import asyncserver

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")

async def upper(stream):
    async for data in stream:
        await stream.send(data.upper())

async def line(stream):  # an answer is owed for as long as the line lacks its end
    await stream.send((await stream.receive_until(b"\\n", 100)).upper() + b"\\n")

def start(main):
    if sys.argv[1] == "uvloop":
        import uvloop
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    else:
        asyncio.run(main())
"""

BLOCK = """
async def main():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with (
        asyncserver.serve(line, "127.0.0.1", 0, drain_timeout=float(sys.argv[2])) as server,
        asyncserver.closing_on_signals(server),
    ):
        print("port", server.addresses[0][1])
        await server.wait_closed()
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    print("after", server.closed, before == after)

start(main)
print("ended")
"""

STARTED = """
async def main():
    server = await asyncserver.serve(line, "127.0.0.1", 0, drain_timeout=float(sys.argv[2])).start()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with asyncserver.closing_on_signals(server):
        print("port", server.addresses[0][1])
        await server.wait_closed()
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    print("after", server.closed, before == after)

start(main)
print("ended")
"""

ELSEWHERE = """
async def main():
    async with (
        asyncserver.serve(line, "127.0.0.1", 0) as server,
        asyncserver.closing_on_signals(server),
    ):
        server.add_close_callback(lambda: print("closed"))
        print("port", server.addresses[0][1])
        await asyncio.Event().wait()
    print("after", server.closed, asyncio.current_task().cancelling())

start(main)
print("ended")
"""

SEVERAL = """
async def main():
    async with contextlib.AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(asyncserver.serve(line, "127.0.0.1", 0)) for _ in range(2)
        ]
        async with asyncserver.closing_on_signals(first):
            async with asyncserver.closing_on_signals(second):
                print("port", first.addresses[0][1])
                await first.wait_closed()
                await second.wait_closed()
            print("after the inner")
        print("after", first.closed, second.closed)

start(main)
print("ended")
"""


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def program(folder: Path, source: str, *arguments: str) -> Program:
    (folder / "program.py").write_text(HEAD + source)
    return Program(["-W", "error", "program.py", *arguments], folder)


def connect(running: Program) -> socket.socket:
    running.wait_for("port ")
    port = re.search(r"port (\d+)\n", running.output)
    assert port is not None
    return socket.create_connection(("127.0.0.1", int(port[1])), timeout=PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("source", [BLOCK, STARTED], ids=["block", "started"])
def test_signal_drains_and_the_program_goes_on(source: str, number: signal.Signals, loop: str, tmp_path: Path) -> None:
    """Who is being served is answered; what follows the block runs after the drain; status 0, nothing on its errors."""
    with program(tmp_path, source, loop, "60") as running, connect(running) as client:
        client.sendall(b"hel")
        running.tell(number)
        running.expect(rf"INFO {number.name}: no new work, waiting for what runs; once more to end it now")
        client.sendall(b"lo\n")
        assert client.recv(100) == b"HELLO\n"
        assert running.wait() == 0
        assert "after True True\nended\n" in running.output
        assert "Traceback" not in running.errors


def test_second_signal_ends_the_drain(loop: str, tmp_path: Path) -> None:
    """It cancels what runs; an echo of the first within a tenth of a second does not."""
    with program(tmp_path, BLOCK, loop, "60") as running, connect(running) as client:
        client.sendall(b"hel")
        running.tell(signal.SIGTERM)
        running.tell(signal.SIGTERM)
        running.expect("SIGTERM: no new work")
        running.tell(signal.SIGINT)
        running.expect("WARNING SIGINT again: cancelling what still runs")
        assert client.recv(100) == b""
        assert running.wait() == 0
        assert "after True True\nended\n" in running.output
        assert running.errors.count("again") == 1


def test_block_that_waits_for_something_else_can_be_ended(loop: str, tmp_path: Path) -> None:
    """The next signal cancels what waits there when the servers have closed, and the program goes on."""
    with program(tmp_path, ELSEWHERE, loop) as running:
        connect(running).close()
        running.tell(signal.SIGTERM)
        running.expect("SIGTERM: no new work")
        running.wait_for("closed")
        running.tell(signal.SIGINT)
        running.expect("WARNING SIGINT: the servers are closed; cancelling what closing_on_signals")
        assert running.wait() == 0
        assert "after True 0\nended\n" in running.output


def test_signal_is_for_all_blocks(loop: str, tmp_path: Path) -> None:
    """One signal closes the servers of two blocks, and handlers are put back when both have ended."""
    with program(tmp_path, SEVERAL, loop) as running:
        connect(running).close()
        assert running.end() == 0
        running.wait()
        assert "after the inner\nafter True True\nended\n" in running.output


async def test_block_ends_with_a_drain_without_a_signal() -> None:
    """Its end closes the servers, also when it raises, and the handlers are as before."""

    def nothing(*_: Any) -> None:
        """Handle it."""

    before = signal.signal(signal.SIGTERM, nothing)
    try:
        server = await asyncserver.serve(upper, "127.0.0.1", 0).start()
        other = await asyncserver.serve(upper, "127.0.0.1", 0).start()
        with pytest.raises(LookupError):
            async with asyncserver.closing_on_signals(server, other):
                assert signal.getsignal(signal.SIGTERM) is not nothing
                raise LookupError
        assert server.closed
        assert other.closed
        assert signal.getsignal(signal.SIGTERM) is nothing
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_handlers_of_the_loop_are_put_back() -> None:
    """Also those of add_signal_handler(), where the loop shows them."""
    loop = asyncio.get_running_loop()
    if not hasattr(loop, "_signal_handlers"):
        return  # uvloop, as the docstring says
    told = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    try:
        async with asyncserver.serve(upper, "127.0.0.1", 0) as server, asyncserver.closing_on_signals(server):
            pass
        signal.raise_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            await told.wait()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_cancelling_from_outside_is_not_swallowed() -> None:
    """A cancelled block drains, and raises CancelledError."""
    server = await asyncserver.serve(upper, "127.0.0.1", 0).start()

    async def wait() -> None:
        async with asyncserver.closing_on_signals(server):
            await server.wait_closed()

    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.closed


async def test_wrong_servers_are_told_at_once() -> None:
    """What is no running server, and what to write."""
    serving = asyncserver.serve(upper, "127.0.0.1", 0)
    with pytest.raises(TypeError, match=r"expects running servers, such as .*start\(\)` gives; got <.*Serving"):
        asyncserver.closing_on_signals(serving)  # type: ignore[arg-type]
    serving.close()
    with pytest.raises(TypeError, match="needs a server"):
        asyncserver.closing_on_signals()


def test_other_thread_says_so() -> None:
    """Python delivers signals to the main thread only."""
    errors: list[BaseException] = []

    async def main() -> None:
        async with asyncserver.serve(upper, "127.0.0.1", 0) as server, asyncserver.closing_on_signals(server):
            pass

    def run() -> None:
        try:
            asyncio.run(main())
        except RuntimeError as exc:
            errors.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert "use it in the main thread, or call server.close()" in str(errors[0])
