"""Floods: clients that send and never read, that say nothing at all, and datagrams faster than anybody can answer."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.kit.faults import (
    FIGURES,
    MIB,
    NOISE,
    ServerProcess,
    allowed,
    crowd,
    ended,
    figure,
    latencies,
    need_descriptors,
    slowest_answers,
)
from tests.kit.programs import LOOPS
from tests.kit.sockets import connect
from tests.kit.waiting import PATIENCE

# Bytes that a handler and its connection hold at most, while the peer takes none of its answer: what the iteration
# has given it, 256 KiB of a flood, the answer made of it, and a little.
_HELD = 600 * 1024


@pytest.mark.parametrize("loop", LOOPS)
def test_clients_that_send_and_never_read(loop: str) -> None:
    """Each is stopped by TCP itself; what the server keeps of each is bounded, and others are served."""
    need_descriptors(3000)
    count = 1000 if FIGURES in os.environ else 400
    with ServerProcess(loop, tcp={}) as server, connect(server.addresses["tcp"]) as client:
        alone = slowest_answers(client)
        before = server.report()
        # Small buffers on their side: what the server holds of each is the same, and it is there sooner.
        with crowd(server.addresses["tcp"], count, receive_buffer=4096) as flood:
            sent = push(flood, server)
            during = slowest_answers(client, lambda: push_once(flood[:2]))
            told = server.report()
            growth = told["memory"] - before["memory"]
        server.until(lambda now: now["tcp"]["active"] == 1)
    figure(
        f"{count} clients that send and never read",
        loop,
        f"{sent / MIB:.0f} MiB pushed, memory {growth / MIB:+.0f} MiB, others' 99th percentile x "
        f"{during / alone:.1f} ({1e6 * during:.0f} us)",
        f"{count * _HELD / MIB:.0f} MiB; x 5, or 20 ms",
    )
    assert told["tcp"]["active"] == count + 1
    assert growth < count * _HELD
    assert during < max(5 * alone, allowed(NOISE))
    assert not told["log"]


def push(clients: list[socket.socket], server: ServerProcess) -> int:
    """Send over all of them until none takes any more and the server reads no more; returns how much they took."""
    total, seen = 0, -1
    while True:
        sent = push_once(clients)
        total += sent
        received = server.report()["tcp"]["bytes_received"]
        if not sent and received == seen:
            return total
        seen = received


def push_once(clients: list[socket.socket]) -> int:
    """Send what each takes at once."""
    data, sent = b"flood" * 13_000, 0
    for client in clients:
        with contextlib.suppress(BlockingIOError):
            sent += client.send(data)
    return sent


SILENT: dict[str, dict[str, Any]] = {
    "plain": {"idle_timeout": 1.0},
    "tls": {"ssl_handshake_timeout": 1.0},
    "proxy": {"proxy_timeout": 1.0},
}


@pytest.mark.parametrize("kind", SILENT)
@pytest.mark.parametrize("loop", LOOPS)
def test_clients_that_say_nothing(loop: str, kind: str, certfile: Path) -> None:
    """A thousand of them are closed when their time is up, and counted; nobody else has to wait."""
    need_descriptors(3000)
    options = SILENT[kind] | ({"certfile": str(certfile)} if kind == "tls" else {})
    counter = {"plain": "timed_out", "tls": "refused", "proxy": "proxy_timed_out"}[kind]
    with ServerProcess(loop, **{kind: options, "other": {}}) as server, connect(server.addresses["other"]) as client:
        with crowd(server.addresses[kind], 1000) as silent:
            slowest = max(latencies(client, 200))
            times = ended(silent, PATIENCE)
        told = server.until(lambda now: not now[kind]["active"])
    figure(
        f"1000 clients that say nothing ({kind})",
        loop,
        f"closed {min(times):.1f} to {max(times):.1f} s after they had connected, {told[kind][counter]} counted; "
        f"another client waited {1000 * slowest:.0f} ms at most",
        "1 s; 1000",
    )
    assert told[kind][counter] == told[kind]["accepted"] == 1000
    assert max(times) < 9 / 8 + allowed(1)
    assert slowest < allowed(0.5)
    assert set(told["log"]) <= {"WARNING"}  # a proxy that says nothing is told of once


class Flood(threading.Thread):
    """Sends datagrams, of which some want no answer, one a failure, and counts them; reads the answers in between."""

    def __init__(self, address: Any, count: int) -> None:
        super().__init__()
        self.address = address
        self.count = count
        self.answers = 0

    def run(self) -> None:
        words = (b"hello", b"!silent", b"!wait", b"x" * 64) * 25
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(self.address)
            for _ in range(self.count // len(words)):
                for word in words:
                    with contextlib.suppress(BlockingIOError):
                        self.answers += bool(sock.recv(100))
                    sock.send(word)
            sock.send(b"!raise")
            self.count = self.count // len(words) * len(words) + 1


@pytest.mark.parametrize("loop", LOOPS)
def test_flood_of_datagrams(loop: str) -> None:
    """Memory stays flat, each datagram is accounted for, and TCP on the same loop is answered meanwhile."""
    flood_with_datagrams(loop, 20_000)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("loop", LOOPS)
def test_flood_of_a_million_datagrams(loop: str) -> None:
    """The same with a million."""
    flood_with_datagrams(loop, 1_000_000)


def flood_with_datagrams(loop: str, count: int) -> None:
    with ServerProcess(loop, udp={"max_pending": 100}, tcp={}) as server, connect(server.addresses["tcp"]) as client:
        warm_up = Flood(server.addresses["udp"], 5000)
        warm_up.run()
        before = server.until(lambda now: accounted(now["udp"]) == warm_up.count)
        flood = Flood(server.addresses["udp"], count)
        flood.start()
        slowest, asked = 0.0, 0
        while flood.is_alive():
            slowest = max(slowest, *latencies(client, 5))
            asked += 5
        flood.join()
        told = server.until(lambda now: accounted(now["udp"]) >= warm_up.count + flood.count)
    udp, growth = told["udp"], told["memory"] - before["memory"]
    dropped, received = udp["datagrams_dropped"], udp["datagrams_received"]
    figure(
        f"flood of {flood.count} datagrams",
        loop,
        f"{received - before['udp']['datagrams_received']} received + "
        f"{dropped - before['udp']['datagrams_dropped']} dropped, memory {growth / MIB:+.1f} MiB, "
        f"{asked} TCP answers meanwhile, the slowest after {1000 * slowest:.0f} ms",
        "sent = received + dropped; 2 MiB",
    )
    assert received + dropped == warm_up.count + flood.count
    assert received == udp["datagrams_answered"] + udp["datagrams_silent"] + udp["failed"]
    assert udp["datagrams_sent"] == udp["datagrams_answered"]
    assert udp["failed"] == told["log"].get("ERROR", 0)
    assert growth < 2 * MIB
    assert asked
    assert slowest < allowed(1)


def accounted(udp: dict[str, int]) -> int:
    """Datagrams that have come to an end."""
    return udp["datagrams_dropped"] + udp["datagrams_answered"] + udp["datagrams_silent"] + udp["failed"]
