"""Ways: how a server of the table can serve, and how clients reach it, up to each stage of their introduction."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver import DrainReport, Server
from tests.crossings.conversation import Conversation, brief
from tests.kit.clients import Client, TLSClient
from tests.kit.proxy_headers import LINE
from tests.kit.waiting import PATIENCE, until, within

STYLES = ("stream", "protocol", "buffered", "callback", "hosted")
ADAPTERS = ("protocol", "buffered", "callback")
PROTOCOLS = ("protocol", "buffered")
WIRES = ("tcp", "unix", "tls")
#: Seconds within which a drain ends that has nothing to wait for; its timeout is four times as long.
SOON = PATIENCE / 4
#: Of the kernel's buffers, on both sides of a TCP connection. A Unix socket's have about as much of themselves.
_ROOM = 1 << 17

CLEAN, RESET, CUT = "clean", "reset", "cut off"
_OUTCOMES = ("entering", "active", "refused", "completed", "failed", "cancelled", "timed_out")


@dataclass(frozen=True)
class Way:
    """One way to serve."""

    style: str
    wire: str
    proxied: bool

    def __str__(self) -> str:
        return f"{self.style}-{self.wire}{'-proxied' if self.proxied else ''}"


def ways(number: int) -> list[Way]:
    """Each style on each wire; which of them are behind a proxy alternates, also from one number to the next."""
    pairs = itertools.product(enumerate(STYLES), enumerate(WIRES))
    return [Way(style, wire, (number + row + column) % 2 == 1) for (row, style), (column, wire) in pairs]


@dataclass
class Crossing:
    """A way, and what a cell of the table needs to try something on it."""

    way: Way
    server_context: ssl.SSLContext
    client_context: ssl.SSLContext
    folder: Path
    conversation: Conversation = field(default_factory=Conversation)
    errors: list[BaseException] = field(default_factory=list)
    unsent: bytes = b""
    clients: list[Client] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def serve(self, **options: Any) -> AsyncIterator[Server]:
        """Serve, with little room in the kernel. At the end all handlers are let go, and the accounts have to agree."""
        options = {"drain_timeout": PATIENCE, "proxy_protocol": self.way.proxied, **options}
        options["on_error"] = lambda exc, _: self.errors.append(exc)
        if self.way.wire == "tls":
            options["ssl"] = self.server_context
        where: dict[str, Any] = {"host": "127.0.0.1", "port": 0}
        if self.way.wire == "unix":
            where = {"path": self.folder / "server.sock"}
        async with asyncserver.serve(self.conversation.handler(self.way.style), **where, **options) as server:
            self.conversation.server = server
            if self.way.wire != "unix":
                server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)  # inherited
            try:
                yield server
            finally:
                self.conversation.gate.open()
                await server.close(0)
                for client in self.clients:
                    client.close()
        tally(server)

    # -- clients

    async def dial(self, server: Server) -> Client:
        """Connect, and say nothing."""
        address = server.addresses[0]
        sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM // 8)
        await asyncio.get_running_loop().sock_connect(sock, address)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is sent is there, see tcp(7)
        client = TLSClient(sock, self.client_context) if self.way.wire == "tls" else Client(sock)
        self.clients.append(client)
        return client

    def begin(self, client: Client, question: bytes = b"", *, half: bool = False) -> None:
        """Send what can be sent without waiting for an answer: header, then ClientHello or the question.

        Args:
            client: one that has dialled.
            question: what it wants to know.
            half: only the first bytes, less than a header or a ClientHello has.
        """
        data = LINE if self.way.proxied else b""
        if isinstance(client, TLSClient):
            with contextlib.suppress(ssl.SSLWantReadError):
                client.tls.do_handshake()
            data += client._outgoing.read()
        else:
            data += question
        now = data[:20] if half else data
        self.unsent = data[len(now) :]
        if now:
            assert client.sock.send(now) == len(now)

    async def go_on(self, client: Client, question: bytes = b"") -> None:
        """Send the rest."""
        if self.unsent:
            await asyncio.get_running_loop().sock_sendall(client.sock, self.unsent)
        if isinstance(client, TLSClient):
            await client.handshake()
            if question:
                await client.send(question)

    async def connect(self, server: Server) -> Client:
        """Connect a client whose introduction is complete, and whose handler has it."""
        number = self.conversation.begun + 1
        client = await self.dial(server)
        self.begin(client)
        await self.go_on(client)
        await until(lambda: self.conversation.begun == number)
        return client

    async def received(self, server: Server, nbytes: int) -> None:
        """Wait until the handlers have so much; of those in threads nobody knows, and nothing depends on it."""
        if self.way.style != "hosted":
            await until(lambda: server.stats().bytes_received == nbytes)

    @staticmethod
    async def turns() -> None:
        """Let happen what happens without time."""
        for _ in range(20):
            await asyncio.sleep(0)

    # -- the end

    async def drain(self, server: Server) -> asyncio.Task[DrainReport]:
        """Begin to close; returns when all have been told."""
        closing = asyncio.create_task(server.close())
        await until(lambda: not server.sockets)
        return closing

    async def waiting(self, number: int = 1) -> None:
        """Wait until so many handlers wait for the gate."""
        await until(lambda: self.conversation.gate.waiting == number)

    @staticmethod
    async def hear_out(client: Client, pause: float = 0.0, piece: int = 65536) -> tuple[bytes, str]:
        """Receive to the end; returns what came, in brief, and how it ended.

        Args:
            client: it is closed then.
            pause: seconds that this reader takes for each piece.
            piece: bytes of a piece at most.
        """
        data, end = bytearray(), CLEAN
        try:
            while chunk := await client.receive(piece):
                data += chunk
                if pause:
                    await asyncio.sleep(pause)
        except ssl.SSLEOFError:
            end = CUT
        except ConnectionError:
            end = RESET
        client.close()
        return brief(bytes(data)), end

    @staticmethod
    async def hear_plainly(client: Client) -> None:
        """Wait for the end, whatever comes before it, and close."""
        with contextlib.suppress(ConnectionError):
            while await Client.receive(client):
                pass
        client.close()

    async def ends(self, closing: asyncio.Task[DrainReport], *clients: Client) -> tuple[DrainReport, list[Any]]:
        """See the drain end soon, and what all clients hear until then."""
        hearing = asyncio.gather(*map(self.hear_out, clients))
        return await within(closing, SOON), await hearing


@contextlib.contextmanager
def short_silence() -> Iterator[None]:
    """Wait for the first words of a newcomer for less than half a second, where none will come."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncserver.net.socket_info._FIRST_WORDS", 0.1)
        yield


@contextlib.contextmanager
def short_pause() -> Iterator[None]:
    """Wait for the next write of a protocol for less than a second, where it writes no more by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncserver.adapters.protocol_connection._PAUSE", 0.1)
        yield


@contextlib.contextmanager
def short_linger() -> Iterator[None]:
    """Look more often whether a peer takes its last bytes; one that takes nothing for 2.5 seconds is let go."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("asyncserver.connections.lingering", "compat.hosting.lingering"):
            patch.setattr(f"{module}._PATIENCE", 0.5)
        patch.setattr("asyncserver.adapters.protocol_connection._CLOSE_TIMEOUT", 0.5)
        yield


def tally(server: Server) -> dict[str, int]:
    """What has become of the connections, as far as it is not nothing; fails when that does not account for all."""
    stats = server.stats()
    counts = {name: count for name in _OUTCOMES if (count := getattr(stats, name))}
    assert stats.accepted == sum(counts.values()), stats
    return counts


async def comes_to(server: Server, **counts: int) -> None:
    """Wait until that has become of the connections."""
    with contextlib.suppress(TimeoutError):
        await until(lambda: all(getattr(server.stats(), name) == counts.get(name, 0) for name in _OUTCOMES), SOON)
    assert tally(server) == counts
