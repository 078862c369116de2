"""anyio's listeners on either loop."""

from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any

import anyio
from anyio.streams.tls import TLSListener

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


async def echo(stream: anyio.abc.ByteStream) -> None:
    async with stream:
        try:
            while True:
                await stream.send(await stream.receive(MAX_READ))
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass


async def serve_datagrams() -> None:
    async with await anyio.create_udp_socket(local_host=HOST) as udp:
        sock = udp.extra(anyio.abc.SocketAttribute.raw_socket)
        sock.setsockopt(SOL_SOCKET, SO_RCVBUF, DATAGRAM_BUFFER)
        ready(udp.extra(anyio.abc.SocketAttribute.local_address))
        async for data, address in udp:
            await udp.sendto(data, *address)


async def main() -> None:
    if options.kind == "udp":
        await serve_datagrams()
        return
    listener: Any
    if options.kind == "unix":
        listener = await anyio.create_unix_listener(options.path, backlog=BACKLOG)
        ready(options.path)
    else:
        listener = await anyio.create_tcp_listener(local_host=HOST, backlog=BACKLOG)
        ready(listener.extra(anyio.abc.SocketAttribute.local_address))
    if context := tls_context(options):
        listener = TLSListener(listener, context, standard_compatible=False)
    await listener.serve(echo)


if __name__ == "__main__":
    options = arguments()
    run_on_loop(options, main)
