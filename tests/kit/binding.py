"""Both ways to serve at a place, a client of either, and their errors."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

import asyncserver
from tests.kit.handlers import upper, upper_datagram
from tests.kit.sockets import family_of


@pytest.fixture(params=["serve", "serve_datagrams"])
def serve(request: pytest.FixtureRequest) -> Callable[..., asyncserver.Serving]:
    """Serve capitals, over streams or datagrams, at the place that the arguments name."""

    def serve(*place: Any, **options: Any) -> asyncserver.Serving:
        if request.param == "serve":
            return asyncserver.serve(upper, *place, **options)
        return asyncserver.serve_datagrams(upper_datagram, *place, **options)

    return serve


def kind_of(server: asyncserver.Server) -> int:
    return server.sockets[0].type


async def ask(server: asyncserver.Server, address: Any) -> bytes:
    """Ask at an address; also over datagrams, where a lost one would be asked in vain for ever."""
    loop = asyncio.get_running_loop()
    family = family_of(address)
    with socket.socket(family, kind_of(server)) as client:
        client.setblocking(False)
        if family == socket.AF_UNIX and kind_of(server) == socket.SOCK_DGRAM:
            client.bind("")  # a name of the system's choice, so that it can be answered
        await loop.sock_connect(client, address)
        await loop.sock_sendall(client, b"hello")
        return await asyncio.wait_for(loop.sock_recv(client, 99), 20)


async def refused(serving: asyncserver.Serving) -> asyncserver.BindError:
    """The error of a server that cannot start; nothing may stay open because of it."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(asyncserver.BindError) as caught:
        async with serving:
            pass
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert isinstance(caught.value, OSError)
    return caught.value


@pytest.fixture(autouse=True)
async def warm_resolver() -> None:
    """What the loop opens for its own use when it first resolves a name is no leak of ours."""
    await asyncio.get_running_loop().getaddrinfo("localhost", 0)
