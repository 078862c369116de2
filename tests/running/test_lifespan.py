"""A life around the servers: entered before anything is taken, left after the drain, in programs of their own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.monitoring import get
from tests.kit.programs import LOOPS, Program
from tests.kit.waiting import PATIENCE, wait_until

HEAD = """
import asyncio, contextlib, contextvars, logging, os, signal, sys
import asyncserver

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
LOOP, WORKERS, METRICS = sys.argv[1], int(sys.argv[2]), sys.argv[3] if sys.argv[3:] else None
user = contextvars.ContextVar("user")

def say(text):
    os.write(1, f"{text}\\n".encode())  # one write: workers share it

async def line(stream):  # an answer is owed for as long as the line lacks its end
    say("handled")
    got = await stream.receive_until(b"\\n", 100)
    await stream.send(got.upper() + b" " + user.get("nobody").encode() + b"\\n")
    say("answered")

def run(life):
    serving = asyncserver.serve(line, path="a.sock", drain_timeout=60)
    asyncserver.run(serving, loop=LOOP, workers=WORKERS, metrics=METRICS, lifespan=life)
    say("returned")
"""

SLOW = """
@contextlib.asynccontextmanager
async def life(servers):
    say(f"entering {servers[0].label} {servers[0].taking}")
    await asyncio.to_thread(open, "go")  # a FIFO: until the test opens it, too
    user.set("anna")
    say("entered")
    yield
    say(f"left {servers[0].closed}")

run(life)
"""

STUCK = """
@contextlib.asynccontextmanager
async def life():
    say("entering")
    try:
        await asyncio.Event().wait()
    finally:
        say("cleaning")
        if sys.argv[4] == "stubborn":
            await asyncio.Event().wait()
    yield

run(life)
"""

STUCK_AT_THE_END = """
@contextlib.asynccontextmanager
async def life():
    yield
    say("leaving")
    await asyncio.Event().wait()

run(life)
"""

GOES_ON = """
@contextlib.asynccontextmanager
async def life():
    say("entering")
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    try:
        yield
    finally:
        say("left")

run(life)
"""

FAILS = """
class Life:
    async def __aenter__(self):
        raise ConnectionRefusedError("no database")

    async def __aexit__(self, *_):
        say("left")

run(Life)
"""

FAILS_AT_THE_END = """
@contextlib.asynccontextmanager
async def life():
    yield
    raise LookupError("no farewell")

run(life)
"""

TICKER = """
async def tick():
    with contextlib.suppress(FileExistsError):
        os.mkdir("ticks")  # in one worker only
        await asyncio.to_thread(open, "go")
        raise LookupError("out of ticks")

@contextlib.asynccontextmanager
async def life():
    async with asyncio.TaskGroup() as group:
        group.create_task(tick(), name="ticker")
        yield

run(life)
"""

LOST = r"ERROR lifespan life has lost its task ticker: LookupError: out of ticks \(raised in tick, line \d+ of .*\)"

# What the program itself waits for is its own.
WAITED_FOR = """
async def tick():
    raise LookupError("out of ticks")

@contextlib.asynccontextmanager
async def life():
    ticker = asyncio.create_task(tick())
    yield
    try:
        await ticker
    except LookupError:
        say("known")

run(life)
"""


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[1, 2])
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def program(folder: Path, source: str, *arguments: object) -> Program:
    (folder / "program.py").write_text(HEAD + source)
    return Program(["-W", "error", "program.py", *map(str, arguments)], folder)


def connect(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(str(folder / "a.sock"))
    return sock


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A FIFO that programs wait for, and what opens it for all of them."""
    os.mkfifo(tmp_path / "go")
    with contextlib.ExitStack() as stack:
        # Opened for both ways, it waits for nobody: fifo(7).
        def open_it() -> None:
            stack.callback(os.close, os.open(tmp_path / "go", os.O_RDWR))

        yield open_it


def test_entered_before_anything_is_taken_and_left_after_the_drain(
    loop: str, workers: int, tmp_path: Path, gate: Callable[[], None]
) -> None:
    """Who connects meanwhile waits in the queue; /ready says no; handlers see its context variables."""
    with program(tmp_path, SLOW, loop, workers, "127.0.0.1:0") as running:
        port = int(running.expect(r"/ready and /live on http://127.0.0.1:(\d+)")[1])
        running.wait_for("entering unix:a.sock False", workers)
        with connect(tmp_path) as client:
            client.sendall(b"hel")
            assert get(port, "/ready")[0] == 503
            assert "handled" not in running.output
            gate()
            running.wait_for("entered", workers)
            running.wait_for("handled")
            wait_until(lambda: get(port, "/ready")[0] == 200)
            running.tell(signal.SIGTERM)
            running.expect("SIGTERM: no new work")
            client.sendall(b"lo\n")
            assert client.recv(100) == b"HELLO anna\n"
        assert running.wait() == 0
    assert running.output.count("left True") == workers
    assert running.output.index("answered") < running.output.rindex("left True") < running.output.index("returned")
    assert running.output.rindex("entering") < running.output.index("entered") < running.output.index("handled")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_it_is_entered_ends_the_start(
    number: signal.Signals, loop: str, workers: int, tmp_path: Path
) -> None:
    """It is cancelled, nothing that was queued is handled, the status is 0."""
    with program(tmp_path, STUCK, loop, workers, "127.0.0.1:0", "soft") as running:
        running.wait_for("entering", workers)
        with connect(tmp_path) as client:
            client.sendall(b"hello\n")
            assert running.end(number) == 0
    running.wait()
    assert running.output.count("cleaning") == workers
    assert "handled" not in running.output
    assert running.output.endswith("returned\n")
    assert "Traceback" not in running.errors
    assert "ERROR" not in running.errors
    assert not (tmp_path / "a.sock").exists()


