"""Clients that reset, at every point of a connection's life: no error in the log, and nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from tests.kit.checks import is_balanced
from tests.kit.faults import MIB, ServerProcess, figure
from tests.kit.faults_server import LARGE
from tests.kit.handlers import UpperLines, upper_lines
from tests.kit.programs import LOOPS
from tests.kit.sockets import ask, connect, receive_exactly, reset
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until

HEADER = b"PROXY TCP4 192.0.2.1 127.0.0.1 1000 80\r\n"


def client_hello() -> bytes:
    """The first bytes of a real handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


HELLO = client_hello()


def on_accept(client: socket.socket, number: int) -> None:
    """Before or while it is accepted."""


def in_the_handshake(client: socket.socket, number: int) -> None:
    """Behind each byte of the ClientHello in turn; behind the last, sometimes with the server's answer under way."""
    client.send(HELLO[: number % (len(HELLO) + 1)])
    if number % (len(HELLO) + 1) == len(HELLO) and number % 2:
        client.recv(1)


def in_the_header(client: socket.socket, number: int) -> None:
    """Behind each byte of a PROXY header in turn."""
    client.send(HEADER[: number % (len(HEADER) + 1)])


def behind_the_first_bytes(client: socket.socket, number: int) -> None:
    """With a question sent, and sometimes the answer awaited but not read to its end."""
    client.send(b"hello")
    if number % 2:
        client.recv(1)


def in_the_reply(client: socket.socket, number: int) -> None:
    """While the server sends more than the kernel takes."""
    client.send(b"!large")
    receive_exactly(client, 1 + number * 4096 % (LARGE // 2))


POINTS: dict[str, tuple[str, Callable[[socket.socket, int], None]]] = {
    "accept": ("tcp", on_accept),
    "handshake": ("tls", in_the_handshake),
    "header": ("proxy", in_the_header),
    "first byte": ("tcp", behind_the_first_bytes),
    "mid-reply": ("tcp", in_the_reply),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("loop", LOOPS)
def test_resets(loop: str, point: str, certfile: Path) -> None:
    """A few hundred at each point."""
    reset_often(loop, point, certfile, 300)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("loop", LOOPS)
def test_ten_thousand_resets(loop: str, point: str, certfile: Path) -> None:
    """Ten thousand at each point."""
    reset_often(loop, point, certfile, 10_000)


def reset_often(loop: str, point: str, certfile: Path, count: int) -> None:
    kind, act = POINTS[point]
    kinds: dict[str, Any] = {"tcp": {}, "tls": {"certfile": str(certfile)}, "proxy": {}}
    with ServerProcess(loop, **kinds) as server:
        address = server.addresses[kind]

        def vanish(many: int) -> dict[str, Any]:
            accepted = server.report()[kind]["accepted"]
            for number in range(many):
                with connect(address) as client:
                    act(client, number)
                    reset(client)
            return server.until(lambda now: now[kind]["accepted"] == accepted + many and not now[kind]["active"])

        before = vanish(100)
        middle = vanish(count // 2)
        vanish(count // 2)
        # Those of the last may still be closing.
        after = server.until(lambda now: now["descriptors"] <= before["descriptors"])
        with connect(server.addresses["tcp"]) as client:
            assert ask(client, b"hello") == b"HELLO"
    # The allocator keeps as many large replies as were once alive at a time; what leaks grows in both halves.
    growth = min(middle["memory"] - before["memory"], after["memory"] - middle["memory"])
    figure(
        f"{count} resets ({point})",
        loop,
        f"{sum(after['log'].values())} lines in the log, descriptors {before['descriptors']} and then "
        f"{after['descriptors']}, tasks {before['tasks']}, {after['tasks']}, threads {before['threads']}, "
        f"{after['threads']}, memory {growth / MIB:+.1f} MiB",
        "none, the same, 6 MiB",
    )
    assert not after["log"]
    assert growth < 6 * MIB
    for name in ("tasks", "threads"):
        assert after[name] <= before[name], name
    assert after[kind]["failed"] == 0


@pytest.mark.parametrize("kind", ["stream", "protocol"])
async def test_resets_during_the_drain(transport: Transport, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Fifty clients in the middle of a message, all of whom reset while the server drains."""
    handler: Any = upper_lines if kind == "stream" else asyncserver.from_protocol(UpperLines)
    await reset_while_draining(transport, handler, 1)  # uvloop keeps a descriptor of its own from then on
    before = len(os.listdir("/proc/self/fd"))
    report = await reset_while_draining(transport, handler, 50)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    logged = [record for record in caplog.records if record.name == "asyncserver"]
    figure(f"50 resets (drain, {kind}, {transport.name})", None, f"{report}, {len(logged)} lines logged", "0 lines")
    assert report == asyncserver.DrainReport(completed=50)
    assert not logged


async def reset_while_draining(transport: Transport, handler: Any, count: int) -> asyncserver.DrainReport:
    async with transport.serve(handler, drain_timeout=PATIENCE) as server:
        clients = [await transport.connect(server) for _ in range(count)]
        for client in clients:
            assert await client.ask(b"whole\n") == b"WHOLE\n"
            await client.send(b"half")
        await until(lambda: server.stats().bytes_received == count * 10)
        closing = asyncio.create_task(server.close())
        await until(lambda: not server.sockets)
        for number, client in enumerate(clients):
            if number % 2:
                await client.send(b" a line\n")
            client.reset()
        report = await closing
        assert is_balanced(server)
    return report
