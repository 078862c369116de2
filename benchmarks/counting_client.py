"""The guard's client: one step at a time, and only when the server has come to rest.

python -m benchmarks.counting_client message|connection|datagram HOST:PORT PID OPERATIONS
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

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


def main() -> None:
    kind, address, pid, operations = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    host, _, port = address.rpartition(":")
    where = host, int(port)
    if kind == "connection":
        for _ in range(operations):
            with socket.create_connection(where) as sock:
                settle(pid)
                echo(sock)
                settle(pid)
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1)
            settle(pid)
        return
    with socket.socket(type=socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(where)
        for _ in range(operations):
            settle(pid)
            echo(sock)


if __name__ == "__main__":
    main()
