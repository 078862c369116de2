"""Everything at once and for long: nothing grows, nothing is lost, nothing is logged that was not ordered.

`SOAK_MINUTES=30 make soak` runs it for half an hour on each loop; `make test` for two seconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from tests.kit.faults import MIB, ServerProcess, ask_all, crowd, figure, slope
from tests.kit.faults_server import LARGE
from tests.kit.programs import LOOPS
from tests.kit.sockets import ask, connect, receive_exactly, reset

PROXY_HEADERS = (b"PROXY TCP4 192.0.2.1 127.0.0.1 1000 80\r\n", b"PROXY UNKNOWN\r\n")
IDLE = 0.25  # the server's idle_timeout
# Memory that the allocator may take beyond the warm-up before it counts as growth: a few of its arenas.
ARENAS = 1 * MIB


class Load:
    """Rounds of everything that clients do, good and bad. One thread, so that what it counts is exact."""

    def __init__(self, addresses: dict[str, Any], context: ssl.SSLContext) -> None:
        self.addresses = addresses
        self.context = context
        self.random = random.Random(6)
        self.connected = dict.fromkeys(addresses, 0)
        self.datagrams = self.raised = self.answers = 0
        self.udp = socket.socket(type=socket.SOCK_DGRAM)
        self.udp.settimeout(5)
        self.udp.connect(addresses["udp"])
        self.idle: deque[tuple[float, socket.socket]] = deque()

    def close(self) -> None:
        for sock in (self.udp, *(sock for _, sock in self.idle)):
            sock.close()

    def dial(self, kind: str) -> socket.socket:
        self.connected[kind] += 1
        return connect(self.addresses[kind])

    def tls(self) -> ssl.SSLSocket:
        return self.context.wrap_socket(self.dial("tls"), server_hostname="127.0.0.1")

    def round(self) -> None:
        """One of each."""
        for act in (self.talk, self.talk_tls, self.talk_behind_a_proxy, self.vanish, self.fail, self.babble):
            act()
        self.stop_reading()
        self.send_datagrams()

    def talk(self) -> None:
        for kind in ("tcp", "unix"):
            with self.dial(kind) as client:
                for size in (1, 100, 20_000):
                    assert ask(client, b"x" * size) == b"X" * size
                    self.answers += 1

    def talk_tls(self) -> None:
        with self.tls() as client:
            for size in (1, 20_000):
                assert ask(client, b"x" * size) == b"X" * size
                self.answers += 1

    def talk_behind_a_proxy(self) -> None:
        with self.dial("proxy") as client:
            client.sendall(self.random.choice(PROXY_HEADERS))
            assert ask(client, b"behind") == b"BEHIND"
            self.answers += 1

    def vanish(self) -> None:
        """Reset at some point: at once, in a handshake or a header, after a question, in an answer."""
        for kind, words in (("tcp", b"hello"), ("tcp", b"!large"), ("tls", b"\x16\x03\x01"), ("proxy", b"PROXY T")):
            client = self.dial(kind)
            if self.random.random() < 0.8:
                client.send(words)
                if words == b"!large" and self.random.random() < 0.5:
                    receive_exactly(client, 1000)
            reset(client)
        reset(self.tls())

    def fail(self) -> None:
        for kind in ("tcp", "unix"):
            with self.dial(kind) as client:
                client.sendall(b"!raise")
                self.raised += 1
                assert client.recv(1) == b""

    def babble(self) -> None:
        """Nonsense where TLS or a PROXY header is expected."""
        for kind in ("tls", "proxy"):
            with self.dial(kind) as client, contextlib.suppress(OSError):
                client.sendall(self.random.randbytes(100))
                client.shutdown(socket.SHUT_WR)  # they may look like the beginning of a long record
                client.recv(1000)
                client.recv(1)

    def stop_reading(self) -> None:
        """Ask for much, take a part of it, and go."""
        client = self.dial("tcp")
        client.sendall(b"!large")
        assert len(receive_exactly(client, LARGE // 2)) == LARGE // 2
        reset(client)

    def send_datagrams(self) -> None:
        words = [b"hello", b"!silent", b"!wait", b"x" * 1400] * 5 + [b"!raise"]
        for word in words:
            self.udp.send(word)
        self.datagrams += len(words)
        self.raised += 1
        for _ in range(15):
            assert self.udp.recv(2000).isupper()
        self.answers += 15

    def leave_idle(self) -> None:
        """Say nothing until the server's idle timeout closes the connection."""
        self.idle.append((time.monotonic(), self.dial("idle")))
        while self.idle[0][0] < time.monotonic() - 2 * IDLE:
            with self.idle.popleft()[1] as client:
                assert client.recv(1) == b""

    def check(self, told: dict[str, Any]) -> None:
        """Compare the server's account with ours."""
        for kind, count in self.connected.items():
            now = told[kind]
            if kind == "udp":
                assert now["datagrams_received"] + now["datagrams_dropped"] == self.datagrams
                assert now["datagrams_received"] == now["completed"] + now["failed"]
            else:
                endings = sum(now[one] for one in ("refused", "completed", "failed", "cancelled", "timed_out"))
                assert now["accepted"] == count == now["entering"] + now["active"] + endings
        assert told["log"].get("ERROR", 0) == self.raised, told["messages"]
        # Who babbles instead of a PROXY header is told once in a minute.
        assert set(told["log"]) <= {"ERROR", "WARNING"}
        assert not [one for one in told["messages"] if " WARNING " in one and "refused a connection" not in one]


