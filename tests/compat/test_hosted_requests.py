"""The requests of hosted handlers: how a drain ends their waits, and what is counted."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import threading
from pathlib import Path
from typing import Any

import pytest

import asyncserver
import compat
from compat.hosting import request
from tests.kit.clients import Client
from tests.kit.transports import Transport
from tests.kit.waiting import until


async def drained(handler: type[socketserver.BaseRequestHandler], first: bytes, later: bytes = b"") -> list[bytes]:
    """What a client hears before and during a drain that no handler holds up: its first bytes come before."""
    async with (
        asyncserver.serve(compat.hosted(handler), "127.0.0.1", 0) as server,
        Client.connect(server.addresses[0]) as client,
    ):
        await client.send(first)
        heard = [await client.receive()]
        closing = asyncio.create_task(server.close(60))
        if later:
            await asyncio.wait([closing], timeout=0.3)  # more than the two looks at a thread that waits
            assert not closing.done()
            await client.send(later)
        heard.append(await client.receive_all())
        report = await asyncio.wait_for(closing, 10)
    assert report == asyncserver.DrainReport(completed=1)
    assert server.stats().bytes_received == len(first + later)
    assert server.stats().bytes_sent == len(b"".join(heard))
    return heard


class Lines(socketserver.StreamRequestHandler):
    """Answers each line, in capitals."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


async def test_drain_ends_a_wait_for_a_line() -> None:
    """A client that is idle after an answer does not hold up the drain."""
    assert await drained(Lines, b"one\n") == [b"ONE\n", b""]


async def test_drain_waits_for_the_rest_of_a_line_in_the_buffer() -> None:
    """Half a line came with the line before, and so before the last answer."""
    assert await drained(Lines, b"one\ntw", b"o\n") == [b"ONE\n", b"TWO\n"]


@pytest.mark.parametrize("name", ["recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"])
async def test_drain_ends_whatever_receives(name: str) -> None:
    """Before and after the drain has begun; a look with MSG_PEEK is not counted as received."""
    ends = []

    class Receiving(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            room = bytearray(9)
            given = {"recvmsg_into": [room]}.get(name, room) if "into" in name else 9
            receive = getattr(self.request, name)
            self.request.recv(9, socket.MSG_PEEK)
            receive(given)
            self.request.send(b"ONE")
            for _ in range(2):
                end = receive(given)
                ends.append(end[0] if isinstance(end, tuple) else end)

    assert await drained(Receiving, b"one") == [b"ONE", b""]
    assert ends == [0 if "into" in name else b""] * 2


@pytest.mark.parametrize("name", ["read", "read1", "readinto", "readinto1", "readline"])
async def test_buffer_tells_what_was_taken(name: str) -> None:
    """Whatever has taken the bytes out of it, nothing is owed then."""

    class Reading(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            read = getattr(self.rfile, name)
            given = [bytearray(4)] if "into" in name else [4]
            read(*given)
            self.wfile.write(b"ONE")
            read(*given)

    assert await drained(Reading, b"one\n") == [b"ONE", b""]


async def test_copy_of_a_request_is_a_plain_socket(tmp_path: Path) -> None:
    """It can be used, and is not counted; what the kernel sends from a file is."""
    (tmp_path / "file").write_bytes(b"from a file")

    class Copying(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with self.request.dup() as copy, (tmp_path / "file").open("rb") as file:
                assert type(copy) is socket.socket
                assert copy.recv(9) == b"one"
                self.request.sendfile(file)

    async with asyncserver.serve(compat.hosted(Copying), "127.0.0.1", 0) as server:
        async with Client.connect(server.addresses[0]) as client:
            await client.send(b"one")
            assert await client.receive_all() == b"from a file"
        await until(lambda: server.stats().completed)
        stats = server.stats()
    assert (stats.bytes_received, stats.bytes_sent) == (0, 11)


def collecting(taken: list[bytes], size: int, *, answers: bool) -> Any:
    """Make a handler that takes so many bytes at a time, and sends them back if it answers."""

    class Collect(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(size):
                taken.append(data)
                if answers:
                    self.request.sendall(data)

    return compat.hosted(Collect, answers=answers)


@pytest.mark.parametrize("answers", [True, False])
async def test_drain_that_begins_as_a_thread_has_bytes_forgets_none(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Received, and not counted yet: these are neither unread nor received when the drain looks."""
    has_some, go_on = threading.Event(), threading.Event()
    receive = request._recv
    taken: list[bytes] = []

    def receive_and_wait(sock: socket.socket, *arguments: int) -> bytes:
        data = receive(sock, *arguments)
        has_some.set()
        go_on.wait(60)
        return data

    monkeypatch.setattr(request, "_recv", receive_and_wait)
    handler = collecting(taken, 5, answers=answers)
    async with asyncserver.serve(handler, "127.0.0.1", 0) as server, Client.connect(server.addresses[0]) as client:
        await client.send(b"first")
        await until(has_some.is_set)
        await client.send(b"otherthird")
        closing = asyncio.create_task(server.close(60))
        await until(lambda: not server.sockets)
        go_on.set()
        assert await asyncio.wait_for(closing, 20) == asyncserver.DrainReport(completed=1)
        assert await client.receive_all() == (b"firstotherthird" if answers else b"")
    assert taken == [b"first", b"other", b"third"]


@pytest.mark.parametrize("answers", [True, False])
async def test_drain_that_begins_as_a_thread_has_a_part_of_a_record_forgets_none(
    answers: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The rest of the record is neither in the kernel nor counted; what comes behind it is taken as well."""
    has_some, go_on = threading.Event(), threading.Event()
    read = request._TLSRequest._read_what_is_here
    taken: list[bytes] = []

    def read_and_wait(self: request._TLSRequest, *arguments: object) -> object:
        data = read(self, *arguments)
        has_some.set()
        go_on.wait(60)
        return data

    monkeypatch.setattr(request._TLSRequest, "_read_what_is_here", read_and_wait)
    transport = Transport("tls", tmp_path)
    handler = collecting(taken, 1000, answers=answers)
    async with transport.serve(handler) as server, transport.connect(server) as client:
        await client.send(bytes(10_000))  # one record
        await until(has_some.is_set)
        await client.send(b"behind" * 200)
        closing = asyncio.create_task(server.close(60))
        await until(lambda: not server.sockets)
        go_on.set()
        heard = await client.receive_all()
        assert await asyncio.wait_for(closing, 20) == asyncserver.DrainReport(completed=1)
    assert b"".join(taken) == bytes(10_000) + b"behind" * 200
    assert heard == (b"".join(taken) if answers else b"")
