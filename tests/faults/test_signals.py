"""Signals by the hundred and at the wrong moment, clocks that jump: always one orderly outcome."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.kit.faults import ServerProcess, allowed, crowd, ended, figure
from tests.kit.programs import LOOPS, Program
from tests.kit.sockets import ask, connect
from tests.kit.waiting import PATIENCE

PROGRAM = """
import asyncio, logging, os, socket, sys
import asyncserver

logging.basicConfig(level=logging.INFO, format="%(process)d %(levelname)s %(message)s")

async def handler(stream):
    async for data in stream:
        if data == b"slow":
            await asyncio.sleep(1)
        await stream.send(data.upper())

print("starting", flush=True)
serving = asyncserver.serve(handler, "127.0.0.1", 0, drain_timeout=10)
asyncserver.run(serving, loop=sys.argv[1], workers=int(sys.argv[2]))
print("returned", flush=True)
"""


@contextlib.contextmanager
def running(folder: Path, loop: str, workers: int) -> Iterator[Program]:
    (folder / "program.py").write_text(PROGRAM)
    with Program(["-W", "error", "program.py", loop, str(workers)], folder) as program:
        yield program


def serving_port(program: Program) -> int:
    """Wait until it serves; returns the port that it tells in its log."""
    program.wait_for("127.0.0.1")
    program.wait_for("serv")
    found = re.search(r"serv\w+ on \D*127\.0\.0\.1\D+(\d+)", program.errors)
    assert found is not None, program.errors
    return int(found[1])


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def has_ended(pids: list[int]) -> bool:
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


class Asking(threading.Thread):
    """Asks over a new connection each time until told to stop; what goes wrong is kept."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.answers = 0
        self.errors: list[Exception] = []
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                with connect(("127.0.0.1", self.port)) as client:
                    assert ask(client, b"hello") == b"HELLO"
                    self.answers += 1
            except Exception as exc:
                self.errors.append(exc)
                return

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.join()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_hundred_times_sighup(loop: str, tmp_path: Path) -> None:
    """However many restarts are asked for at once: two new workers in the end, and no request lost meanwhile."""
    with running(tmp_path, loop, 2) as program:
        port = serving_port(program)
        first = children(program.process.pid)
        with Asking(port) as asking:
            for _ in range(100):
                program.process.send_signal(signal.SIGHUP)
                time.sleep(0.002)  # a storm, not one signal: the kernel keeps no second of a kind
            wait_until(lambda: has_ended(first) and len(children(program.process.pid)) == 2)
        now = children(program.process.pid)
        reloads = program.errors.count("SIGHUP: starting")
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
    figure(
        "100 x SIGHUP, 2 workers",
        loop,
        f"{reloads} restarts, {asking.answers} requests meanwhile, {len(asking.errors)} lost, "
        f"{len(now)} workers in the end",
        "0 lost; 2 workers",
    )
    assert not asking.errors
    assert not set(now) & set(first)
    assert has_ended(now)
    assert "Traceback" not in program.errors
    assert " ERROR " not in program.errors
    assert program.output.endswith("returned\n")


