"""Connections that end in every way, one after the other: none leaves anything, also if nobody looks for cycles."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

import pytest

import asyncserver
from tests.kit.faults import MIB, ServerProcess, figure
from tests.kit.faults_server import LARGE
from tests.kit.programs import LOOPS
from tests.kit.sockets import ask, connect, receive_exactly, reset

# Blocks of memory that may be more in the end, for what a report needs and what loops keep for later. In the second
# half of the short run each kind of end comes 150 times: also one block that it leaves now and then is found.
BLOCKS = 25
LOOKS = 6
# Open at a time before anything is counted: then the lists of free objects that a report cannot empty are full, those
# of uvloop, asyncio and the extension. They have 255 places at most, and are longer the busier a machine has been.
AT_A_TIME = 300


def talk(client: socket.socket) -> None:
    assert ask(client, b"hello") == b"HELLO"


def leave_at_once(client: socket.socket) -> None:
    pass


def half_close(client: socket.socket) -> None:
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    assert receive_exactly(client, 100) == b"HELLO"


def raise_error(client: socket.socket) -> None:
    client.sendall(b"!raise")
    assert client.recv(1) == b""


def cancel_handler(client: socket.socket) -> None:
    client.sendall(b"!cancel")
    receive_exactly(client, 100)


def cancel_receive(client: socket.socket) -> None:
    assert ask(client, b"!timeout") == b"!TIMEOUT"
    talk(client)


def reset_between(client: socket.socket) -> None:
    talk(client)
    reset(client)


def reset_in_an_answer(client: socket.socket) -> None:
    client.sendall(b"!large")
    receive_exactly(client, LARGE // 4)
    reset(client)


def fill_free_lists(server: ServerProcess) -> None:
    for end in (talk, reset_between):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(server.addresses["tcp"])) for _ in range(AT_A_TIME)]
            for client in clients:
                talk(client)
            for client in clients:
                end(client)


ENDS = (
    talk, leave_at_once, half_close, raise_error, cancel_handler, cancel_receive, reset_between, reset_in_an_answer,
)  # fmt: skip


def run(loop: str, count: int, *, collected: bool) -> None:
    """Let so many connections come and go, with a look at the server now and then."""
    with ServerProcess(loop, tcp={}) as server:
        assert server.report()["accelerated"] == asyncserver.accelerated
        if not collected:
            server.leave_garbage()
        fill_free_lists(server)
        looks: list[dict[str, Any]] = []
        rounds = count // len(ENDS) // LOOKS
        for _ in range(LOOKS):
            for _ in range(rounds):
                for end in ENDS:
                    with connect(server.addresses["tcp"]) as client:
                        end(client)
            looks.append(server.until(lambda now: now["tcp"]["active"] == now["tcp"]["entering"] == 0))
    first, last = looks[LOOKS // 2 - 1], looks[-1]
    told = last["tcp"]
    assert told["accepted"] == rounds * len(ENDS) * LOOKS + 2 * AT_A_TIME
    assert told["accepted"] == told["completed"] + told["failed"] + told["cancelled"]
    assert told["failed"] == told["cancelled"] == rounds * LOOKS == last["log"]["ERROR"]
    blocks = last["blocks"] - first["blocks"]
    grown = (last["memory"] - first["memory"]) / 1024
    build = "compiled" if asyncserver.accelerated else "pure Python"
    figure(
        f"{told['accepted']} connections that end in every way, {build}, gc {'on' if collected else 'off'}",
        loop,
        f"{blocks:+} blocks of memory, {grown:+.0f} KiB, "
        f"{last['descriptors'] - first['descriptors']:+} descriptors, {last['tasks'] - first['tasks']:+} tasks",
        f"{BLOCKS} blocks, 1 MiB, no descriptor, no task",
    )
    assert blocks < BLOCKS
    assert last["memory"] - first["memory"] < MIB
    assert (last["descriptors"], last["tasks"]) == (first["descriptors"], first["tasks"])


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("collected", [True, False], ids=["gc", "no-gc"])
def test_nothing_is_left_of_connections(loop: str, collected: bool) -> None:
    """Some thousands, cancelled, broken and failed among them."""
    run(loop, 2_400, collected=collected)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("collected", [True, False], ids=["gc", "no-gc"])
def test_nothing_is_left_of_very_many_connections(loop: str, collected: bool) -> None:
    """A hundred thousand, or as many as ASYNCSERVER_SOAK_CONNECTIONS says."""
    run(loop, int(os.environ.get("ASYNCSERVER_SOAK_CONNECTIONS", "100000")), collected=collected)