def run(loop: str, seconds: float, samples: int, *, certfile: Path, context: ssl.SSLContext, unix: Path) -> None:
    """Load a server for so long, with a look at it now and then, and judge how what it uses has changed."""
    kinds: dict[str, Any] = {
        "tcp": {}, "tls": {"certfile": str(certfile)}, "proxy": {}, "unix": {"path": str(unix)}, "udp": {},
        "idle": {"idle_timeout": IDLE},
    }  # fmt: skip
    with ServerProcess(loop, **kinds) as server:
        load = Load(server.addresses, context)
        with contextlib.closing(load), crowd(server.addresses["tcp"], 50) as steady:
            load.connected["tcp"] += 50
            load.round()  # an endpoint keeps a task from its first datagram on
            tasks = server.until(lambda now: now["tcp"]["active"] == 50)["tasks"]
            looks = []
            begun = time.monotonic()
            for number in range(samples):
                while time.monotonic() < begun + seconds * (number + 1) / samples:
                    load.round()
                    assert ask_all(steady, b"steady") == 50
                    load.leave_idle()
                looks.append((time.monotonic() - begun, look(server, tasks)))
            load.check(looks[-1][1])
        judge(loop, looks, load, seconds)


def look(server: ServerProcess, tasks: int) -> dict[str, Any]:
    """Wait until all but the steady clients have left, so that what is left can be compared."""
    return server.until(
        lambda now: sum(now[kind]["active"] for kind in server.addresses) == 50 and now["tasks"] <= tasks
    )


def judge(loop: str, looks: list[tuple[float, dict[str, Any]]], load: Load, seconds: float) -> None:
    """Nothing grows after the first third: the slope, less its uncertainty, is nil, or for memory next to nil."""
    looks = looks[len(looks) // 3 :]
    times = [moment for moment, _ in looks]
    for name, unit, tolerance in (("memory", 1024, ARENAS), ("descriptors", 1, 0), ("tasks", 1, 0), ("threads", 1, 0)):
        values = [float(now[name]) for _, now in looks]
        growth, interval = slope(times, values)
        figure(
            f"mixed load for {seconds / 60:g} minutes: {name}{' in KiB' * (unit > 1)}, growth per hour",
            loop,
            f"{growth * 3600 / unit:+.1f} +- {interval * 3600 / unit:.1f}; first {values[0] / unit:.0f}, last "
            f"{values[-1] / unit:.0f}; {load.answers} answers",
            "1 MiB in all" if tolerance else "no growth",
        )
        assert (growth - interval) * (times[-1] - times[0]) <= tolerance, (name, values)


@pytest.mark.parametrize("loop", LOOPS)
def test_mixed_load(loop: str, certfile: Path, client_context: ssl.SSLContext, tmp_path: Path) -> None:
    """A short one: every kind of client in turn, and the account is exact."""
    run(loop, 1.5, 6, certfile=certfile, context=client_context, unix=tmp_path / "u")


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("loop", LOOPS)
def test_mixed_load_for_long(loop: str, certfile: Path, client_context: ssl.SSLContext, tmp_path: Path) -> None:
    """As long as SOAK_MINUTES says (3), with a look at memory, descriptors, tasks and threads every few seconds."""
    minutes = float(os.environ.get("SOAK_MINUTES", "3"))
    looks = max(60, int(minutes * 12))
    run(loop, minutes * 60, looks, certfile=certfile, context=client_context, unix=tmp_path / "u")