def wait_until(reached: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("loop", LOOPS)
def test_sigterm_while_starting(loop: str, workers: int, tmp_path: Path) -> None:
    """At whichever moment of the start it comes: the program ends, by the signal or politely, and leaves no worker."""
    terminate_while_starting(loop, workers, tmp_path, moments=3)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("loop", LOOPS)
def test_sigterm_at_many_moments_of_the_start(loop: str, workers: int, tmp_path: Path) -> None:
    """The same at fifty moments."""
    terminate_while_starting(loop, workers, tmp_path, moments=50)


def terminate_while_starting(loop: str, workers: int, folder: Path, moments: int) -> None:
    statuses: Counter[int] = Counter()
    for moment in range(moments):
        with running(folder, loop, workers) as program:
            program.wait_for("starting")
            time.sleep(0.08 * moment / moments)  # the moment is what is tested
            before = children(program.process.pid)
            program.process.send_signal(signal.SIGTERM)
            status = program.wait()
            wait_until(functools.partial(has_ended, before))
        statuses[status] += 1
        assert status in {0, -signal.SIGTERM}, program.errors
        assert "Traceback" not in program.errors
        assert ("returned" in program.output) == (status == 0)
    figure(
        f"SIGTERM at {moments} moments of the start, {workers} worker(s)",
        loop,
        f"{statuses[0]} drained, {statuses[-signal.SIGTERM]} ended by the signal, no worker left",
        "one of these",
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("loop", LOOPS)
def test_sighup_and_sigterm_while_draining(loop: str, workers: int, tmp_path: Path) -> None:
    """Restarts asked for while it drains change nothing: who was being answered is, and it ends."""
    with running(tmp_path, loop, workers) as program:
        port = serving_port(program)
        with connect(("127.0.0.1", port)) as client:
            assert ask(client, b"before") == b"BEFORE"
            client.sendall(b"slow")
            time.sleep(0.1)
            program.process.send_signal(signal.SIGTERM)
            program.wait_for("no new work")
            if workers > 1:  # without workers it ends a program, as ever
                for _ in range(100):
                    program.process.send_signal(signal.SIGHUP)
            assert client.recv(10) == b"SLOW"
            assert client.recv(10) == b""
        status = program.wait()
    figure(f"SIGTERM, then 100 x SIGHUP, {workers} worker(s)", loop, f"answered, status {status}", "answered, 0")
    assert status == 0
    assert "Traceback" not in program.errors
    assert program.output.endswith("returned\n")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_hundred_times_sigterm(loop: str, workers: int, tmp_path: Path) -> None:
    """Impatience by the hundred: it ends at once, and without a word of an error of its own."""
    with running(tmp_path, loop, workers) as program:
        port = serving_port(program)
        with connect(("127.0.0.1", port)) as client:
            assert ask(client, b"before") == b"BEFORE"
            client.sendall(b"slow")
            workers_before = children(program.process.pid)
            begun = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                for _ in range(100):
                    program.process.send_signal(signal.SIGTERM)
                    time.sleep(0.001)
            status = program.wait()
            took = time.monotonic() - begun
            wait_until(lambda: has_ended(workers_before))
    figure(f"100 x SIGTERM, {workers} worker(s)", loop, f"status {status} after {took:.1f} s", "an end within 5 s")
    assert status in {0, -signal.SIGTERM}
    assert took < allowed(5)
    assert not re.search("Traceback|Exception", program.errors), program.errors


# -- clocks


@pytest.mark.parametrize("loop", LOOPS)
def test_process_that_was_stopped(loop: str) -> None:
    """For the server, seconds are gone: who had spoken meanwhile is answered, not timed out; the silent are."""
    with ServerProcess(loop, tcp={"idle_timeout": 2}) as server:
        address = server.addresses["tcp"]
        with crowd(address, 20) as silent, connect(address) as client:
            assert ask(client, b"before") == b"BEFORE"
            server.until(lambda now: now["tcp"]["active"] == 21)
            os.kill(server.process.pid, signal.SIGSTOP)
            client.sendall(b"meanwhile")
            time.sleep(2.5)  # longer than the idle timeout
            os.kill(server.process.pid, signal.SIGCONT)
            assert client.recv(20) == b"MEANWHILE"
            assert ask(client, b"after") == b"AFTER"
            assert len(ended(silent, PATIENCE)) == 20
            told = server.report()
    figure("stopped for 2.5 s, idle_timeout 2 s", loop, "1 served, 20 timed out", "served who spoke")
    assert told["tcp"]["timed_out"] in {20, 21}  # the client, too, once it has said no more
    assert not told["log"]


JUMPING = """
import asyncio, importlib, itertools, sys, time
import asyncserver

real, jumps = time.time, itertools.cycle([0, 86400 * 365, -86400 * 365, 3600, -1])
time.time = lambda: real() + next(jumps)
time.time_ns = lambda: int(time.time() * 1e9)

async def handler(stream):
    async for data in stream:
        await stream.send(data.upper())

async def ask(server, word):
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    writer.write(word)
    answer = await reader.readexactly(len(word))
    return answer, reader, writer

async def main():
    loop = asyncio.get_running_loop()
    async with asyncserver.serve(handler, "127.0.0.1", 0, idle_timeout=1, drain_timeout=10) as server:
        answer, reader, writer = await ask(server, b"idle")
        for number in range(50):
            writer.write(b"word")
            assert await reader.readexactly(4) == b"WORD"
        begun = loop.time()
        assert await reader.read() == b""
        idle = loop.time() - begun
        writer.close()
        await writer.wait_closed()
        answer, reader, writer = await ask(server, b"last")
        begun = loop.time()
        report = await server.close()
        assert (await reader.read(), report.completed) == (b"", 1)
        writer.close()
    print(f"{server.stats().timed_out} timed out after {idle:.2f} s, drained in {loop.time() - begun:.2f} s")
    assert server.stats().timed_out == 1 and idle < 20 and loop.time() - begun < 5

with asyncio.Runner(loop_factory=importlib.import_module(sys.argv[1]).new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_clock_that_jumps(loop: str, tmp_path: Path) -> None:
    """The time of day goes a year forth and back between any two looks at it: no timeout of ours follows it."""
    (tmp_path / "program.py").write_text(JUMPING)
    with Program(["-W", "error", "program.py", loop], tmp_path) as program:
        assert program.wait() == 0, program.errors
    figure("time of day jumps by a year", loop, program.output.strip(), "1 s; at once")
    assert not program.errors
