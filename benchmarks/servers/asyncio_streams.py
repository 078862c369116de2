"""`asyncio.start_server` with its reader and writer, on either loop."""

import asyncio
from typing import Any

from benchmarks.servers.contract import (
    BROADCAST,
    MAX_LINE,
    MAX_READ,
    arguments,
    listening_socket,
    ready,
    run_on_loop,
    tls_context,
)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(MAX_READ):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def echo_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            line = await reader.readuntil(b"\n")
            writer.write(line)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


writers: dict[asyncio.StreamWriter, None] = {}  # in the order in which they came


async def broadcast(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writers[writer] = None
    try:
        while data := await reader.read(MAX_READ):
            for each in writers if data.startswith(BROADCAST) else (writer,):
                each.write(data)
    finally:
        del writers[writer]
        writer.close()


async def main() -> None:
    sock = listening_socket(options)
    if options.kind == "unix":
        server = await asyncio.start_unix_server(echo, sock=sock)
    else:
        lines: Any = {"limit": MAX_LINE} if options.kind == "lines" else {}
        handler = {"lines": echo_lines, "broadcast": broadcast}.get(options.kind, echo)
        server = await asyncio.start_server(handler, sock=sock, ssl=tls_context(options), backlog=4096, **lines)
    ready(options.path if options.kind == "unix" else sock)
    await server.serve_forever()


if __name__ == "__main__":
    options = arguments()
    run_on_loop(options, main)
