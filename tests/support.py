"""What the tests share: a client for each transport, both ends of a connection, the ways to interrupt."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio

import asyncserver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from asyncserver import Address, ProtocolHandler, Server, Serving, Stream, StreamHandler

T = TypeVar("T")
Interrupt: TypeAlias = "Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]"

#: Longer than anything here takes on a busy machine; a test that waits so long has failed.
PATIENCE = 20.0


class Client:
    """A client that a test can make behave as badly as it likes. Nothing is read unless asked for."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, address: Address, context: ssl.SSLContext | None = None) -> Client:
        """Connect to a server's address; with a context, go through the TLS handshake."""
        sock = await open_socket(address)
        if context is None:
            return cls(sock)
        client = TLSClient(sock, context)
        try:
            await client.handshake()
        except BaseException:
            sock.close()
            raise
        return client

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await self.loop.sock_sendall(self.sock, data)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive some bytes, b"" at the end of the stream."""
        async with asyncio.timeout(PATIENCE):
            return await self.loop.sock_recv(self.sock, max_bytes)

    async def receive_exactly(self, nbytes: int) -> bytes:
        """Receive so many bytes; fewer only if the stream ends."""
        data = bytearray()
        while len(data) < nbytes and (chunk := await self.receive(nbytes - len(data))):
            data += chunk
        return bytes(data)

    async def receive_all(self) -> bytes:
        """Receive until the stream ends."""
        data = bytearray()
        while chunk := await self.receive():
            data += chunk
        return bytes(data)

    async def ask(self, question: bytes) -> bytes:
        """Send, and receive an answer that is as long."""
        await self.send(question)
        return await self.receive_exactly(len(question))

    async def send_eof(self) -> None:
        """End our side."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Break the connection: a TCP reset; of a Unix socket the same when it had unread bytes."""
        if self.sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close without a word; under TLS without close_notify."""
        self.sock.close()


class TLSClient(Client):
    """OpenSSL over memory, so that close_notify, truncation and reset can each be had on its own."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._flushing = asyncio.Lock()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    async def handshake(self) -> None:
        """Go through the handshake."""
        await self._advance(self.tls.do_handshake)

    async def send(self, data: bytes) -> None:
        with memoryview(data) as view:
            for start in range(0, len(view), 65536):
                with view[start : start + 65536] as piece:
                    self.tls.write(piece)
                await self._flush()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await self._advance(lambda: self.tls.read(max_bytes))
        except ssl.SSLZeroReturnError:  # both sides have sent close_notify
            return b""

    async def send_eof(self) -> None:
        """Send close_notify only; the TCP connection stays as it is."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        await self._flush()

    async def _advance(self, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await self._flush()
                async with asyncio.timeout(PATIENCE):
                    data = await self.loop.sock_recv(self.sock, 65536)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            finally:
                await self._flush()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            async with self._flushing:
                await self.loop.sock_sendall(self.sock, self._outgoing.read())


async def open_socket(address: Address) -> socket.socket:
    """Connect a non-blocking socket to a server's address."""
    family = socket.AF_UNIX
    if isinstance(address, tuple):
        family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


@dataclass
class Transport:
    """One way to carry a connection: "tcp", "unix" or "tls"."""

    name: str
    directory: Path
    server_context: ssl.SSLContext
    client_context: ssl.SSLContext
    _servers: int = field(default=0, init=False)

    @property
    def tls(self) -> bool:
        """Whether it is TLS."""
        return self.name == "tls"

    def serve(self, handler: StreamHandler | ProtocolHandler, **options: Any) -> Serving:
        """Serve on this transport, at an address of its own."""
        options.setdefault("drain_timeout", 2.0)
        if self.name == "unix":
            self._servers += 1
            return asyncserver.serve(handler, path=self.directory / f"{self._servers}.sock", **options)
        if self.tls:
            options.setdefault("ssl", self.server_context)
        return asyncserver.serve(handler, "127.0.0.1", 0, **options)

    async def connect(self, server: Server) -> Client:
        """Connect a client, under TLS with its handshake done."""
        return await Client.connect(server.addresses[0], self.client_context if self.tls else None)

    @contextlib.asynccontextmanager
    async def pair(self, **options: Any) -> AsyncIterator[tuple[Stream, Client]]:
        """Both ends of one connection: the server's stream, whose handler does nothing, and a client."""
        streams: asyncio.Queue[Stream] = asyncio.Queue()
        released = asyncio.Event()

        async def hold(stream: Stream) -> None:
            streams.put_nowait(stream)
            await released.wait()

        async with self.serve(hold, **options) as server:
            client = await self.connect(server)
            try:
                yield await within(streams.get()), client
            finally:
                released.set()
                client.close()


async def within(awaitable: Awaitable[T], seconds: float = PATIENCE) -> T:
    """Await, but fail instead of hanging."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def eventually(reached: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait for what has no event of its own."""
    async with asyncio.timeout(seconds):
        while not reached():
            await asyncio.sleep(0.002)


async def blocked(operation: Awaitable[T]) -> asyncio.Task[T]:
    """Start an operation in a task, and come back when it waits."""

    async def run() -> T:
        return await operation

    task = asyncio.get_running_loop().create_task(run())
    for _ in range(10_000):
        await asyncio.sleep(0)  # not there yet: its first steps, or a pause for others
        if task.done() or task._fut_waiter is not None:  # type: ignore[attr-defined]
            break
    assert not task.done(), f"expected to wait, but it ended: {task!r}"
    return task


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


# -- ways to interrupt an operation that waits: each starts it, interrupts it, and returns when it has ended


async def _by_cancel(operation: Callable[[], Awaitable[object]]) -> None:
    task = await blocked(operation())
    assert task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await within(task)
    assert task.cancelled()


async def _by_cancelling_twice(operation: Callable[[], Awaitable[object]]) -> None:
    task = await blocked(operation())
    assert task.cancel()
    assert task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await within(task)
    assert task.cancelled()
    assert task.cancelling() == 2


async def _by_timeout(operation: Callable[[], Awaitable[object]]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.02) as scope:
            await operation()
    assert scope.expired()


async def _by_wait_for(operation: Callable[[], Awaitable[object]]) -> None:
    try:
        await asyncio.wait_for(operation(), 0.02)
    except TimeoutError:
        return
    raise AssertionError("expected to time out")


async def _by_move_on_after(operation: Callable[[], Awaitable[object]]) -> None:
    with anyio.move_on_after(0.02) as scope:
        await operation()
    assert scope.cancelled_caught


async def _by_fail_after(operation: Callable[[], Awaitable[object]]) -> None:
    try:
        with anyio.fail_after(0.02):
            await operation()
    except TimeoutError:
        return
    raise AssertionError("expected to time out")


async def _by_cancel_scope(operation: Callable[[], Awaitable[object]]) -> None:
    async def run() -> None:
        with scope:
            await operation()

    scope = anyio.CancelScope()
    task = await blocked(run())
    scope.cancel()
    await within(task)
    assert scope.cancelled_caught


INTERRUPTIONS: dict[str, Interrupt] = {
    "cancel": _by_cancel,
    "cancel-twice": _by_cancelling_twice,
    "asyncio.timeout": _by_timeout,
    "asyncio.wait_for": _by_wait_for,
    "anyio.move_on_after": _by_move_on_after,
    "anyio.fail_after": _by_fail_after,
    "anyio.CancelScope": _by_cancel_scope,
}
