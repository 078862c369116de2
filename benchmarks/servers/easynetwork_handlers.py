"""EasyNetwork's asynchronous servers on either loop, with a serializer that takes bytes as they come."""

from collections.abc import AsyncGenerator, Generator
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any

from easynetwork.protocol import BufferedStreamProtocol, DatagramProtocol
from easynetwork.serializers.abc import BufferedIncrementalPacketSerializer
from easynetwork.servers import AsyncTCPNetworkServer, AsyncUDPNetworkServer
from easynetwork.servers.async_unix_stream import AsyncUnixStreamServer
from easynetwork.servers.handlers import AsyncDatagramRequestHandler, AsyncStreamRequestHandler

from benchmarks.servers.contract import (
    BACKLOG,
    DATAGRAM_BUFFER,
    HOST,
    MAX_READ,
    arguments,
    ready,
    run_on_loop,
    tls_context,
)


class AnyBytes(BufferedIncrementalPacketSerializer[bytes, bytes, bytearray]):
    def serialize(self, packet: bytes) -> bytes:
        return packet

    def deserialize(self, data: bytes) -> bytes:
        return data

    def incremental_serialize(self, packet: bytes) -> Generator[bytes]:
        yield packet

    def incremental_deserialize(self) -> Generator[None, bytes, tuple[bytes, bytes]]:
        data = yield
        return data, b""

    def create_deserializer_buffer(self, _sizehint: int) -> bytearray:
        return bytearray(MAX_READ)

    def buffered_incremental_deserialize(self, buffer: bytearray) -> Generator[None, int, tuple[bytes, bytes]]:
        length = yield
        return bytes(memoryview(buffer)[:length]), b""


class Echo(AsyncStreamRequestHandler[bytes, bytes]):
    async def handle(self, client: Any) -> AsyncGenerator[None, bytes]:
        while True:
            data = yield
            await client.send_packet(data)


class DatagramEcho(AsyncDatagramRequestHandler[bytes, bytes]):
    async def handle(self, client: Any) -> AsyncGenerator[None, bytes]:
        data = yield
        await client.send_packet(data)


class Announcement:
    """Prints the address when the server says that it is up."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def set(self) -> None:
        if options.kind == "unix":
            ready(options.path)
            return
        if options.kind == "udp":
            for sock in self._server.get_sockets():
                sock.setsockopt(SOL_SOCKET, SO_RCVBUF, DATAGRAM_BUFFER)
        address = self._server.get_addresses()[0]
        ready((address.host, address.port))


def server() -> Any:
    if options.kind == "udp":
        return AsyncUDPNetworkServer(HOST, 0, DatagramProtocol(AnyBytes()), DatagramEcho())
    protocol = BufferedStreamProtocol(AnyBytes())
    if options.kind == "unix":
        return AsyncUnixStreamServer(options.path, protocol, Echo(), backlog=BACKLOG)
    context = tls_context(options)
    return AsyncTCPNetworkServer(
        HOST,
        0,
        protocol,
        Echo(),
        backlog=BACKLOG,
        ssl=context,
        ssl_standard_compatible=False if context else None,
    )


async def main() -> None:
    async with server() as running:
        await running.serve_forever(is_up_event=Announcement(running))


if __name__ == "__main__":
    options = arguments()
    run_on_loop(options, main)
