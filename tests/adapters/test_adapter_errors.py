"""Protocols and callbacks that raise: the error is told once, and the connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, cast

import pytest

import asyncserver
import asyncserver.adapters.protocols
from asyncserver import ProtocolHandler, from_callback, from_protocol
from tests.kit.checks import is_idle, records
from tests.kit.handlers import BufferedUpperProtocol, UpperProtocol, upper_callback
from tests.kit.transports import Transport
from tests.kit.waiting import until, within

if TYPE_CHECKING:
    from collections.abc import Callable


class Raises(UpperProtocol):
    where = ""

    def _maybe(self, name: str) -> None:
        if name == self.where:
            raise ValueError(f"in {name}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._maybe("connection_made")

    def data_received(self, data: bytes) -> None:
        self._maybe("data_received")
        super().data_received(data)

    def eof_received(self) -> bool | None:
        self._maybe("eof_received")
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._maybe("connection_lost")
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._maybe("pause_writing")


class BufferedRaises(BufferedUpperProtocol):
    where = ""

    def get_buffer(self, sizehint: int) -> memoryview:
        if self.where == "get_buffer":
            raise ValueError("in get_buffer")
        return super().get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        if self.where == "buffer_updated":
            raise ValueError("in buffer_updated")
        super().buffer_updated(nbytes)


@pytest.mark.parametrize(
    "where",
    ["factory", "connection_made", "data_received", "eof_received", "connection_lost", "get_buffer", "buffer_updated"],
)
async def test_error_in_a_protocol(transport: Transport, where: str, caplog: pytest.LogCaptureFixture) -> None:
    """It closes its own connection, is logged once with the peer's address, told to on_error once; others go on."""
    told: list[tuple[BaseException, Any]] = []
    fail = False

    def factory() -> Any:
        if not fail:
            return UpperProtocol()
        if where == "factory":
            raise ValueError("in factory")
        protocol: Any = BufferedRaises() if "buffer" in where else Raises()
        protocol.where = where
        return protocol

    handler = from_protocol(factory)
    async with transport.serve(handler, on_error=lambda exc, source: told.append((exc, source))) as server:
        other = await transport.connect(server)
        assert await other.ask(b"hello") == b"HELLO"
        fail = True
        with contextlib.suppress(OSError):  # under TLS the handshake may fail
            client = await transport.connect(server)
            with contextlib.suppress(OSError):
                await client.send(b"hello")
                if where in {"eof_received", "connection_lost"}:
                    await client.receive_exactly(5)
                    await client.send_eof()
                await client.receive_all()
            client.close()
        await until(lambda: server.stats().failed == 1)
        assert await other.ask(b"still here") == b"STILL HERE"
        other.close()
    assert [str(exc) for exc, _ in told] == [f"in {where}"]
    (record,) = records(caplog)
    assert record.exc_info is not None
    assert repr(told[0][1].peer_address) in record.getMessage() or str(told[0][1].peer_address) in record.getMessage()


