"""A forwarder that ends TLS: clients speak TLS, and a server behind it plain TCP.

Needs a certificate in chain.pem and its key in key.pem. Try it, with a server on port 7001:
openssl s_client -quiet -connect 127.0.0.1:7000
"""

import asyncio
import logging

import anyio

import asyncserver

UPSTREAM = "127.0.0.1", 7001

log = logging.getLogger("forwarder")


async def pump(source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream) -> None:
    """Pass on bytes as fast as the slower side takes them, then the end of the stream."""
    async for data in source:
        await sink.send(data)
    await sink.send_eof()  # the other direction may go on


async def forward(stream: asyncserver.Stream) -> None:
    """Connect one client with the server, until both have ended."""
    try:
        async with asyncio.timeout(5):
            upstream = await anyio.connect_tcp(*UPSTREAM)
    except OSError as error:  # TimeoutError is one, too
        log.warning("no upstream for %s: %s", stream.peer_address, error)
        stream.abort()  # a reset: a polite end would look like an empty answer
        return
    try:
        async with upstream, asyncio.TaskGroup() as group:
            group.create_task(pump(stream, upstream))
            group.create_task(pump(upstream, stream))
    except BaseException:  # one side broke, or both were silent, or the drain is over
        stream.abort()  # nor is half an answer a whole one
        raise


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    asyncserver.run(
        asyncserver.serve(
            forward,
            "127.0.0.1",
            7000,
            ssl=asyncserver.tls_context("chain.pem", "key.pem"),  # SIGHUP reads them again
            max_connections=10_000,
            idle_timeout=600,
            keepalive=60,
        )
    )
