"""A ticker: whoever connects gets the load of this machine, now and each second.

Try it: nc 127.0.0.1 7000
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator

import asyncserver

EVERY = 1.0  # seconds


def now() -> bytes:
    """Measure what is told."""
    return b"%.2f %.2f %.2f\n" % os.getloadavg()


async def tick(server: asyncserver.Server) -> None:
    """Tell all who listen; `broadcast()` waits for nobody."""
    while True:
        await asyncio.sleep(EVERY)
        server.broadcast(now())


async def listen(stream: asyncserver.Stream) -> None:
    """Hold a connection until its client leaves, or the server drains; throw away what it sends."""
    stream.post(now())
    async for _ in stream:
        stream.end_message()  # it gets no answer: a drain need not wait for one


@contextlib.asynccontextmanager
async def ticking(servers: tuple[asyncserver.Server, ...]) -> AsyncIterator[None]:
    """Tick while the server serves, and while it drains. If `tick()` fails, the program ends."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(tick(servers[0]))
        yield
        task.cancel()


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    asyncserver.run(
        asyncserver.serve(listen, "127.0.0.1", 7000, max_connections=10_000, max_unsent=16 * 1024, keepalive=60),
        lifespan=ticking,
    )
