"""Datagrams that cannot be sent just now, because the system has no room below the socket."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

import asyncserver
from asyncserver import Datagram
from tests.kit.checks import is_balanced_for_datagrams, is_idle
from tests.kit.clients import Client
from tests.kit.faults import figure
from tests.kit.waiting import until


class Full:
    """A server's socket whose sending fails for lack of room below it, until told otherwise."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.full = True
        self.attempts = 0

    def __getattr__(self, name: str) -> Any:
        if name == "sendto" and self.full:
            self.attempts += 1
            raise OSError(errno.ENOBUFS, "for the test")
        return getattr(self._sock, name)


@pytest.mark.parametrize("way", ["returned", "replied"])
async def test_no_buffers_is_no_busy_loop(way: str) -> None:
    """poll(2) says writable while ENOBUFS lasts: tried again by a timer, and the answer comes when there is room."""

    async def handler(datagram: Datagram) -> bytes | None:
        if way == "returned":
            return datagram.data.upper()
        await datagram.reply(datagram.data.upper())
        return None

    async with asyncserver.serve_datagrams(handler, "127.0.0.1", 0) as server:
        (endpoint,) = server._endpoints  # type: ignore[attr-defined]
        full = endpoint.sock = Full(endpoint.sock)
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(server.addresses[0])
            client = Client(sock)
            await client.send(b"hello")
            await until(lambda: full.attempts)
            await asyncio.sleep(0.5)  # a while in which it may try, but not without end
            attempts, full.full = full.attempts, False
            assert await client.receive() == b"HELLO"
            await until(lambda: is_idle(server) and server.stats().datagrams_answered == 1)
        assert is_balanced_for_datagrams(server)
    figure(f"ENOBUFS for half a second ({way})", None, f"{attempts} attempts, then answered", "100 attempts")
    assert 2 <= attempts < 100
