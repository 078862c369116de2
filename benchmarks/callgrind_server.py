"""The server whose instructions the guard counts; instructions.py runs it under callgrind.

    python -m benchmarks.callgrind_server asyncio|uvloop

It prints a line of JSON with its addresses and whether the compiled extension is in use, and then one for each byte on
its standard input, which is a mark: callgrind writes down what it has counted since the last one. It ends with its
input.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time

import asyncserver
from benchmarks.counting import runner


async def echo(stream: asyncserver.Stream) -> None:
    """What a program has: nothing in it is there for the count."""
    async for data in stream:
        await stream.send(data)


async def echo_datagram(datagram: asyncserver.Datagram) -> bytes:
    """The same for datagrams."""
    return datagram.data


async def main() -> None:
    """Serve until the input ends."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def mark() -> None:
        if not os.read(0, 1):
            loop.remove_reader(0)
            ended.set()
            return
        time.tzset()  # calls the function of this name in libc, which nothing else here does: see instructions.py
        print("{}", flush=True)

    loop.add_reader(0, mark)
    streams = asyncserver.serve(echo, "127.0.0.1", 0)
    datagrams = asyncserver.serve_datagrams(echo_datagram, "127.0.0.1", 0)
    async with streams as tcp, datagrams as udp:
        ready = {"tcp": tcp.addresses[0], "udp": udp.addresses[0], "accelerated": asyncserver.accelerated}
        print(json.dumps(ready), flush=True)
        await ended.wait()


if __name__ == "__main__":
    gc.disable()  # when it runs depends on what was there before, and a run looks at all of it
    with runner(sys.argv[1]) as running:
        running.run(main())
