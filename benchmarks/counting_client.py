"""The guard's client: one step at a time, and only when the server has come to rest.

python -m benchmarks.counting_client message|connection|datagram HOST:PORT PID OPERATIONS
"""

from __future__ import annotations

import itertools
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

DATA = b"x" * 64
PATIENCE = 30.0


def settle(pid: int) -> None:
    """Wait until every thread of the process sleeps, and still does a moment later.

    Raises:
        TimeoutError: It never came to rest.
    """
    deadline = time.monotonic() + PATIENCE
    quiet = 0
    while quiet < 3:
        quiet = quiet + 1 if _sleeps(pid) else 0
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} did not come to rest within {PATIENCE:.0f} s")
        time.sleep(0.0002)


def _sleeps(pid: int) -> bool:
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):  # the thread has just ended: look again
            return False
        if state != "S":
            return False
    return True


def echo(sock: socket.socket) -> None:
    """One message and its answer."""
    sock.sendall(DATA)
    if sock.recv(len(DATA)) != DATA:
        raise SystemExit("the echo differs from what was sent")


def operations(kind: str, where: tuple[str, int], pid: int) -> Generator[None]:
    """Do one operation at each step, without end."""
    if kind == "connection":
        while True:
            with socket.create_connection(where, PATIENCE) as sock:
                settle(pid)
                echo(sock)
                settle(pid)
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1)
            settle(pid)
            yield
    with socket.socket(type=socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(where)
        while True:
            settle(pid)
            echo(sock)
            yield


def main() -> None:
    """Do so many."""
    kind, address, pid, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    host, _, port = address.rpartition(":")
    for _ in itertools.islice(operations(kind, (host, int(port)), pid), count):
        pass


if __name__ == "__main__":
    main()
