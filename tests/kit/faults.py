"""For tests of faults: a server in a process of its own, crowds of clients, figures and their slopes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import pytest

from tests.kit.programs import KEPT, ROOT
from tests.kit.sockets import ask, connect, reset
from tests.kit.waiting import PATIENCE

MIB = 1 << 20
# What other work on the machine may add, in seconds, to a 99th percentile of a tenth of a millisecond: a few of the
# scheduler's slices. Clients that starve others cost them a hundred milliseconds and more.
NOISE = 0.02
# Where `make soak` collects the figures, a line of JSON each.
FIGURES = "ASYNCSERVER_FIGURES"


def figure(row: str, loop: str | None, value: str, bound: str) -> None:
    """Print what a test has measured and what it allows; in a soak also keep it for the table.

    Args:
        row: what was done to the server.
        loop: the module of its loop; None for the one that runs.
        value: what came of it.
        bound: what was allowed.
    """
    loop = loop or type(asyncio.get_running_loop()).__module__.partition(".")[0]
    print(f"{row} [{loop}]: {value} (allowed: {bound})")
    if path := os.environ.get(FIGURES):
        with open(path, "a") as file:
            print(json.dumps({"row": row, "loop": loop, "value": value, "bound": bound}), file=file)


def allowed(seconds: float) -> float:
    """What a time may be: so much in a soak, which has the machine to itself; elsewhere others may be busy on it."""
    return seconds if FIGURES in os.environ else max(seconds, 10.0)


def need_descriptors(count: int) -> None:
    """Raise this process's limit of descriptors, or skip the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"needs {count} descriptors; the hard limit here is {hard}")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


class ServerProcess:
    """`tests/kit/faults_server.py` in a process of its own, whose memory and CPU time are the server's alone.

    Args:
        loop: the module of its event loop.
        prefix: a command that it is started by, such as `unshare`.
        kinds: its servers, with their options.
    """

    def __init__(self, loop: str, /, *prefix: str, **kinds: dict[str, Any]) -> None:
        environment = {name: value for name, value in os.environ.items() if name in KEPT}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-W", "error", "-m", "tests.kit.faults_server", loop, json.dumps(kinds)],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._buffer = b""
        self.addresses = {
            name: tuple(address) if isinstance(address, list) else address for name, address in self._read().items()
        }

    def _read(self) -> Any:
        assert self.process.stdout is not None
        end = time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not self._buffer.endswith(b"\n"):
                assert selector.select(end - time.monotonic()), "the server process does not answer"
                data = os.read(self.process.stdout.fileno(), 65536)
                assert data, f"the server process has ended with status {self.process.wait()}"
                self._buffer += data
        line, self._buffer = self._buffer, b""
        return json.loads(line)

    def _order(self, line: bytes) -> Any:
        assert self.process.stdin is not None
        os.write(self.process.stdin.fileno(), line + b"\n")
        return self._read()

    def report(self) -> dict[str, Any]:
        """What it uses and has counted; see `Reporter.report`."""
        told: dict[str, Any] = self._order(b"report")
        return told

    def limit_descriptors(self, count: int) -> None:
        """Let it have so many at most."""
        self._order(b"limit %d" % count)

    def leave_garbage(self) -> None:
        """Let its garbage collector look for no cycles from now on, nor any report."""
        self._order(b"garbage")

    def until(self, reached: Callable[[dict[str, Any]], object], seconds: float = PATIENCE) -> dict[str, Any]:
        """Ask for reports until one is as wanted."""
        end, pause = time.monotonic() + seconds, 0.005
        while not reached(told := self.report()):
            assert time.monotonic() < end, f"still not as wanted: {told}"
            time.sleep(pause)
            pause = min(1.2 * pause, 0.05)  # a report takes the server milliseconds
        return told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Close it politely; after an error in the test, at once."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            if kind is None:
                self.process.stdin.close()
                assert self.process.wait(PATIENCE) == 0
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            with contextlib.suppress(OSError):
                self.process.stdin.close()


# -- clients: plain sockets, because what they do must cost less than what they ask for


@contextlib.contextmanager
def crowd(address: Any, count: int, receive_buffer: int | None = None) -> Iterator[list[socket.socket]]:
    """Connect so many clients, non-blocking; at the end they reset what is left, so that no port waits for hours."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            clients.append(stack.enter_context(connect(address, receive_buffer=receive_buffer)))
            stack.callback(reset, clients[-1])
            clients[-1].setblocking(False)
        yield clients


def ask_all(clients: Sequence[socket.socket], question: bytes) -> int:
    """Ask over each non-blocking client; returns how many had the right answer in time."""
    for client in clients:
        client.send(question)
    expected, right = question.upper(), 0
    with selectors.EpollSelector() as selector:
        for client in clients:
            selector.register(client, selectors.EVENT_READ, bytearray())
        end = time.monotonic() + PATIENCE
        while selector.get_map() and time.monotonic() < end:
            for key, _ in selector.select(end - time.monotonic()):
                sock: socket.socket = key.fileobj  # type: ignore[assignment] # what was registered
                data = sock.recv(65536)
                key.data.extend(data)
                if len(key.data) >= len(expected) or not data:
                    right += key.data == expected
                    selector.unregister(sock)
    return right


def ended(clients: Iterable[socket.socket], seconds: float) -> list[float]:
    """Wait until the server has closed each of them; returns when, in seconds from now, one for each."""
    begun, times = time.monotonic(), []
    with selectors.EpollSelector() as selector:
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(begun + seconds - time.monotonic())
            assert ready, f"{len(selector.get_map())} connections are open after {seconds} s"
            for key, _ in ready:
                sock: socket.socket = key.fileobj  # type: ignore[assignment] # what was registered
                with contextlib.suppress(ConnectionResetError):
                    if sock.recv(65536):
                        continue
                times.append(time.monotonic() - begun)
                selector.unregister(sock)
    return times


def latencies(client: socket.socket, count: int, between: Callable[[], object] = lambda: None) -> list[float]:
    """Ask so often; returns how long each answer took, in seconds."""
    times = []
    for _ in range(count):
        between()
        begun = time.perf_counter()
        assert ask(client, b"a well-behaved question") == b"A WELL-BEHAVED QUESTION"
        times.append(time.perf_counter() - begun)
    return times


def slowest_answers(client: socket.socket, between: Callable[[], object] = lambda: None) -> float:
    """The 99th percentile of 500 answers' times; the best of three, since a busy machine can only add to it."""
    return min(percentile(latencies(client, 500, between), 99) for _ in range(3))


def percentile(values: Iterable[float], percent: float) -> float:
    """The value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * percent / 100) - 1)]


def slope(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The growth in a second by least squares, and half of its 95 % confidence interval."""
    line = statistics.linear_regression(times, values)
    rest = [value - line.slope * moment - line.intercept for moment, value in zip(times, values, strict=True)]
    mean = statistics.fmean(times)
    spread = math.sqrt(sum((moment - mean) ** 2 for moment in times))
    deviation = math.sqrt(sum(error**2 for error in rest) / (len(times) - 2))
    return line.slope, 1.96 * deviation / spread
