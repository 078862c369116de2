"""A network that is slow, drops, or is cut: server and clients in network namespaces of their own, joined by a cable.

Needs root, and a kernel with veth and the tbf queue; otherwise the tests are skipped and say why.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.kit.faults import ServerProcess, allowed, figure
from tests.kit.faults_server import LARGE
from tests.kit.hosts import missing
from tests.kit.programs import LOOPS
from tests.kit.sockets import ask, receive_exactly, reset
from tests.kit.waiting import PATIENCE

_CLONE_NEWNET = 0x40000000  # sched.h; Python 3.11 has no setns
SERVER, CLIENT = "192.0.2.1", "192.0.2.2"


class Cable:
    """A server's and a client's network namespace, and what joins them."""

    def __init__(self, loop: str, **kinds: dict[str, Any]) -> None:
        self.loop = loop
        kinds = {name: options | {"host": "0.0.0.0"} for name, options in kinds.items()}
        self.stack = contextlib.ExitStack()
        self.server = self.stack.enter_context(ServerProcess(loop, "unshare", "--net", **kinds))
        # A process that does nothing but hold the other namespace, until its input ends.
        self.holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.stack.callback(self._let_go)
        assert self.holder.stdin is not None
        assert self.holder.stdout is not None
        os.write(self.holder.stdin.fileno(), b"?")  # answered by cat, and so from inside the namespace
        os.read(self.holder.stdout.fileno(), 1)
        self.pids = {"server": self.server.process.pid, "client": self.holder.pid}
        self._run(
            f"ip link add cable netns {self.pids['server']} type veth peer name cable netns {self.pids['client']}"
        )
        for side, address in (("server", SERVER), ("client", CLIENT)):
            self.run(side, "ip link set lo up")
            self.run(side, f"ip address add {address}/24 dev cable")
            self.run(side, "ip link set cable up")

    def _let_go(self) -> None:
        assert self.holder.stdin is not None
        assert self.holder.stdout is not None
        self.holder.stdin.close()
        self.holder.stdout.close()
        self.holder.wait(PATIENCE)

    @staticmethod
    def _run(command: str) -> None:
        subprocess.run(command.split(), check=True, capture_output=True, timeout=10)

    def run(self, side: str, command: str) -> None:
        """Run a command in a namespace."""
        self._run(f"nsenter --net --target {self.pids[side]} {command}")

    def slow_down(self, side: str, options: str) -> None:
        """Limit what a side sends."""
        self.run(side, f"tc qdisc replace dev cable root tbf {options}")

    def open_socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Make a socket of the client's namespace. It stays there, whoever uses it."""
        made: list[socket.socket] = []

        def make() -> None:
            with open(f"/proc/{self.pids['client']}/ns/net", "rb") as namespace:
                assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) == 0
            made.append(socket.socket(type=kind))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        made[0].settimeout(PATIENCE)
        self.stack.callback(made[0].close)
        return made[0]

    def connect(self, name: str) -> socket.socket:
        kind = socket.SOCK_DGRAM if name == "udp" else socket.SOCK_STREAM
        sock = self.open_socket(kind)
        sock.connect((SERVER, self.server.addresses[name][1]))
        return sock


@pytest.fixture(params=LOOPS)
def cable(request: pytest.FixtureRequest) -> Iterator[Callable[..., Cable]]:
    """Make a server at one end of a cable; the test's sockets are at the other."""
    if reason := missing():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:

        def make(**kinds: dict[str, Any]) -> Cable:
            made = Cable(request.param, **kinds)
            stack.push(made.stack)
            return made

        yield make


def test_cut_and_joined_again(cable: Callable[..., Cable]) -> None:
    """A cable that is out for half a second delays an answer; nothing breaks and nothing is lost."""
    ends = cable(tcp={})
    client = ends.connect("tcp")
    assert ask(client, b"before") == b"BEFORE"
    ends.run("client", "ip link set cable down")
    client.sendall(b"meanwhile")
    time.sleep(0.5)
    ends.run("client", "ip link set cable up")
    begun = time.monotonic()
    assert receive_exactly(client, 9) == b"MEANWHILE"
    took = time.monotonic() - begun
    assert ask(client, b"after") == b"AFTER"
    figure("cable cut for 0.5 s", ends.loop, f"answer {took:.1f} s after it was back", "the answer comes")
    told = ends.server.report()
    assert (told["tcp"]["active"], told["log"]) == (1, {})


def test_cut_for_good(cable: Callable[..., Cable]) -> None:
    """Peers that are gone without a word: those that are idle and those that take nothing are timed out, counted."""
    ends = cable(tcp={"idle_timeout": 1.0, "drain_timeout": 1.0})
    before = ends.server.report()["descriptors"]
    idle = [ends.connect("tcp") for _ in range(10)]
    taking = [ends.connect("tcp") for _ in range(10)]
    for client in taking:
        client.sendall(b"!large")
        receive_exactly(client, 1)
    begun = time.monotonic()
    ends.run("client", "ip link set cable down")
    told = ends.server.until(lambda now: not now["tcp"]["active"])
    took = time.monotonic() - begun
    figure("cable cut for good", ends.loop, f"20 connections ended after {took:.1f} s", "1 s of silence")
    assert told["tcp"]["timed_out"] == 20
    assert not told["log"]
    ends.server.until(lambda now: now["descriptors"] == before)
    for client in (*idle, *taking):
        reset(client)


