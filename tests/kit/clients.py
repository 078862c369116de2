"""Clients on the loop's own sockets, which behave as badly as a test likes; and one that blocks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from asyncserver import Address
from tests.kit.certificates import client_context
from tests.kit.sockets import connect, family_of, receive_exactly, reset
from tests.kit.waiting import PATIENCE

T = TypeVar("T")


class Connecting:
    """A client that is going to connect: `await` gives it, `async with` closes it in the end."""

    def __init__(self, connect: Coroutine[Any, Any, Client]) -> None:
        self._connect = connect

    def __await__(self) -> Generator[Any, Any, Client]:
        return self._connect.__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._connect
        return self._client

    async def __aexit__(self, *_: object) -> None:
        self._client.close()


class Client:
    """A client that a test can make behave as badly as it likes. Nothing is read unless asked for."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()

    @classmethod
    def connect(cls, address: Any, context: ssl.SSLContext | None = None, host: str | None = None) -> Connecting:
        """Connect to an address, from a host of our own if given; with a context, go through the TLS handshake."""
        return Connecting(cls._connect(address, context, host))

    @staticmethod
    async def _connect(address: Any, context: ssl.SSLContext | None, host: str | None) -> Client:
        sock = await open_socket(address, host)
        if context is None:
            return Client(sock)
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

    async def rest(self) -> bytes:
        """Receive until the stream ends or breaks."""
        data = bytearray()
        with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
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
        reset(self.sock)

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


async def open_socket(address: Address, host: str | None = None, receive_buffer: int | None = None) -> socket.socket:
    """Connect a non-blocking socket, whose kernel keeps about so many bytes unread, to a server's address."""
    sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    try:
        if host is not None:
            sock.bind((host, 0))
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


class BlockingClient:
    """A client with a blocking socket: what it does in the loop's thread is done before the server can look.

    Whatever needs the server's answer runs in a thread instead.
    """

    def __init__(self, kind: str, address: Any) -> None:
        self.kind = kind
        self.sock = connect(address)

    def handshake(self) -> None:
        if self.kind == "tls":
            self.sock = client_context().wrap_socket(self.sock, server_hostname="localhost")

    def receive_exactly(self, nbytes: int) -> bytes:
        return receive_exactly(self.sock, nbytes)

    def rest(self) -> bytes:
        """Receive until the server ends the connection, and leave."""
        data = b""
        while chunk := self.sock.recv(65536):
            data += chunk
        self.sock.close()
        return data

    def ask_now(self, question: bytes) -> asyncio.Task[bytes]:
        """Ask before the server can look, as far as that goes (TLS takes two); returns the answer, to its end."""
        if self.kind == "tls":
            return asyncio.create_task(asyncio.to_thread(self.ask_to_the_end, question))
        self.sock.sendall(question)
        return asyncio.create_task(asyncio.to_thread(self.rest))

    def ask_to_the_end(self, question: bytes) -> bytes:
        """Handshake, ask, and receive until the server ends the connection."""
        self.handshake()
        self.sock.sendall(question)
        return self.rest()
