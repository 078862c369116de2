"""The structs behind connections and waiters, in the hands of programs that are not the usual ones."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import warnings
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

import asyncserver
from asyncserver import Stream
from asyncserver.connections.connection import Connection
from asyncserver.net.poller import Poller
from asyncserver.net.waiter import Waiter
from asyncserver.streams.sending import PostLimit
from tests.kit.transports import Transport

compiled = pytest.mark.skipif(not asyncserver.accelerated, reason="needs the compiled extension")


@contextlib.contextmanager
def polling() -> Iterator[Poller]:
    """Have a poller of the running loop."""
    poller = Poller(asyncio.get_running_loop())
    try:
        yield poller
    finally:
        poller.close()


def connection(poller: Poller) -> Stream:
    """Make one that nothing has come to."""
    return Stream(poller, asyncio.Event(), PostLimit(1, print))


def kind_of(listening: socket.socket) -> tuple[int, int, int]:
    """Tell what `_accept()` is told of a listening socket."""
    return int(listening.family), int(listening.type), listening.proto


@compiled
async def test_collection_while_a_connection_warns_of_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs for the warning may collect garbage, and must not find the connection: it would end twice."""
    seen: list[str] = []

    def show(message: object, *_: object) -> None:
        seen.append(str(message))
        gc.collect()

    with (
        polling() as poller,
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()),
        warnings.catch_warnings(),
    ):
        stream = connection(poller)
        gc.collect()  # what other tests have left
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        assert stream._accept(listening, kind_of(listening))
        number = stream._fd
        del stream
    assert [text[: text.index(",")] for text in seen] == [f"unclosed <socket.socket fd={number}"]


@pytest.mark.parametrize("name", [5, 2**70, b"get_loop", None])
async def test_attribute_whose_name_is_no_string(name: object) -> None:
    """It is refused: only the operators check names, not the methods that stand for them."""
    waiter = Waiter(asyncio.get_running_loop, "waiting in")
    with pytest.raises(TypeError, match="attribute name must be string"):
        Waiter.__getattribute__(waiter, name)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="attribute name must be string"):
        Waiter.__setattr__(waiter, name, False)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["get_loo\xff", "\u1234" * 8, "\U0001f600" * 24, "\xe9" * 17, ""])
async def test_attribute_that_a_waiter_does_not_have(name: str) -> None:
    """It is not taken for one with as many letters."""
    waiter = Waiter(asyncio.get_running_loop, "waiting in")
    with pytest.raises(AttributeError):
        getattr(waiter, name)


async def test_listening_socket_that_is_closed() -> None:
    """An error of the system, for which a listener is prepared."""
    with polling() as poller:
        listening = socket.create_server(("127.0.0.1", 0))
        kind = kind_of(listening)
        listening.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            connection(poller)._accept(listening, kind)


@pytest.mark.parametrize("kind", [(), (int(socket.AF_INET),), ("inet", 1, 6), (2**70, 1, 6), [2, 1, 6]])
async def test_kind_that_is_none(kind: Any) -> None:
    """It is for Python's socket to judge; nobody waits here, so nothing is made of it."""
    with polling() as poller, socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        assert not connection(poller)._accept(listening, kind)


async def test_stream_that_ends_while_an_operation_is_counted(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class's own `_spun()` may do anything: the receive looks at the stream again."""

    def spun(stream: Stream) -> bool:
        stream.abort()
        return False

    async with transport.pair() as (stream, client):
        await client.send(b"abc")
        monkeypatch.setattr(Connection, "_spun", spun)
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()


async def test_line_that_is_taken_while_an_operation_is_counted(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken twice, and no memory is read that is another's by now."""
    async with transport.pair() as (stream, client):
        await client.send(b"first\n" + b"x" * 30000 + b"\n" + b"last\n")
        assert await stream.receive_until(b"\n", 99) == b"first"
        while len(stream._buffer or b"") < 30006:
            await stream._fill()

        def spun(stream: Stream) -> bool:
            assert stream._buffer is not None
            del stream._buffer[:30001]
            monkeypatch.undo()
            return False

        monkeypatch.setattr(Connection, "_spun", spun)
        assert await stream.receive_until(b"\n", 99999) == b"last"