def test_slow_and_dropping(cable: Callable[..., Cable]) -> None:
    """Twenty megabits a second, and a queue of ten packets that drops what is more: a megabyte comes whole."""
    ends = cable(tcp={})
    ends.slow_down("server", "rate 20mbit burst 4kb limit 15kb")
    client = ends.connect("tcp")
    client.sendall(b"!large")
    begun = time.monotonic()
    assert receive_exactly(client, LARGE) == bytes(LARGE)
    assert ask(client, b"and") == b"AND"
    dropped = dropped_by_queue(ends)
    figure(
        "20 Mbit/s with a queue of ten packets",
        ends.loop,
        f"1 MiB came whole in {time.monotonic() - begun:.1f} s, {dropped} packets dropped",
        "whole",
    )
    assert dropped
    assert not ends.server.report()["log"]


def dropped_by_queue(ends: Cable) -> int:
    command = f"nsenter --net --target {ends.pids['server']} tc -s qdisc show dev cable"
    words = subprocess.run(command.split(), check=True, capture_output=True, timeout=10, text=True).stdout
    return int(words.split("dropped ")[1].split(",")[0])


def unsent(udp: dict[str, int]) -> int:
    return udp["datagrams_received"] - udp["datagrams_sent"]


def test_full_send_buffer_of_datagrams(cable: Callable[..., Cable]) -> None:
    """The cable takes seconds for the answers that are ready: the rest waits in the server, and every one comes."""
    ends = cable(udp={}, tcp={})
    ends.slow_down("server", "rate 2mbit burst 4kb limit 10mb")
    client = ends.connect("udp")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    question = b"x" * 1400
    for _ in range(400):
        client.send(question)
    waiting = 0
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ)
        for number in range(400):
            assert selector.select(PATIENCE), f"{number} of 400 answers"
            assert client.recv(2000) == question.upper()
            if number == 0:
                waiting = unsent(ends.server.until(lambda now: unsent(now["udp"]) > 50)["udp"])
    told = ends.server.until(lambda now: now["udp"]["datagrams_answered"] == 400)
    figure("send buffer full (UDP)", ends.loop, f"{waiting} answers waited, 400 of 400 came", "400")
    assert told["udp"]["datagrams_sent"] == told["udp"]["datagrams_received"] == 400
    assert not told["log"]
    assert ask(ends.connect("tcp"), b"still") == b"STILL"


def test_cable_that_drops_datagrams(cable: Callable[..., Cable]) -> None:
    """What the queue of the interface drops is lost, as datagrams are; the server has sent it and goes on."""
    ends = cable(udp={})
    ends.slow_down("server", "rate 1mbit burst 4kb limit 6kb")
    client = ends.connect("udp")
    for _ in range(200):
        client.send(b"x" * 1400)
    told = ends.server.until(lambda now: now["udp"]["datagrams_answered"] == 200)
    dropped = dropped_by_queue(ends)
    figure("interface drops datagrams", ends.loop, f"{dropped} of 200 dropped, 200 counted as sent", "counted")
    assert dropped
    assert told["udp"]["failed"] == 0
    assert not told["log"]
    ends.slow_down("server", "rate 100mbit burst 100kb limit 10mb")
    client.send(b"still")
    while client.recv(2000) != b"STILL":
        pass


def test_receivers_that_are_gone(cable: Callable[..., Cable]) -> None:
    """Answers to ports that are closed by now bring ICMP errors back: counted as sent, and others are answered."""
    ends = cable(udp={})
    for _ in range(200):
        gone = ends.connect("udp")
        gone.send(b"gone")
        gone.close()
    client = ends.connect("udp")
    assert ask(client, b"here") == b"HERE"
    told = ends.server.until(lambda now: now["udp"]["datagrams_answered"] == 201)
    figure("200 receivers gone (ICMP port unreachable)", ends.loop, "201 answered, 0 failed", "counted")
    assert told["udp"]["failed"] == 0
    assert not told["log"]


def test_drain_with_peers_that_are_gone(cable: Callable[..., Cable]) -> None:
    """Closing comes to its end although nothing that it sends arrives."""
    ends = cable(tcp={"drain_timeout": 0.5})
    clients = [ends.connect("tcp") for _ in range(20)]
    for client in clients:
        client.sendall(b"!large")
        receive_exactly(client, 1)
    ends.run("client", "ip link set cable down")
    begun = time.monotonic()
    assert ends.server.process.stdin is not None
    ends.server.process.stdin.close()
    assert ends.server.process.wait(PATIENCE) == 0
    took = time.monotonic() - begun
    figure("drain of 20 senders behind a cut cable", ends.loop, f"{took:.1f} s", "0.5 s and the grace of 1 s")
    assert took < allowed(3)
    for client in clients:
        reset(client)
