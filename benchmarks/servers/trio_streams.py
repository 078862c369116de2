"""trio's listeners and sockets."""

import trio

from benchmarks.servers.contract import (
    BACKLOG,
    HOST,
    MAX_READ,
    arguments,
    datagram_socket,
    listening_socket,
    ready,
    tls_context,
)


async def echo(stream: trio.abc.Stream) -> None:
    async with stream:
        try:
            while data := await stream.receive_some(MAX_READ):
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass


async def serve_datagrams() -> None:
    udp = trio.socket.from_stdlib_socket(datagram_socket())
    ready(udp.getsockname())
    while True:
        data, address = await udp.recvfrom(MAX_READ)
        await udp.sendto(data, address)


async def main() -> None:
    if options.kind == "udp":
        await serve_datagrams()
        return
    if options.kind == "unix":
        sock = trio.socket.from_stdlib_socket(listening_socket(options))
        listeners = [trio.SocketListener(sock)]
        ready(options.path)
    else:
        listeners = await trio.open_tcp_listeners(options.port, host=HOST, backlog=BACKLOG)
        ready(listeners[0].socket.getsockname())
    if context := tls_context(options):
        listeners = [trio.SSLListener(each, context, https_compatible=True) for each in listeners]
    await trio.serve_listeners(echo, listeners)


if __name__ == "__main__":
    options = arguments()
    trio.run(main)
