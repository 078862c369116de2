"""What the tests of from_protocol and from_callback share: handlers in capitals of each style, and what they record."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from asyncserver import from_callback, from_protocol

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from asyncserver import ProtocolHandler


class Upper(asyncio.Protocol):
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


class BufferedUpper(asyncio.BufferedProtocol):
    """The same with a buffer of its own."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.buffer = bytearray(1000)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)  # of a bytearray itself asyncio's TLS fills a copy: its bug

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]).upper())


async def upper_callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data.upper())
        await writer.drain()
    writer.close()


HANDLERS: dict[str, Callable[[], ProtocolHandler]] = {
    "Protocol": lambda: from_protocol(Upper),
    "BufferedProtocol": lambda: from_protocol(BufferedUpper),
    "callback": lambda: from_callback(upper_callback),
}


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for peers that do not answer waits for a short time only."""
    monkeypatch.setattr("asyncserver.adapters.protocols._SHUTDOWN_TIMEOUT", 0.3)
    monkeypatch.setattr("asyncserver.adapters.protocols._CLOSE_TIMEOUT", 0.3)


@pytest.fixture(params=list(HANDLERS))
def handler(request: pytest.FixtureRequest) -> ProtocolHandler:
    """Each style there is."""
    return HANDLERS[request.param]()


class Made:
    """A factory that keeps what it made."""

    def __init__(self, make: Callable[[], Any] = Upper) -> None:
        self.make = make
        self.protocols: list[Any] = []

    def __call__(self) -> Any:
        self.protocols.append(self.make())
        return self.protocols[-1]


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "asyncserver"]
