import asyncio
import socket

import asyncserver


async def upper(stream: asyncserver.Stream) -> None:
    async for data in stream:
        await stream.send(data.upper())


async def test_echo() -> None:
    async with asyncserver.serve(upper, "127.0.0.1", 0) as server:
        host, port = server.addresses[0][:2]
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"hello")
        assert await reader.read(10) == b"HELLO"
        writer.close()
        await writer.wait_closed()
