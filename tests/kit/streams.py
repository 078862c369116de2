"""Each way to receive, and what is received to the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from asyncserver import Stream

RECEIVES: dict[str, Callable[[Stream], Callable[[], Awaitable[bytes]]]] = {
    "receive": lambda stream: stream.receive,
    "receive_exactly": lambda stream: lambda: stream.receive_exactly(10),
    "receive_until": lambda stream: lambda: stream.receive_until(b";", 100),
    "async for": lambda stream: stream.__anext__,
}


async def rest(stream: Stream) -> bytes:
    return b"".join([data async for data in stream])


async def call(operation: Callable[[], Awaitable[bytes]]) -> bytes:
    return await operation()
