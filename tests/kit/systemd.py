"""A socket in the place of systemd's, and a handler that tells what systemd has passed on."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path
from typing import Any, Self

import pytest

from tests.kit.sockets import connect
from tests.kit.waiting import PATIENCE
from tests.kit.workers import write_module

# A request is a line. `tell`: who answers, what systemd's variables it sees, which of its first descriptors a program
# started from here would inherit. `block`: the loop is stuck
# until there is a file `released`.
APP = """
import asyncio, os, time
held = asyncio.Event()

def tell():
    left = [name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))]
    inherited = []
    for descriptor in range(3, 20):
        try:
            inherited += [descriptor] if os.get_inheritable(descriptor) else []
        except OSError:
            continue
    return f"VERSION {os.getpid()} {left} {inherited}\\n".encode()

async def handler(source):
    if hasattr(source, "data"):
        if source.data == b"hold":
            await held.wait()
        return tell()
    while True:
        line = await source.receive_until(b"\\n", 100)
        if line == b"release":
            held.set()
        if line == b"block":
            await source.send(b"blocked\\n")
            while not os.path.exists("released"):
                time.sleep(0.01)
        await source.send(tell())
"""

# Passes descriptors on as systemd does: from number 3 on, to the process whose number LISTEN_PID is.
ACTIVATE = """
import fcntl, os, sys
names, numbers, *arguments = sys.argv[1:]
moved = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in numbers.split(",")]
os.closerange(3, 100)
for number, descriptor in enumerate(moved, 3):
    os.dup2(descriptor, number)
    os.close(descriptor)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(moved)), "LISTEN_FDNAMES": names}
os.environ["LISTEN_PIDFDID"] = str(os.fstat(os.pidfd_open(os.getpid())).st_ino)
os.execv(sys.executable, [sys.executable, *arguments])
"""


def write_app(folder: Path, version: int | str) -> None:
    """Write the handler's module anew, and at once."""
    write_module(folder, APP.replace("VERSION", str(version)))


class LineClient:
    """Asks over a connection, in lines."""

    def __init__(self, address: Any) -> None:
        self.sock = connect(address)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def answer(self) -> str:
        """Receive a line; fails if there is none."""
        line = self.file.readline()
        assert line.endswith(b"\n"), line
        return line.decode().strip()

    def ask(self, line: str = "tell") -> str:
        self.sock.sendall(line.encode() + b"\n")
        return self.answer()


def ask(address: Any) -> str:
    with LineClient(address) as client:
        return client.ask()


class Systemd:
    """systemd's end of the socket that programs tell."""

    def __init__(self, address: str) -> None:
        self.variable = address.replace("\0", "@")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.sock.settimeout(PATIENCE)

    def next(self) -> dict[str, str]:
        """Receive a message."""
        return dict(line.split("=", 1) for line in self.sock.recv(4096).decode().split("\n"))

    def expect(self, name: str, pattern: str = "") -> dict[str, str]:
        """Receive messages up to the one that says so; those before it may only be pulses."""
        while True:
            message = self.next()
            if name in message and re.search(pattern, message["STATUS"]):
                return message
            assert "WATCHDOG" in message, f"{message} before {name}"

    def queued(self) -> list[dict[str, str]]:
        """Receive what has come already."""
        found = []
        self.sock.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.next())
        self.sock.settimeout(PATIENCE)
        return found

    def expect_silence(self, seconds: float) -> None:
        """See that nothing comes for so long."""
        self.sock.settimeout(seconds)
        with pytest.raises(TimeoutError):
            self.next()
        self.sock.settimeout(PATIENCE)


either_address = pytest.mark.parametrize("systemd", ["path", "abstract"], indirect=True)


Start = Any
