"""Tasks are named after the peers they serve, so that a list of tasks tells who is served."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import asyncserver
from asyncserver import from_callback
from tests.kit.clients import Client
from tests.kit.transports import Transport
from tests.kit.waiting import until


async def tell(stream: asyncserver.Stream) -> None:
    """Say what our task is called; not before a wait: with a factory of the program's it is named once it is made."""
    task = asyncio.current_task()
    assert isinstance(task, asyncio.Task)
    await asyncio.sleep(0)
    await stream.receive()
    await stream.send(task.get_name().encode())


@pytest.fixture(params=["none", "plain", "eager"])
def factory(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The program's own task factory: none, one that gives no names, as older ones do, or asyncio's eager one."""

    def plain(loop: Any, coroutine: Any, context: Any = None, **_: object) -> Any:
        return asyncio.Task(coroutine, loop=loop, context=context)

    if request.param == "eager" and sys.version_info < (3, 14):
        pytest.skip("asyncio.eager_task_factory is new in 3.12, and works with uvloop from 3.14 on")
    yield {"none": None, "plain": plain, "eager": getattr(asyncio, "eager_task_factory", None)}[request.param]


async def test_name_is_the_peers_address(transport: Transport, factory: Any) -> None:
    """Of a Unix socket's peer, which has none, only the kind."""
    async with transport.serve(tell) as server:
        asyncio.get_running_loop().set_task_factory(factory)
        client = await transport.connect(server)
        await client.send(b"?")
        name = (await client.receive()).decode()
        host_and_port = client.sock.getsockname()[:2]
        client.close()
        await server.close()
        asyncio.get_running_loop().set_task_factory(None)
    assert name == ("unix" if transport.name == "unix" else "tcp {}:{}".format(*host_and_port))


async def test_names_of_others(transport: Transport) -> None:
    """IPv6; a Unix peer that has a name, which cannot forge lines; a callback's own task."""
    async with asyncserver.serve(tell, "::1", 0) as server, Client.connect(server.addresses[0]) as client:
        await client.send(b"?")
        assert (await client.receive()).decode() == f"tcp [::1]:{client.sock.getsockname()[1]}"

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        task = asyncio.current_task()
        assert task is not None
        writer.write(task.get_name().encode())
        writer.close()

    async with transport.serve(from_callback(callback)) as server, transport.connect(server) as client:
        await client.send(b"?")
        assert (await client.receive()).decode().startswith("unix" if transport.name == "unix" else "tcp 127.0.0.1:")


async def test_name_behind_a_proxy_is_the_clients() -> None:
    """As soon as its header has told."""
    options: dict[str, Any] = {"proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}
    async with asyncserver.serve(tell, "127.0.0.1", 0, **options) as server:
        client = await Client.connect(server.addresses[0])
        await client.send(b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n?")
        assert await client.receive() == b"tcp 192.0.2.1:56324"
        client.close()


@pytest.mark.skipif(sys.version_info < (3, 14), reason="python -m asyncio ps came with Python 3.14")
@pytest.mark.parametrize("command", ["ps", "pstree"])
async def test_asyncio_shows_who_is_served(tcp: Transport, command: str) -> None:
    """From outside, on either loop."""
    asyncio.get_running_loop().set_debug(False)  # in which there is more around a handler
    async with tcp.serve(tell) as server, tcp.connect(server) as client:
        await until(lambda: server.connections)
        shown = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "asyncio", command, str(os.getpid())],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        port = client.sock.getsockname()[1]
    if shown.returncode and "ermission" in shown.stderr + shown.stdout:
        pytest.skip("this system lets no process look into another")
    assert f"tcp 127.0.0.1:{port}" in shown.stdout
    assert "tell" in shown.stdout
