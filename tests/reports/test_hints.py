"""Hints: who calls another library's method reads what to write here, where the error is read."""

from __future__ import annotations

import asyncio
import logging
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest

import asyncserver
from asyncserver.reports import hints
from tests.kit.transports import Transport

MISSED: list[tuple[Callable[[Any], Any], str]] = [
    (lambda stream: stream.write(b"hello"), r"Stream has no write; write: await stream\.send\(data\), or stream\.post"),
    (lambda stream: stream.readline(), r'Stream has no readline; write: await stream\.receive_until\(b"\\n", max_byt'),
    (lambda stream: stream.read(), r"Stream has no read; write: async for data in stream, or await stream\.receive\("),
    (lambda stream: stream.drain(), r"Stream has no drain; write: await stream\.send\(data\), which returns when"),
]


@pytest.mark.parametrize(("miss", "hint"), MISSED)
async def test_stream_of_another_library(
    transport: Transport, miss: Callable[[Any], Any], hint: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log and `on_error` have the hint, once; the error's text and attributes are Python's."""
    errors: list[BaseException] = []

    async def handler(stream: asyncserver.Stream) -> None:
        await stream.receive()
        assert not hasattr(stream, "write")
        await miss(stream)

    serving = transport.serve(handler, on_error=lambda exc, _: errors.append(exc))
    async with serving as server, transport.connect(server) as client:
        await client.send(b"hello")
        assert await client.rest() == b""
    (error,) = errors
    assert isinstance(error, AttributeError)
    assert isinstance(error.obj, asyncserver.Stream)
    assert str(error) == f"'Stream' object has no attribute '{error.name}'"
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    with pytest.raises(AttributeError, match=hint):  # pytest looks at the notes, too
        raise error
    assert len(error.__notes__) == 1
    assert error.__notes__[0] in logging.Formatter().format(record)


async def test_datagram_of_another_library(caplog: pytest.LogCaptureFixture) -> None:
    """In a task group, too: the hint is at the error itself."""
    errors: asyncio.Queue[BaseException] = asyncio.Queue()

    async def handler(datagram: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(send(datagram))

    async def send(datagram: Any) -> None:
        await datagram.send(b"hello")

    serving = asyncserver.serve_datagrams(handler, "127.0.0.1", 0, on_error=lambda exc, _: errors.put_nowait(exc))
    async with serving as server:
        client, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=server.addresses[0][:2]
        )
        client.sendto(b"hello")
        group = await errors.get()
        client.close()
    assert isinstance(group, BaseExceptionGroup)
    (error,) = group.exceptions
    assert error.__notes__ == ["Datagram has no send; write: await datagram.reply(data), or return the bytes"]
    assert error.__notes__[0] in caplog.text


def test_hints_are_about_what_is_missing_and_name_what_is_there() -> None:
    """No method of ours is called missing; each that a hint writes down exists."""
    for name, instead in hints._INSTEAD.items():
        kind = pkgutil.resolve_name(name)
        assert not [name for name in instead if hasattr(kind, name)]
        for hint in instead.values():
            word = f"{kind.__name__.lower()}."
            assert all(hasattr(kind, name) or name in ATTRIBUTES for name in named(hint, word)), hint


ATTRIBUTES = ("data", "peer_address")


def named(hint: str, word: str) -> list[str]:
    return [part.split("(")[0].split(",")[0].split()[0] for part in hint.split(word)[1:]]


def test_other_errors_keep_to_themselves() -> None:
    """A name that nobody has, another object, an error without an object; twice is once."""
    stream = asyncserver.Stream.__new__(asyncserver.Stream)
    others = [AttributeError("x", name="nonsense", obj=stream), AttributeError("x", name="write", obj=3)]
    others += [AttributeError("x"), AttributeError("x", name="write")]
    for error in others:
        hints.add_hints(error)
        assert not hasattr(error, "__notes__")
    error = AttributeError("x", name="write", obj=stream)
    hints.add_hints(error)
    hints.add_hints(error)
    assert len(error.__notes__) == 1
