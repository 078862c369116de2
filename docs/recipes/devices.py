"""A gateway for devices that keep a connection, and lose it without a word.

A device connects to port 7000 and says its name, then a reading a line; a line that begins with "="
answers a command. Whoever may use the Unix socket sends one: echo pump-7 stop | nc -U devices.sock
"""

import asyncio
import logging

import asyncserver

log = logging.getLogger("devices")
devices: dict[bytes, asyncserver.Stream] = {}  # by their names
owed: dict[asyncserver.Stream, list[asyncio.Future[bytes]]] = {}  # answers, the oldest first


async def serve_device(stream: asyncserver.Stream) -> None:
    """Take a device's readings and answers."""
    async with asyncio.timeout(10):
        name = (await stream.receive_until(b"\n", max_bytes=64)).strip()
    if before := devices.get(name):
        before.abort()  # the device is back before `keepalive` has missed it
    devices[name], answers = stream, owed.setdefault(stream, [])
    try:
        while True:
            stream.end_message()  # it gets no answer: a drain need not wait for one
            line = (await stream.receive_until(b"\n", max_bytes=1024)).strip()
            if not line.startswith(b"="):
                log.info("%s: %s", name, line)  # or into a database
            elif answers:
                answers.pop(0).set_result(line[1:])
    finally:
        if devices.get(name) is stream:
            del devices[name]
        for answer in owed.pop(stream):
            answer.cancel()


async def ask(stream: asyncserver.Stream, command: bytes) -> bytes:
    """Send a command to a device, and wait for its answer."""
    if len(owed[stream]) >= 10:
        return b"busy"
    owed[stream].append(answer := asyncio.get_running_loop().create_future())
    stream.post(command + b"\n")
    done, _ = await asyncio.wait([answer], timeout=5)
    return answer.result() if done and not answer.cancelled() else b"no answer"


async def serve_operator(stream: asyncserver.Stream) -> None:
    """Pass on commands, `NAME COMMAND` a line, and their answers."""
    while True:
        name, _, command = (await stream.receive_until(b"\n", max_bytes=1024)).strip().partition(b" ")
        await stream.send((await ask(devices[name], command) if name in devices else b"no such device") + b"\n")


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    on_network = asyncserver.serve(serve_device, "127.0.0.1", 7000, keepalive=15, max_connections_per_host=100)
    asyncserver.run(on_network, asyncserver.serve(serve_operator, path="devices.sock", path_mode=0o600))
