"""Peers that leave in the middle: for protocols and callbacks, as for streams, an end and not an error."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from asyncserver import from_callback, from_protocol
from tests.kit.checks import records
from tests.kit.clients import Client
from tests.kit.handlers import UpperProtocol
from tests.kit.transports import Transport
from tests.kit.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncserver import ProtocolHandler, Server


async def exactly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        size = (await reader.readexactly(1))[0]
        writer.write(await reader.readexactly(size))
        await writer.drain()


async def to_the_end_of_a_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(await reader.readuntil(b"\n"))


async def group(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(exactly(reader, writer))
        tasks.create_task(asyncio.Event().wait())


async def nested(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(group(reader, writer))


async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()


class Raises(UpperProtocol):
    """Raises what it is told."""

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            raise exc


HANDLERS: dict[str, Callable[[], ProtocolHandler]] = {
    **{one.__name__: partial(from_callback, one) for one in (exactly, to_the_end_of_a_line, group, nested, floods)},
    "Raises": partial(from_protocol, Raises),
}


def resets(client: Client) -> None:
    client.reset()


def closes(client: Client) -> None:
    client.close()


@pytest.mark.parametrize("leave", [resets, closes])
@pytest.mark.parametrize("kind", list(HANDLERS))
async def test_peer_that_leaves(
    transport: Transport, kind: str, leave: Callable[[Client], None], caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of a message, by a reset or an orderly end: completed, and not a line in the log."""
    told: list[Any] = []
    async with transport.serve(HANDLERS[kind](), on_error=lambda *what: told.append(what)) as server:
        client = await transport.connect(server)
        await client.send(b"\x05hel")
        await until(lambda: server.stats().bytes_received == 4)
        leave(client)
        await until(lambda: server.stats().completed == 1)
    assert not records(caplog)
    assert not told


async def failed(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    await until(lambda: server.stats().failed == 1)
    assert len(records(caplog)) == 1


@pytest.mark.parametrize("error", [ConnectionRefusedError, ConnectionResetError, asyncio.IncompleteReadError])
async def test_other_connection_that_breaks(
    transport: Transport, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """While the peer is there, the same errors can only be of another connection: they are the handler's."""

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        raise error(*((b"", 1) if error is asyncio.IncompleteReadError else ()))

    async with transport.serve(from_callback(callback)) as server:
        client = await transport.connect(server)
        await client.send(b"x")
        await failed(server, caplog)
        client.close()


async def test_another_error_in_the_group(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """What else has gone wrong is told, although the peer has left as well."""

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def fails() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("while the peer leaves")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(exactly(reader, writer))
            tasks.create_task(fails())

    async with transport.serve(from_callback(callback)) as server:
        client = await transport.connect(server)
        await client.send(b"\x05hel")
        await until(lambda: server.stats().bytes_received == 4)
        client.close()
        await failed(server, caplog)
