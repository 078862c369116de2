"""Descriptors: fewer than clients want, and as many as ten thousand clients need."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from tests.kit.faults import NOISE, ServerProcess, allowed, ask_all, crowd, figure, need_descriptors, slowest_answers
from tests.kit.programs import LOOPS
from tests.kit.sockets import ask, connect
from tests.kit.waiting import PATIENCE

WARNING = "out of descriptors or memory"


@pytest.mark.parametrize("loop", LOOPS)
def test_500_clients_of_a_server_with_64_descriptors(loop: str) -> None:
    """All are served in the end, whoever waits costs next to nothing, and one line of the log tells."""
    need_descriptors(2000)
    with ServerProcess(loop, tcp={}) as server:
        server.limit_descriptors(64)
        with crowd(server.addresses["tcp"], 500) as clients:
            for client in clients:
                client.send(b"hello")
            began = server.until(lambda now: now["tcp"]["accept_errors"])
            begun = time.monotonic()
            time.sleep(0.5)  # a while in which nothing happens is what is measured
            told = server.report()
            share = (told["cpu"] - began["cpu"]) / (time.monotonic() - begun)
            slowest = serve_in_turn(clients)
        told = server.until(lambda now: not now["tcp"]["active"])
    assert told["tcp"]["completed"] == told["tcp"]["accepted"] == 500
    warnings = [text for text in told["messages"] if WARNING in text]
    figure(
        "500 clients, 64 descriptors",
        loop,
        f"500 served, {100 * share:.1f} % CPU while exhausted, {1000 * slowest:.0f} ms to the next client at most, "
        f"{told['tcp']['accept_errors']} failed accepts, {len(warnings)} warning",
        "500; 20 %; 100 ms; 1 warning",
    )
    assert share < 0.2
    assert slowest < allowed(0.1)
    assert len(warnings) == told["log"]["WARNING"] == sum(told["log"].values()) == 1


def serve_in_turn(clients: list[socket.socket]) -> float:
    """Take the answers in order, and leave; returns the longest that a client waited for another's descriptor."""
    slowest = 0.0
    for client in clients:
        client.settimeout(PATIENCE)
        begun = time.monotonic()
        assert client.recv(5) == b"HELLO"
        slowest = max(slowest, time.monotonic() - begun)
        client.close()
    return slowest


@pytest.mark.parametrize("loop", LOOPS)
def test_a_descriptor_that_is_freed_elsewhere_is_found(loop: str) -> None:
    """Nobody tells the server that its limit has been raised: it tries again by itself."""
    with ServerProcess(loop, tcp={}) as server:
        server.limit_descriptors(server.report()["descriptors"])
        with connect(server.addresses["tcp"]) as client:
            server.until(lambda now: now["tcp"]["accept_errors"])
            server.limit_descriptors(1000)
            begun = time.monotonic()
            assert ask(client, b"hello") == b"HELLO"
            took = time.monotonic() - begun
    figure("a descriptor becomes free elsewhere", loop, f"accepted after {1000 * took:.0f} ms", "100 ms")
    assert took < allowed(0.1)


@pytest.mark.parametrize("loop", LOOPS)
def test_many_idle_and_some_busy_connections(loop: str) -> None:
    """A thousand that say nothing and a hundred that do not stop: served, small, and all gone afterwards."""
    idle_and_busy(loop, idle=1000, busy=100, rounds=10)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("loop", LOOPS)
def test_ten_thousand_idle_and_a_hundred_busy_connections(loop: str) -> None:
    """The same with ten thousand."""
    idle_and_busy(loop, idle=10_000, busy=100, rounds=300)


def idle_and_busy(loop: str, *, idle: int, busy: int, rounds: int) -> None:
    need_descriptors(idle + busy + 200)
    with ServerProcess(loop, tcp={}) as server:
        address = server.addresses["tcp"]
        with crowd(address, 500) as warm_up:
            assert ask_all(warm_up, b"warm") == 500
        before = server.until(lambda now: not now["tcp"]["active"])
        with connect(address) as client:
            alone = slowest_answers(client)
            with crowd(address, idle) as silent, crowd(address, busy) as talking:
                with_idle = server.until(lambda now: now["tcp"]["active"] == idle + busy + 1)
                memory = (with_idle["memory"] - before["memory"]) / idle
                right = sum(ask_all(talking, b"x" * 64) for _ in range(rounds))
                beside = slowest_answers(client)
                assert ask_all(silent, b"awake") == idle
        after = server.until(lambda now: not now["tcp"]["active"])
    figure(
        f"{idle} idle connections and {busy} busy",
        loop,
        f"{right} of {busy * rounds} answers, {memory:.0f} bytes for each idle one, 99th percentile x "
        f"{beside / alone:.1f}, descriptors {before['descriptors']} before, {after['descriptors']} after",
        "all; 4000 bytes; x 5, or 20 ms; the same",
    )
    assert right == busy * rounds
    assert memory < 4000
    assert beside < max(5 * alone, allowed(NOISE))
    assert after["descriptors"] == before["descriptors"]
    assert after["tasks"] == before["tasks"]
    assert not after["log"]


CLOSES = """
import asyncio, resource, socket, sys
import asyncserver

async def echo(stream):
    await stream.send(await stream.receive())

async def main():
    async with asyncserver.serve(echo, "127.0.0.1", 0, drain_timeout=10) as server:
        client = socket.create_connection(server.addresses[0])
        while not server.connections:
            await asyncio.sleep(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno(), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        client.sendall(b"asked")
        await server.close()
        client.settimeout(10)
        print(client.recv(9).decode())

if sys.argv[1] == "uvloop":
    import uvloop as asyncio_or_uvloop
else:
    asyncio_or_uvloop = asyncio
asyncio_or_uvloop.run(main())
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_close_needs_no_descriptor(loop: str) -> None:
    """Nor does it import anything, which needs one: this program has used anyio for nothing before."""
    ended = subprocess.run(
        [sys.executable, "-c", CLOSES, loop], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout, ended.returncode) == ("asked\n", 0), ended.stderr
