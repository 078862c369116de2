"""Proxies' headers: headers, a question behind one, and who is seen."""

from __future__ import annotations

import socket
import struct
from typing import Any

import asyncserver
from asyncserver import Server, Stream
from tests.kit.clients import Client
from tests.kit.handlers import UpperProtocol

LINE = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
CLIENT = ("192.0.2.1", 56324)
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
INET = socket.inet_aton(CLIENT[0]) + socket.inet_aton("198.51.100.2") + struct.pack("!HH", CLIENT[1], 443)
BINARY = SIGNATURE + b"\x21\x11" + struct.pack("!H", len(INET) + 8) + INET + b"\xe1\0\5hello"


async def tell(stream: Stream) -> None:
    """Answer the first bytes with the client's address and those bytes."""
    data = await stream.receive()
    await stream.send(repr(stream.peer_address).encode() + b" " + data)


async def ask(server: Server, data: bytes) -> bytes:
    """Send all at once, then read to the end; a reset is no answer."""
    async with Client.connect(server.addresses[0]) as client:
        await client.send(data)
        return await client.rest()


def proxied(handler: Any, **options: Any) -> asyncserver.Serving:
    return asyncserver.serve(handler, "127.0.0.1", 0, proxy_protocol=True, **options)


class Telling(UpperProtocol):
    """An existing protocol that answers as `tell` does."""

    def data_received(self, data: bytes) -> None:
        assert self.transport.get_extra_info("proxy_header").version in {1, 2}
        self.transport.write(repr(self.transport.get_extra_info("peername")).encode() + b" " + data)
        self.transport.close()


KINDS = [tell, asyncserver.from_protocol(Telling)]


def binary(block: bytes, family: int = 0x12, command: int = 0x21) -> bytes:
    """A header of version 2."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


def inet(host: str, port: int) -> bytes:
    """The header of a client's datagram."""
    return binary(socket.inet_aton(host) + socket.inet_aton("198.51.100.2") + struct.pack("!HH", port, 53))


LOCAL = binary(b"", family=0, command=0x20)  # as of a health check
