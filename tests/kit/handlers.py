"""Handlers, protocols and callbacks that answer in capitals, or badly."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Self, cast

from asyncserver import Datagram, ProtocolHandler, Stream, from_callback, from_protocol


async def upper(stream: Stream) -> None:
    """Send back in capitals whatever comes."""
    async for data in stream:
        await stream.send(data.upper())


async def upper_lines(stream: Stream) -> None:
    """Send back each line in capitals."""
    while True:
        line = await stream.receive_until(b"\n", 1 << 20)
        await stream.send(line.upper() + b"\n")


async def upper_datagram(datagram: Datagram) -> bytes:
    """Answer in capitals."""
    return datagram.data.upper()


async def silent_datagram(datagram: Datagram) -> None:
    """Answer nothing."""
    del datagram


class Hung:
    """A handler of datagrams that waits to be released, then answers."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.begun = 0
        self.most = 0
        self.now = 0

    async def __call__(self, datagram: Datagram) -> bytes:
        self.begun += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.release.wait()
        finally:
            self.now -= 1
        return datagram.data.upper()


class Misbehaving:
    """A handler that does what the first word asks for; otherwise it sends capitals. At the end it is let go."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release.set()
        await asyncio.sleep(0)

    async def __call__(self, stream: Stream) -> None:
        word = await stream.receive()
        if word == b"raise":
            raise ValueError("the handler's own mistake")
        if word == b"hang":
            await self.release.wait()
        while word == b"swallow" and not self.release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.release.wait()
        await stream.send(word.upper())
        await upper(stream)


class UpperProtocol(asyncio.Protocol):
    """Answers in capitals, and keeps a record of its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.append("connection_made")
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.calls.append("data_received")
        self.transport.write(data.upper())

    def eof_received(self) -> bool | None:
        self.calls.append("eof_received")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("connection_lost")
        self.lost.set_result(exc)


class BufferedUpperProtocol(asyncio.BufferedProtocol):
    """The same with a buffer of its own."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.buffer = bytearray(1000)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)  # of a bytearray itself asyncio's TLS fills a copy: its bug

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]).upper())


class UpperLines(UpperProtocol):
    """Answers each line."""

    buffer = b""

    def data_received(self, data: bytes) -> None:
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            super().data_received(line + b"\n")


async def upper_callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same as a callback."""
    while data := await reader.read(1000):
        writer.write(data.upper())
        await writer.drain()
    writer.close()


async def upper_lines_callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same, line by line."""
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()


HANDLERS: dict[str, Callable[[], ProtocolHandler]] = {
    "Protocol": lambda: from_protocol(UpperProtocol),
    "BufferedProtocol": lambda: from_protocol(BufferedUpperProtocol),
    "callback": lambda: from_callback(upper_callback),
}


class Made:
    """A factory that keeps what it made."""

    def __init__(self, make: Callable[[], Any] = UpperProtocol) -> None:
        self.make = make
        self.protocols: list[Any] = []

    def __call__(self) -> Any:
        self.protocols.append(self.make())
        return self.protocols[-1]


class RaiseOrEcho(UpperProtocol):
    """Raises when asked to, and otherwise answers in capitals."""

    def data_received(self, data: bytes) -> None:
        if data == b"raise":
            raise ValueError
        super().data_received(data)
