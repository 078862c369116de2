"""Mistakes of handlers, and places where nothing can be served: the error names the call and what it takes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import anyio
import pytest

import asyncserver
from tests.kit.programs import ROOT
from tests.kit.transports import Transport

MISTAKES: list[tuple[str, tuple[Any, ...], str]] = [
    ("send", ("text",), r"send\(\) takes bytes; got 'text': encode it, \.encode\(\)"),
    ("send", (5,), r"send\(\) takes bytes; got 5"),
    ("send", ("text" * 1000,), r"send\(\) takes bytes; got 'text.{0,40}': encode it"),
    ("send", (None,), r"send\(\) takes bytes; got None"),
    ("send", ([b"text"],), r"send\(\) takes bytes; got \[b'text'\]"),
    ("receive", ("5",), r"receive\(\) takes a number of bytes, a whole one; got '5'"),
    ("receive", (5.5,), r"receive\(\) takes a number of bytes, a whole one; got 5\.5"),
    ("receive_exactly", ("5",), r"receive_exactly\(\) takes a number of bytes, a whole one; got '5'"),
    ("receive_until", (b"\n", "5"), r"receive_until\(\) takes a number of bytes, a whole one; got '5'"),
    ("receive_until", ("\n", 100), r"receive_until\(\) looks for bytes, such as b'\\n'; got '\\n'"),
    ("receive_until", (10, 100), r"receive_until\(\) looks for bytes, such as b'\\n'; got 10"),
]


@pytest.mark.parametrize(("call", "arguments", "message"), MISTAKES)
async def test_text_instead_of_bytes(transport: Transport, call: str, arguments: tuple[Any, ...], message: str) -> None:
    """It names the call and what it got; the stream goes on."""
    told: list[str] = []

    async def handler(stream: asyncserver.Stream) -> None:
        with pytest.raises(TypeError, match=message) as caught:
            await getattr(stream, call)(*arguments)
        told.append(str(caught.value))
        async for data in stream:
            await stream.send(data.upper())

    async with transport.serve(handler) as server, transport.connect(server) as client:
        assert await client.ask(b"hello") == b"HELLO"
    assert len(told) == 1


async def test_forgotten_await(transport: Transport) -> None:
    """`send(stream.receive())`: the error names the call whose `await` is missing."""

    async def handler(stream: asyncserver.Stream) -> None:
        unawaited: Any = stream.receive()
        with pytest.raises(
            TypeError, match=r"send\(\) takes bytes; got what receive\(\) returns: write `await` before"
        ):
            await stream.send(unawaited)
        unawaited.close()
        await stream.send(await stream.receive())

    async with transport.serve(handler) as server, transport.connect(server) as client:
        assert await client.ask(b"hello") == b"hello"


async def test_replies_that_are_too_late_or_no_bytes() -> None:
    """reply() says so, and that the server has been closed."""
    datagrams: asyncio.Queue[asyncserver.Datagram] = asyncio.Queue()

    async def handler(datagram: asyncserver.Datagram) -> None:
        with pytest.raises(TypeError, match=r"reply\(\) takes bytes; got 'text'"):
            await datagram.reply("text")  # type: ignore[arg-type]
        datagrams.put_nowait(datagram)

    async with asyncserver.serve_datagrams(handler, "127.0.0.1", 0) as server:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=server.addresses[0][:2]
        )
        transport.sendto(b"hello")
        datagram = await datagrams.get()
        transport.close()
    with pytest.raises(anyio.ClosedResourceError, match="nothing can be sent: the server has been closed"):
        await datagram.reply(b"late")


@pytest.mark.parametrize("kind", ["serve", "serve_datagrams"])
def test_no_loop_of_asyncio(kind: str) -> None:
    """As under trio, where a coroutine runs and asyncio knows of no loop."""

    async def handler(source: Any) -> None: ...

    serving = getattr(asyncserver, kind)(handler, "127.0.0.1", 0)
    with pytest.raises(
        RuntimeError, match=rf"^{kind}\(\) needs a running loop of asyncio's or uvloop's: trio has none"
    ):
        serving.send(None)


@pytest.mark.parametrize("package", ["asyncserver", "compat", "asyncserver.tls.contexts"])
def test_system_without_epoll(package: str) -> None:
    """What macOS and Windows lack: one sentence at the import."""
    script = f"import select, sys; del select.epoll; sys.platform = 'darwin'; import {package}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    name = package.partition(".")[0]
    assert done.stderr.splitlines()[-1].startswith(
        f"ImportError: {name} needs Linux (epoll, among others), and this is darwin"
    )
