"""asyncserver with coroutine handlers; `--variant protocol`: asyncio protocols through `from_protocol`."""

import asyncio
from typing import Any

import asyncserver
from benchmarks.servers.asyncio_protocol import DatagramEcho, Echo
from benchmarks.servers.contract import BACKLOG, BROADCAST, HOST, MAX_LINE, arguments, ready, run_on_loop, tls_context


async def echo(stream: asyncserver.Stream) -> None:
    async for data in stream:
        await stream.send(data)


async def echo_lines(stream: asyncserver.Stream) -> None:
    while True:
        line = await stream.receive_until(b"\n", MAX_LINE)
        await stream.send(line + b"\n")


servers: list[asyncserver.Server] = []


async def broadcast(stream: asyncserver.Stream) -> None:
    async for data in stream:
        if data.startswith(BROADCAST):
            servers[0].broadcast(data)
        else:
            await stream.send(data)


async def answer(datagram: asyncserver.Datagram) -> bytes:
    return datagram.data


def serving() -> Any:
    protocol = options.variant == "protocol"
    if options.kind == "udp":
        handler = asyncserver.from_protocol(DatagramEcho) if protocol else answer
        return asyncserver.serve_datagrams(handler, HOST, options.port)
    handlers: dict[str, Any] = {
        "protocol": asyncserver.from_protocol(Echo),
        "lines": echo_lines,
        "broadcast": broadcast,
    }
    stream_handler = handlers.get(options.variant or options.kind, echo)
    if options.kind == "unix":
        return asyncserver.serve(stream_handler, path=options.path, backlog=BACKLOG)
    return asyncserver.serve(
        stream_handler,
        HOST,
        options.port,
        backlog=BACKLOG,
        ssl=tls_context(options),
        reuse_port=options.workers > 1,
    )


async def main() -> None:
    async with serving() as server:
        servers.append(server)
        ready(server.addresses[0])
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    options = arguments()
    if options.workers > 1:
        ready((HOST, options.port))
        asyncserver.run(serving(), loop=options.loop, workers=options.workers)
    else:
        run_on_loop(options, main)