class Answers(BufferedUpperProtocol):
    """Gives what `answer` returns or raises as its buffer."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        super().__init__()
        self.answer = answer

    def get_buffer(self, sizehint: int) -> Any:
        return self.answer()


def cancelled() -> None:
    raise asyncio.CancelledError


WRONG_BUFFERS = [lambda: None, bytearray, lambda: b"read-only", lambda: memoryview(bytearray(9))[::2], cancelled]


@pytest.mark.parametrize("answer", WRONG_BUFFERS, ids=["None", "empty", "read-only", "strided", "cancelled"])
async def test_buffer_that_cannot_be_filled(transport: Transport, answer: Callable[[], Any]) -> None:
    """It ends its own connection, once; it does not spin, and keep the others from their turn."""
    factories = iter((lambda: Answers(answer), UpperProtocol))
    async with transport.serve(from_protocol(lambda: next(factories)())) as server:
        client = await transport.connect(server)
        await client.send(b"hello")
        other = await transport.connect(server)
        assert await within(other.ask(b"hello")) == b"HELLO"
        with contextlib.suppress(OSError):
            assert await within(client.receive_all()) == b""
        await until(lambda: server.stats().failed + server.stats().cancelled == 1)
        client.close()
        other.close()


@pytest.mark.parametrize("where", ["connection_made", "data_received", "eof_received", "connection_lost"])
async def test_cancelled_future_in_a_protocol(transport: Transport, where: str) -> None:
    """CancelledError ends the connection like any other error, wherever it comes from."""

    class Cancelled(Raises):
        def _maybe(self, name: str) -> None:
            if name == where:
                cancelled()

    async with transport.serve(from_protocol(Cancelled)) as server:
        with contextlib.suppress(OSError):  # under TLS the handshake may fail
            client = await transport.connect(server)
            with contextlib.suppress(OSError):
                await client.send(b"hello")
                await client.send_eof()
                await within(client.receive_all())
            client.close()
        await until(lambda: server.stats().cancelled == 1)


async def test_error_in_pause_writing(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """So is one in flow control."""

    class Pauses(Raises):
        where = "pause_writing"

        def data_received(self, data: bytes) -> None:
            for _ in range(256):
                self.transport.write(bytes(1 << 16))

    async with transport.serve(from_protocol(Pauses), drain_timeout=0.1) as server:
        client = await transport.connect(server)
        await client.send(b"!")
        with contextlib.suppress(OSError):
            await client.receive_all()
        client.close()
        await until(lambda: server.stats().failed == 1)
    assert len(records(caplog)) == 1


async def test_error_is_told_though_the_peer_does_not_read(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """A protocol that has failed is not kept until a peer that reads nothing has taken its last answer."""

    class Fails(UpperProtocol):
        def data_received(self, data: bytes) -> None:
            self.transport.write(bytes(1 << 24))
            raise ValueError("after a long answer")

    async with transport.serve(from_protocol(Fails), drain_timeout=0.1) as server:
        client = await transport.connect(server)
        await client.send(b"!")
        try:
            await until(lambda: records(caplog))
        finally:
            client.close()


@pytest.mark.parametrize("error", [ValueError, GeneratorExit])
@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_error_in_a_callback(
    transport: Transport, kind: str, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that raises, of whatever kind and on whatever Python: told once, by us, and its connection closed."""
    told: list[tuple[BaseException, Any]] = []

    def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"before")
        raise error("in the callback")

    async def coroutine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plain(reader, writer)

    handler = from_callback(coroutine if kind == "coroutine" else plain)
    async with transport.serve(handler, on_error=lambda exc, source: told.append((exc, source))) as server:
        client = await transport.connect(server)
        with contextlib.suppress(OSError):
            assert await client.receive_all() == b"before"
        client.close()
        await until(lambda: server.stats().failed == 1)
    assert server.stats().completed == 0
    assert [str(exc) for exc, _ in told] == ["in the callback"]
    (record,) = [one for one in caplog.records if one.name in {"asyncserver", "asyncio"} and one.levelname == "ERROR"]
    assert (record.name, vars(record)["outcome"]) == ("asyncserver", "failed")
    assert repr(told[0][1].peer_address) in record.getMessage()


async def test_reset_is_no_error(
    transport: Transport, handler: ProtocolHandler, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer that breaks the connection off: completed, and nothing in the log."""
    async with transport.serve(handler) as server:
        client = await transport.connect(server)
        await client.ask(b"hello")
        await client.send(b"unread")
        await until(lambda: server.stats().bytes_sent == len(b"hellounread"))
        client.reset()
        await until(lambda: is_idle(server))
    assert not records(caplog)
    assert server.stats().failed == 0


def test_what_is_no_factory() -> None:
    """Something that cannot be called is refused at once, by name."""
    with pytest.raises(TypeError, match="'Upper'"):
        from_protocol(cast("Any", "Upper"))
    with pytest.raises(TypeError, match="None"):
        from_callback(cast("Any", None))


def test_repr() -> None:
    """What was given shows."""
    assert "Upper" in repr(from_protocol(UpperProtocol))
    assert "upper_callback" in repr(from_callback(upper_callback))


async def test_callback_is_not_for_datagrams() -> None:
    """It needs a stream; the error says what to write."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TypeError, match="from_protocol"):
        async with asyncserver.serve_datagrams(from_callback(upper_callback), "127.0.0.1", 0):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
