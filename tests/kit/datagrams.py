"""Servers of datagrams, and clients of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncserver
from tests.kit.waiting import PATIENCE


class Place:
    """Where a server of datagrams is, and clients that reach it."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family = family
        self.folder = folder
        self._clients: list[DatagramClient] = []

    def serve(self, handler: Any, **options: Any) -> asyncserver.Serving:
        if self.family == "unix":
            return asyncserver.serve_datagrams(handler, path=self.folder / "server.sock", **options)
        return asyncserver.serve_datagrams(handler, "127.0.0.1" if self.family == "ipv4" else "::1", 0, **options)

    def client(self, server: asyncserver.Server, *, named: bool = True) -> DatagramClient:
        client = DatagramClient(self, server.addresses[0], f"client{len(self._clients)}", named=named)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.sock.close()


class DatagramClient:
    """A socket that sends from the loop's thread at once, and receives without stopping the loop.

    Attributes:
        header: what it puts before all that it sends, as a proxy.
    """

    def __init__(self, place: Place, server: Any, name: str, *, named: bool) -> None:
        families = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6, "unix": socket.AF_UNIX}
        self.sock = socket.socket(families[place.family], socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.server = server
        self.header = b""
        if place.family == "unix" and named:
            self.sock.bind(str(place.folder / name))

    def send(self, data: bytes) -> None:
        self.sock.sendto(self.header + data, self.server)

    async def receive(self) -> bytes:
        """Receive one datagram."""
        async with asyncio.timeout(PATIENCE):
            return (await self.receive_from())[0]

    async def receive_from(self) -> tuple[bytes, Any]:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        while True:
            try:
                return self.sock.recvfrom(1 << 18)
            except BlockingIOError:
                loop.add_reader(self.sock.fileno(), readable.set)
                try:
                    async with asyncio.timeout(PATIENCE):
                        await readable.wait()
                finally:
                    loop.remove_reader(self.sock.fileno())
                readable.clear()

    async def ask(self, data: bytes) -> bytes:
        self.send(data)
        return await self.receive()


@contextlib.contextmanager
def peer(host: str, family: int = socket.AF_INET) -> Iterator[socket.socket]:
    """A socket that waits for datagrams."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.bind((host, 0))
        yield sock


FAMILIES = ["ipv4", "ipv6", "unix"]
