"""What the tests of workers share: server programs with a log that is read as it comes, and clients that check."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Self

import pytest

from tests.serverkit import LOOPS, PATIENCE, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# A request is `NAME SIZE SECONDS\n`, its answer `VERSION PID SIZE NAME HOST:PORT\n` and so many bytes, the second half
# so much later. HOST and PORT are the client's. The names received are written down before anything is answered.
APP = """
import asyncio, os, time

received = os.open("received", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

async def handler(source):
    head = b"VERSION %d " % os.getpid()
    if hasattr(source, "data"):
        return head + source.data
    address = "{}:{}".format(*source.peer_address).encode() if source.peer_address else b""
    while request := await source.receive_until(b"\\n", 100):
        if request == b"die":
            os._exit(3)
        if request == b"block":
            await source.send(head + b"0 block " + address + b"\\n")
            time.sleep(1000)
        name, size, seconds = request.split()
        os.write(received, request + b"\\n")
        await source.send(head + b"%b %b %b\\n" % (size, name, address) + bytes(int(size) // 2))
        await asyncio.sleep(float(seconds))
        await source.send(bytes(int(size) - int(size) // 2))
"""


class Program:
    """A server program; its log is read as it comes."""

    def __init__(self, folder: Path, arguments: list[str], inherited: tuple[int, ...] = ()) -> None:
        self.folder = folder
        if not (folder / "app.py").exists():
            self.write_app(1)
        environment = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            pass_fds=inherited,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.log: list[str] = []
        self._seen = 0
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def write_app(self, version: int | str) -> None:
        """Write the handler's module anew, and at once."""
        (self.folder / "new").write_text(APP.replace("VERSION", str(version)))
        (self.folder / "new").rename(self.folder / "app.py")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self.log.append(line)
                self._more.notify_all()
        with self._more:
            self.log.append("end of log")
            self._more.notify_all()

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the log after the one that was last waited for."""
        with self._more:
            while True:
                assert self._more.wait_for(lambda: len(self.log) > self._seen, timeout=PATIENCE), (
                    f"no {pattern!r}: {self.log}"
                )
                line = self.log[self._seen]
                self._seen += 1
                if found := re.search(pattern, line):
                    return found
                assert line != "end of log", f"no {pattern!r} before the end: {self.log}"

    def expect_in_all(self, count: int, words: str) -> None:
        """Wait until so many lines, from the first on, contain the words."""
        with self._more:
            enough = self._more.wait_for(lambda: sum(words in line for line in self.log) >= count, timeout=PATIENCE)
            assert enough, f"not {count} x {words!r}: {self.log}"

    def serving(self) -> list[int]:
        """Wait until all workers serve; returns the ports."""
        found = self.expect(r"2 workers serve on (.*)")
        return [int(port) for port in re.findall(r"://[^,]*:(\d+)", found[1])]

    def received(self) -> list[str]:
        """Read the requests that handlers have received, as they were sent but for the end of line."""
        return (self.folder / "received").read_text().splitlines()

    def tell(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal, and wait for the end; returns the status."""
        self.tell(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """Whatever has happened, leave nothing behind: the session is the program's own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()


class Start:
    """Starts the command line with two workers, TCP and UDP unless told otherwise."""

    def __init__(self, folder: Path, loop: str) -> None:
        self.folder = folder
        self.loop = loop
        self.programs: list[Program] = []

    def __call__(
        self, *options: str, handler: str = "app:handler", script: str | None = None, folder: Path | None = None
    ) -> Program:
        folder = folder or self.folder
        arguments = ["-m", "asyncserver", handler, "--workers", "2", "--loop", self.loop, "--log-level", "debug"]
        arguments += options or ("--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0")
        if script is not None:
            (folder / "program.py").write_text(script)
            arguments = ["program.py", self.loop]
        self.programs.append(Program(folder, arguments))
        return self.programs[-1]


@pytest.fixture(params=LOOPS)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Start programs on each loop; they are gone at the test's end."""
    start = Start(tmp_path, request.param)
    yield start
    for program in start.programs:
        program.close()


_names = itertools.count(1)


class Client:
    """A connection that asks, one request after the other."""

    def __init__(self, place: int | tuple[str, int], host: str = "127.0.0.1") -> None:
        address = ("127.0.0.1", place) if isinstance(place, int) else place
        self.sock = socket.create_connection(address, timeout=PATIENCE, source_address=(host, 0))
        self.address = "{}:{}".format(*self.sock.getsockname())
        self.file = self.sock.makefile("rb")
        self.name = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def send(self, size: int = 10, seconds: float = 0) -> None:
        self.name = f"n{next(_names)}"
        self.sock.sendall(f"{self.name} {size} {seconds}\n".encode())

    def head(self) -> tuple[int, int, int]:
        """Receive an answer's beginning: the version and process that answers, and the size."""
        line = self.file.readline()
        if not line:
            raise ConnectionResetError("closed before a byte of the answer")
        assert line.endswith(b"\n"), "the answer was cut off"
        version, pid, size, name, address = line.decode().split()
        assert name in {self.name, "block"}
        assert address == self.address, "the handler sees somebody else"
        return int(version), int(pid), int(size)

    def rest(self, size: int) -> None:
        try:
            assert self.file.read(size) == bytes(size), "the answer was cut off"
        except ConnectionError as exc:
            raise AssertionError("the answer was cut off") from exc

    def ask(self, size: int = 10, seconds: float = 0) -> tuple[int, int]:
        """Ask, and check that the whole answer comes; returns version and process."""
        self.send(size, seconds)
        version, pid, told = self.head()
        assert told == size
        self.rest(size)
        return version, pid

    def at_end(self) -> bool:
        """Whether the server has ended the connection, as far as can be seen now."""
        if not select.select([self.sock], [], [], 0)[0]:
            return False
        try:
            assert self.sock.recv(1, socket.MSG_PEEK) == b"", "an answer to nothing"
        except ConnectionResetError:
            return True
        return True


def ask(port: int, size: int = 10) -> tuple[int, int]:
    """Ask over a connection of its own."""
    with Client(port) as client:
        return client.ask(size)


def ask_udp(place: int | tuple[str, int], question: bytes) -> tuple[int, int, bytes]:
    """Ask over a socket of its own, so that the kernel chooses a worker anew; and hear nobody else."""
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(("127.0.0.1", place) if isinstance(place, int) else place)
        client.send(question)
        version, pid, answer = client.recv(1000).split(b" ", 2)
        return int(version), int(pid), answer


def both_workers(port: int) -> list[Client]:
    """Connect until both workers have answered; returns a connection to each."""
    clients: dict[int, Client] = {}
    for _ in range(200):
        client = Client(port)
        pid = client.ask()[1]
        if pid in clients:
            client.close()
        clients.setdefault(pid, client)
        if len(clients) == 2:
            return list(clients.values())
    pytest.fail("200 connections, and all at one worker")


def ended(pid: int) -> Callable[[float], bool]:
    """Watch a process that is not our child; the function returned waits for its end."""
    descriptor = os.pidfd_open(pid)

    def wait(seconds: float) -> bool:
        try:
            return bool(select.select([descriptor], [], [], seconds)[0])
        finally:
            os.close(descriptor)

    return wait
