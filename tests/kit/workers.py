"""Programs with workers, and clients that check what comes back."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.kit.programs import LOOPS, Program
from tests.kit.waiting import PATIENCE

# A request is `NAME SIZE SECONDS\n`, its answer `VERSION PID SIZE NAME HOST:PORT\n` and so many bytes, the second half
# so much later; with `held` for the seconds, when there is a file `released`. HOST and PORT are the client's. The names
# received are written down before anything is answered.
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
        while seconds == b"held" and not os.path.exists("released"):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0 if seconds == b"held" else float(seconds))
        await source.send(bytes(int(size) - int(size) // 2))
"""

# Before APP: a drain waits long for the first words of those who have connected. A client, or the proxy before it, may
# stand still for more than half a second on a busy machine.
SLOW_CLIENTS = f"""
from asyncserver.net import socket_info

assert socket_info._FIRST_WORDS < {PATIENCE}
socket_info._FIRST_WORDS = {PATIENCE}
"""


class WorkerProgram(Program):
    """A server program whose handlers write down what they receive."""

    leads_session = True

    def __init__(self, folder: Path, arguments: list[str], inherited: tuple[int, ...] = ()) -> None:
        self.folder = folder
        if not (folder / "app.py").exists():
            self.write_app(1)
        super().__init__(arguments, folder, inherited, PYTHONWARNINGS="error", PYTHONDONTWRITEBYTECODE="1")

    def write_app(self, version: int | str) -> None:
        """Write the handler's module anew, and at once."""
        write_module(self.folder, APP.replace("VERSION", str(version)))

    @staticmethod
    def write_app_for_slow_clients(folder: Path) -> None:
        """Write it before the program starts, see SLOW_CLIENTS."""
        write_module(folder, SLOW_CLIENTS + APP.replace("VERSION", "1"))

    def serving(self) -> list[int]:
        """Wait until all workers serve; returns the ports."""
        found = self.expect(r"2 workers serve on (.*)")
        return [int(port) for port in re.findall(r"://[^,]*:(\d+)", found[1])]

    def received(self) -> list[str]:
        """Read the requests that handlers have received, as they were sent but for the end of line."""
        return (self.folder / "received").read_text().splitlines()


def write_module(folder: Path, source: str) -> None:
    """Write app.py anew, and at once."""
    (folder / "new").write_text(source)
    (folder / "new").rename(folder / "app.py")


class Start:
    """Starts the command line with two workers, TCP and UDP unless told otherwise."""

    def __init__(self, folder: Path, loop: str, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.loop = loop
        self._stack = stack

    def __call__(
        self, *options: str, handler: str = "app:handler", script: str | None = None, folder: Path | None = None
    ) -> WorkerProgram:
        folder = folder or self.folder
        arguments = ["-m", "asyncserver", handler, "--workers", "2", "--loop", self.loop, "--log-level", "debug"]
        arguments += options or ("--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0")
        if script is not None:
            (folder / "program.py").write_text(script)
            arguments = ["program.py", self.loop]
        return self._stack.enter_context(WorkerProgram(folder, arguments))


@pytest.fixture(params=LOOPS)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Start programs on each loop; they are gone at the test's end."""
    with contextlib.ExitStack() as stack:
        yield Start(tmp_path, request.param, stack)


_names = itertools.count(1)


class WorkerClient:
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

    def send(self, size: int = 10, seconds: float | str = 0) -> None:
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
    with WorkerClient(port) as client:
        return client.ask(size)


def ask_udp(place: int | tuple[str, int], question: bytes) -> tuple[int, int, bytes]:
    """Ask over a socket of its own, so that the kernel chooses a worker anew; and hear nobody else."""
    address = ("127.0.0.1", place) if isinstance(place, int) else place
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(address)
        client.send(question)
        version, pid, answer = client.recv(1000).split(b" ", 2)
        return int(version), int(pid), answer


def both_workers(port: int) -> list[WorkerClient]:
    """Connect until both workers have answered; returns a connection to each."""
    clients: dict[int, WorkerClient] = {}
    for _ in range(200):
        client = WorkerClient(port)
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