def test_second_signal_ends_what_cleans_up_after_the_first(loop: str, workers: int, tmp_path: Path) -> None:
    """Cancelled once more, it ends."""
    with program(tmp_path, STUCK, loop, workers, "127.0.0.1:0", "stubborn") as running:
        running.wait_for("entering", workers)
        running.tell(signal.SIGTERM)
        running.wait_for("cleaning", workers)
        assert running.end(signal.SIGINT) == 0
        running.wait()
        assert running.output.endswith("returned\n")
        assert "Traceback" not in running.errors


def test_entered_in_spite_of_a_signal_it_is_left_at_once(loop: str, workers: int, tmp_path: Path) -> None:
    """One that swallows the cancellation gets no server that serves."""
    with program(tmp_path, GOES_ON, loop, workers) as running:
        running.wait_for("entering", workers)
        with connect(tmp_path) as client:
            client.sendall(b"hello\n")
            assert running.end() == 0
    running.wait()
    assert running.output.count("left") == workers
    assert "handled" not in running.output
    assert running.output.endswith("returned\n")


def test_second_signal_cancels_what_leaves(loop: str, workers: int, tmp_path: Path) -> None:
    """The first waits for it; the same one again within a tenth of a second is no second one."""
    with program(tmp_path, STUCK_AT_THE_END, loop, workers) as running:
        running.expect("serving on " if workers == 1 else "2 workers serve")
        running.tell(signal.SIGTERM)
        running.tell(signal.SIGTERM)
        running.wait_for("leaving", workers)
        assert "still being left" not in running.errors
        assert running.end(signal.SIGINT) == 0
        running.wait()
        assert running.errors.count("WARNING lifespan life is still being left: cancelled") == workers
        assert running.output.endswith("returned\n")


def test_error_as_it_is_entered_ends_the_start(loop: str, workers: int, tmp_path: Path) -> None:
    """One line in the log tells what, and where from; no server is left."""
    with program(tmp_path, FAILS, loop, workers) as running:
        assert running.wait() == 1
    told = (
        r"ERROR lifespan Life could not be entered, so nothing is served: ConnectionRefusedError: no database \(raised "
    )
    assert 1 <= len(re.findall(told + r"in __aenter__, line \d+ of .*program.py\)\n", running.errors)) <= workers
    assert "CRITICAL" not in running.errors
    assert running.output == ""
    assert not (tmp_path / "a.sock").exists()
    last = running.errors.strip().splitlines()[-1]
    assert last.startswith("ConnectionRefusedError: no database" if workers == 1 else "ChildProcessError: worker ")


def test_error_as_it_is_left_comes_after_the_drain(loop: str, workers: int, tmp_path: Path) -> None:
    """The connection under way is answered; the log tells; the status is not 0."""
    with program(tmp_path, FAILS_AT_THE_END, loop, workers) as running:
        running.expect("serving on " if workers == 1 else "2 workers serve")
        with connect(tmp_path) as client:
            client.sendall(b"hel")
            running.wait_for("handled")
            running.tell(signal.SIGTERM)
            running.expect("SIGTERM: no new work")
            client.sendall(b"lo\n")
            assert client.recv(100) == b"HELLO nobody\n"
        assert running.wait() == 1
    told = "ERROR lifespan life failed as it was left: LookupError: no farewell"
    assert running.errors.count(told) == workers
    assert "CRITICAL" not in running.errors
    assert "returned" not in running.output


def test_task_of_it_that_fails_drains_the_program(loop: str, tmp_path: Path, gate: Callable[[], None]) -> None:
    """A task group cancels the program's task: the servers drain, then the group raises."""
    with program(tmp_path, TICKER, loop, 1) as running:
        running.expect("serving on ")
        with connect(tmp_path) as client:
            client.sendall(b"hel")
            running.wait_for("handled")
            gate()
            running.expect("INFO cancelled: no new work, waiting for what runs")
            assert re.search(LOST, running.errors)  # before the drain has ended
            client.sendall(b"lo\n")
            assert client.recv(100) == b"HELLO nobody\n"
        assert running.wait() == 1
        assert "ERROR lifespan life failed as it was left: ExceptionGroup: " in running.errors
        assert "(raised in tick, line " in running.errors


def test_task_of_it_that_fails_has_the_worker_replaced(loop: str, tmp_path: Path, gate: Callable[[], None]) -> None:
    """The others serve on."""
    with program(tmp_path, TICKER, loop, 2) as running:
        running.expect("2 workers serve")
        gate()
        running.expect(LOST)
        running.expect(r"ERROR worker \d+: cancelled; no new work, waiting for what runs")
        running.expect("2 workers serve")
        with connect(tmp_path) as client:
            client.sendall(b"hello\n")
            assert client.recv(100) == b"HELLO nobody\n"
        assert running.end() == 0


def test_task_of_it_that_fails_alone_is_the_programs(tmp_path: Path) -> None:
    """What cancels nothing ends nothing, and is not told of: who waits for the task hears it."""
    with program(tmp_path, WAITED_FOR, "asyncio", 1) as running:
        running.expect("serving on ")
        with connect(tmp_path) as client:
            client.sendall(b"hello\n")
            assert client.recv(100) == b"HELLO nobody\n"
        assert running.end() == 0
        running.wait()
        assert running.output.endswith("known\nreturned\n")
        assert "LookupError" not in running.errors
