"""Each way to carry a connection: TCP, a Unix socket, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio.abc import SocketAttribute

import asyncserver
from asyncserver import Server, Serving, Stream
from tests.kit import certificates
from tests.kit.clients import BlockingClient, Client, Connecting
from tests.kit.waiting import within

KINDS = ("tcp", "unix", "tls")


@dataclass
class Transport:
    """One way to carry a connection: "tcp", "unix" or "tls"."""

    name: str
    directory: Path
    server_context: ssl.SSLContext = field(default_factory=certificates.server_context)
    client_context: ssl.SSLContext = field(default_factory=certificates.client_context)
    _servers: int = field(default=0, init=False)

    @property
    def tls(self) -> bool:
        """Whether it is TLS."""
        return self.name == "tls"

    def serve(self, handler: Any, **options: Any) -> Serving:
        """Serve on this transport, at an address of its own."""
        options.setdefault("drain_timeout", 2.0)
        if self.name == "unix":
            self._servers += 1
            return asyncserver.serve(handler, path=self.directory / f"{self._servers}.sock", **options)
        if self.tls:
            options.setdefault("ssl", self.server_context)
        return asyncserver.serve(handler, "127.0.0.1", 0, **options)

    def connect(self, server: Server) -> Connecting:
        """Connect a client, under TLS with its handshake done."""
        return Client.connect(server.addresses[0], self.client_context if self.tls else None)

    @contextlib.contextmanager
    def blocking(self, server: Server) -> Iterator[BlockingClient]:
        """A client that blocks, its handshake not done."""
        client = BlockingClient(self.name, server.addresses[0])
        try:
            yield client
        finally:
            client.sock.close()

    @contextlib.asynccontextmanager
    async def pair(self, **options: Any) -> AsyncIterator[tuple[Stream, Client]]:
        """Both ends of one connection: the server's stream, whose handler does nothing, and a client."""
        streams: asyncio.Queue[Stream] = asyncio.Queue()
        released = asyncio.Event()

        async def hold(stream: Stream) -> None:
            streams.put_nowait(stream)
            await released.wait()

        async with self.serve(hold, **options) as server, self.connect(server) as client:
            try:
                yield await within(streams.get()), client
            finally:
                released.set()


def little_room(stream: Stream, client: Client) -> None:
    """Leave little room in the kernel for what is sent to a client, so that few bytes fill it."""
    stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)


async def fill(stream: Stream) -> int:
    """Send until the peer's and our kernel take no more; returns how many bytes they took."""
    chunk = bytes(1 << 16)
    sent = 0
    while True:
        before = stream.bytes_sent
        try:
            async with asyncio.timeout(0.2):
                await stream.send(chunk)
        except TimeoutError:
            return sent + stream.bytes_sent - before
        sent += len(chunk)
