"""Whatever the pieces in which bytes come and go, the answers are the same."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import asyncserver
from asyncserver import Stream
from tests.kit.clients import Client
from tests.kit.faults import figure
from tests.kit.handlers import UpperProtocol
from tests.kit.transports import Transport
from tests.kit.waiting import within

# A dialogue that uses every way to receive: a line, a length and so many bytes, and the rest.
QUESTIONS = b"first line\n" + b"007" + b"exactly" + b"second line\n" + b"000" + b"and all the rest"
ANSWER = hashlib.sha256(repr([b"first line", b"exactly", b"second line", b"", b"and all the rest"]).encode()).digest()


async def dialogue(stream: Stream) -> None:
    parts = []
    for _ in range(2):
        parts.append(await stream.receive_until(b"\n", 100))
        parts.append(await stream.receive_exactly(int(await stream.receive_exactly(3))))
    parts.append(b"".join([data async for data in stream]))
    await stream.send(hashlib.sha256(repr(parts).encode()).digest())


async def converse(client: Client, pieces: Iterator[bytes]) -> bytes:
    """Send the pieces, each in a segment of its own, end our side, and receive the answer."""
    if client.sock.family != socket.AF_UNIX:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        await client.send(piece)
        await asyncio.sleep(0)  # so that the server may see it alone
    await client.send_eof()
    return await within(client.receive_all())


def in_pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


async def test_pieces_of_every_size(transport: Transport) -> None:
    """One byte at a time, two, three, ... and the whole at once."""
    async with transport.serve(dialogue) as server:
        for size in range(1, len(QUESTIONS) + 1):
            client = await transport.connect(server)
            assert await converse(client, in_pieces(QUESTIONS, size)) == ANSWER, size
            client.close()
    figure(f"pieces of 1 to {len(QUESTIONS)} bytes ({transport.name})", None, "the same answer", "the same answer")


async def test_two_pieces_divided_at_every_byte(transport: Transport) -> None:
    """No byte of a message is a place where it must not be cut."""
    async with transport.serve(dialogue) as server:
        for cut in range(1, len(QUESTIONS)):
            client = await transport.connect(server)
            assert await converse(client, iter((QUESTIONS[:cut], QUESTIONS[cut:]))) == ANSWER, cut
            client.close()


class ByTheByte(UpperProtocol):
    """Answers each byte with a write of its own."""

    def data_received(self, data: bytes) -> None:
        for byte in data:
            self.transport.write(bytes([byte]).upper())


async def by_the_byte(stream: Stream) -> None:
    async for data in stream:
        for byte in data:
            await stream.send(bytes([byte]).upper())


@pytest.mark.parametrize("kind", ["stream", "protocol"])
async def test_writes_of_one_byte(transport: Transport, kind: str) -> None:
    """An answer sent a byte at a time comes whole and in order."""
    handler: Any = by_the_byte if kind == "stream" else asyncserver.from_protocol(ByTheByte)
    question = bytes(range(97, 123)) * 40
    async with transport.serve(handler) as server, transport.connect(server) as client:
        await client.send(question)
        assert await client.receive_exactly(len(question)) == question.upper()


# Around what the kernel, OpenSSL and we ourselves cut at: a record, a receive, a pipe, what a send buffer holds.
SIZES = sorted({edge + offset for edge in (1, 1448, 16384, 65536, 212_992, 1 << 20, 4 << 20) for offset in (-1, 0, 1)})


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview"])
async def test_writes_of_every_size(transport: Transport, kind: str) -> None:
    """From nothing to megabytes, around every boundary there is: what is sent is what comes."""
    make: Any = {"bytes": bytes, "bytearray": bytearray, "memoryview": memoryview}[kind]

    async def produce(stream: Stream) -> None:
        while True:
            size = int(await stream.receive_until(b"\n", 20))
            await stream.send(make(pattern[:size]))

    pattern = bytes(range(251)) * ((SIZES[-1] // 251) + 1)
    async with transport.serve(produce) as server, transport.connect(server) as client:
        for size in SIZES:
            await client.send(b"%d\n" % size)
            assert await client.receive_exactly(size) == pattern[:size], size
    figure(f"writes of {len(SIZES)} sizes ({transport.name}, {kind})", None, "the same bytes", "the same bytes")
