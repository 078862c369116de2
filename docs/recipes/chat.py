"""A chat: give a name, then say something. `/who` tells who is here, `/quit` leaves.

Try it from two terminals: nc 127.0.0.1 7000
"""

import asyncio
import logging

import asyncserver

members: dict[str, asyncserver.Stream] = {}


async def read_line(stream: asyncserver.Stream) -> str:
    """Read what somebody typed, without what would steer the terminals of others."""
    line = await stream.receive_until(b"\n", max_bytes=500)
    return "".join(sign for sign in line.decode(errors="replace") if sign.isprintable()).strip()


def tell_all(words: str, but: str = "") -> None:
    """Post to all: whoever reads too slowly delays nobody, and is cut off at `max_unsent`."""
    for name, member in members.items():
        if name != but:
            member.post(words.encode() + b"\n")


async def ask_name(stream: asyncserver.Stream) -> str:
    """Ask until we get a name that nobody has."""
    await stream.send(b"Your name? ")
    async with asyncio.timeout(60):
        while not (name := await read_line(stream)).isalnum() or len(name) > 20 or name in members:
            await stream.send(b"Letters and digits, please, and a name that is free: ")
    return name


async def chat(stream: asyncserver.Stream) -> None:
    """Serve one member, from the name until they leave: by /quit, or without a word."""
    name = await ask_name(stream)
    members[name] = stream
    tell_all(f"* {name} is here")
    try:
        while (words := await read_line(stream)) != "/quit":
            if words == "/who":
                stream.post(" ".join(members).encode() + b"\n")
            elif words:
                tell_all(f"{name}: {words}", but=name)
            stream.end_message()  # it gets no answer: a drain need not wait for one
            await asyncio.sleep(0.05)  # twenty lines a second: TCP slows down whoever sends more
    finally:
        del members[name]
        tell_all(f"* {name} has left")


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    asyncserver.run(
        asyncserver.serve(chat, "127.0.0.1", 7000, max_connections_per_host=20, max_unsent=64 * 1024, keepalive=60)
    )
