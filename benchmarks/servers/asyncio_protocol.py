"""`asyncio.Protocol` and `DatagramProtocol` on either loop: the least that Python can do per message.

`--variant buffered` takes `BufferedProtocol`, which receives into one buffer of its own; `--variant
aiofastnet` puts the same protocol on aiofastnet's compiled transports.
"""

import asyncio
from typing import Any

from benchmarks.servers.contract import (
    arguments,
    datagram_socket,
    listening_socket,
    ready,
    run_on_loop,
    tls_context,
)


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    # A server that never pauses reading grows without bound when a peer does not read.
    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class BufferedEcho(asyncio.BufferedProtocol):
    buffer = memoryview(bytearray(256 * 1024))

    connection_made = Echo.connection_made
    pause_writing = Echo.pause_writing
    resume_writing = Echo.resume_writing

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


class DatagramEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


async def main() -> None:
    loop = asyncio.get_running_loop()
    if options.kind == "udp":
        sock = datagram_socket()
        transport, _ = await loop.create_datagram_endpoint(DatagramEcho, sock=sock)
        ready(transport.get_extra_info("sockname"))
        await loop.create_future()
    sock = listening_socket(options)
    ready(options.path if options.kind == "unix" else sock)
    context = tls_context(options)
    if options.variant == "aiofastnet":
        import aiofastnet  # noqa: PLC0415 - optional

        server = await aiofastnet.create_server(loop, Echo, sock=sock, ssl=context)
    elif options.kind == "unix":
        server = await loop.create_unix_server(protocol, sock=sock)
    else:
        server = await loop.create_server(protocol, sock=sock, ssl=context, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    options = arguments()
    protocol = BufferedEcho if options.variant == "buffered" else Echo
    run_on_loop(options, main)
