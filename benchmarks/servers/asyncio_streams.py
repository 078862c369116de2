"""`asyncio.start_server` with its reader and writer, on either loop."""

import asyncio

from benchmarks.servers.contract import MAX_READ, arguments, listening_socket, ready, run_on_loop, tls_context


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(MAX_READ):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main() -> None:
    sock = listening_socket(options)
    if options.kind == "unix":
        server = await asyncio.start_unix_server(echo, sock=sock)
    else:
        server = await asyncio.start_server(echo, sock=sock, ssl=tls_context(options), backlog=4096)
    ready(options.path if options.kind == "unix" else sock)
    await server.serve_forever()


if __name__ == "__main__":
    options = arguments()
    run_on_loop(options, main)
