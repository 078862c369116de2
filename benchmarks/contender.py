"""One running server process: started, pinned, warmed up, measured, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from benchmarks import load as loading
from benchmarks import machine

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from benchmarks.load import Load
    from benchmarks.peers import Peer

START_PATIENCE = 20.0


class StartError(Exception):
    """The server process did not come up; the text is the last thing it said."""


class Contender:
    """A server process of one peer and kind.

    Args:
        peer: Whose server.
        kind: See servers/contract.py.
        folder: Holds the certificate, and takes the Unix socket.
        cores: What the process is pinned to; empty means anywhere.
        workers: Server processes asked for.
    """

    def __init__(
        self, peer: Peer, kind: str, *, folder: Path, cores: AbstractSet[int] = frozenset(), workers: int = 1
    ) -> None:
        self.peer = peer
        self.kind = kind
        self.address = ""
        self._workers = workers
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - not a pipe, which would fill up
        self.process = subprocess.Popen(
            self._command(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=loading.HERE.parent,
            env={**os.environ, **dict(peer.environment)},
        )
        self._cores = cores

    def _command(self, folder: Path) -> list[str]:
        server = self.peer.server
        if server.endswith(".c"):
            program = loading.compile_c(loading.HERE / "servers" / server)
            if program is None:
                raise StartError("no C compiler on this machine")
            start = [str(program)]
        else:
            start = [sys.executable, "-m", f"benchmarks.servers.{server}"]
        words = ["--kind", self.kind, *self.peer.arguments]
        if self.kind == "unix":
            words += ["--path", str(folder / f"{self.peer.name}.sock")]
        if self.kind == "tls":
            words += ["--certificate", str(folder / "server.pem")]
        if self._workers > 1:
            words += ["--workers", str(self._workers), "--port", str(_free_port())]
        return [*machine.dropping_privileges(), *start, *words]

    def wait_until_ready(self) -> None:
        """Wait for the line with the address.

        Raises:
            StartError: It ended or said nothing.
        """
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(START_PATIENCE) else b""
        try:
            self.address = json.loads(line)["address"]
        except ValueError:
            raise StartError(self.last_words() or "it said nothing") from None
        if self._workers > 1:
            self._wait_for_workers()
        if self._cores:  # only now, so that many servers start on all cores; threads to come inherit it
            for task in Path(f"/proc/{self.process.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), self._cores)

    def _wait_for_workers(self) -> None:
        """Workers are told apart from outside only by their number and by a port that answers."""
        host, port = self.address.rsplit(":", 1)
        deadline = time.monotonic() + START_PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                if len(self.pids()) > self._workers:
                    return
            time.sleep(0.02)
        raise StartError(f"{self._workers} workers did not come up")

    def pids(self) -> list[int]:
        """The process and its children, whose CPU time counts together."""
        return _family(self.process.pid)

    def last_words(self) -> str:
        """The last line on its standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def warm_up(self, load: Load, operations: int) -> None:
        """Open several connections, use them with large and small messages, and close them.

        A cold stock loop is two to three times slower until the allocator has seen one large block freed; for
        UDP only an empty datagram frees one.

        Raises:
            LoadError: The server failed while being warmed up.
        """
        if self.kind.endswith("udp"):
            host, port = self.address.rsplit(":", 1)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for _ in range(3):
                    sock.sendto(b"", (host, int(port)))
            load.run("udp", self.address, patience=20, connections=16, size=8192, operations=operations // 4)
            load.run("udp", self.address, patience=20, connections=16, operations=operations)
            return
        mode = self.kind if self.kind in {"unix", "tls"} else "tcp"
        load.run(mode, self.address, patience=20, connections=4, size=262144, operations=64)
        load.run(mode, self.address, patience=20, connections=16, operations=operations)
        if mode == "tcp":
            load.run("connect", self.address, patience=20, connections=8, operations=operations // 10)

    def stop(self) -> None:
        """End it, politely first."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self.process.send_signal(number)
            try:
                self.process.wait(3)
                break
            except subprocess.TimeoutExpired:
                continue
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()


def _family(pid: int) -> list[int]:
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    return found


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
