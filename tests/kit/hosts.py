"""Two hosts and the cable between them, which can be cut: network namespaces, whose sockets this process has."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import Self

import pytest

_CLONE_NEWNET = 0x40000000  # sched.h; Python 3.11 has no setns
#: The addresses of the two.
SERVER, CLIENT = "192.0.2.1", "192.0.2.2"


@functools.cache
def missing() -> str:
    """What this machine lacks for these tests."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    trial = (
        "ip link set lo up && ip link add v0 type veth peer name v1 && "
        "tc qdisc add dev v0 root tbf rate 1mbit burst 10kb limit 10kb"
    )
    try:
        done = subprocess.run(["unshare", "--net", "sh", "-c", trial], capture_output=True, timeout=10, check=False)
    except FileNotFoundError as exc:
        return str(exc)
    return f"no veth or tbf here: {done.stderr.decode()}" if done.returncode else ""


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Let the kernel say that no peer's host answers; a substitute for cutting the cable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncserver.connections.kept_connection.silence", lambda *_: (3600.0, True))
        yield


class Hosts:
    """A server's host and a client's. Needs root, see `missing()`."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._pids = {SERVER: self._start(), CLIENT: self._start()}
        first, second = self._pids.values()
        self._run(f"ip link add cable netns {first} type veth peer name cable netns {second}")
        for address in self._pids:
            self.run(address, "ip link set lo up")
            self.run(address, f"ip address add {address}/24 dev cable")
            self.run(address, "ip link set cable up")

    def _start(self) -> int:
        """Start a process that does nothing but hold a namespace, until its input ends."""
        holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdin is not None
        assert holder.stdout is not None
        self._stack.enter_context(holder)  # closes both, and waits
        os.write(holder.stdin.fileno(), b"?")  # answered by cat, and so from inside the namespace
        os.read(holder.stdout.fileno(), 1)
        return holder.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def _run(command: str) -> None:
        subprocess.run(command.split(), check=True, capture_output=True, timeout=10)

    def run(self, host: str, command: str) -> None:
        """Run a command on a host."""
        self._run(f"nsenter --net --target {self._pids[host]} {command}")

    def cut(self) -> None:
        """Let the client's host vanish without a word."""
        self.run(CLIENT, "ip link set cable down")

    def open_socket(self, host: str, protocol: int = 0) -> socket.socket:
        """Make a TCP socket of a host, closed in the end. It stays there, whoever uses it."""
        made: list[socket.socket] = []

        def make() -> None:
            with open(f"/proc/{self._pids[host]}/ns/net", "rb") as namespace:
                assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) == 0
            made.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return self.keep(made[0])

    def keep(self, sock: socket.socket) -> socket.socket:
        """Close a socket in the end."""
        return self._stack.enter_context(sock)

    def listener(self, protocol: int = 0) -> socket.socket:
        """Make a socket of the server's host that is bound."""
        sock = self.open_socket(SERVER, protocol)
        sock.bind((SERVER, 0))
        return sock
