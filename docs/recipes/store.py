r"""A cache that speaks a part of memcached's protocol: get, set, delete, quit.

Try it: printf 'set hello 0 0 5\r\nworld\r\nget hello\r\nquit\r\n' | nc 127.0.0.1 11211
"""

import logging
from collections import OrderedDict

import asyncserver

MAX_VALUE = 16 * 1024  # bytes
MAX_VALUES = 10_000  # so about 160 MiB at most; for more, those go that were not used for longest

cache: OrderedDict[bytes, tuple[bytes, bytes]] = OrderedDict()  # flags and values by their keys


async def get(stream: asyncserver.Stream, keys: list[bytes]) -> None:
    """Send what there is, one by one: a client that does not read holds up only one of them."""
    for key in keys:
        if key in cache:
            cache.move_to_end(key)
            flags, value = cache[key]
            await stream.send(b"VALUE %b %b %d\r\n%b\r\n" % (key, flags, len(value), value))
    await stream.send(b"END\r\n")


def fits(key: bytes, flags: bytes, size: bytes) -> bool:
    """Whether there is room for such a value."""
    return len(key) <= 250 and len(flags) <= 10 and size.isdigit() and int(size) <= MAX_VALUE


async def serve_client(stream: asyncserver.Stream) -> None:
    """Answer commands: https://github.com/memcached/memcached/blob/master/doc/protocol.txt."""
    while True:
        match (await stream.receive_until(b"\n", max_bytes=2048)).split():
            case [b"get", *keys] if keys:
                await get(stream, keys)
            case [b"set", key, flags, b"0", size] if fits(key, flags, size):
                value = await stream.receive_exactly(int(size) + 2)
                if not value.endswith(b"\r\n"):
                    return await stream.send(b"CLIENT_ERROR bad data chunk\r\n")
                cache[key] = flags, value[:-2]
                cache.move_to_end(key)
                if len(cache) > MAX_VALUES:
                    cache.popitem(last=False)
                await stream.send(b"STORED\r\n")
            case [b"set", *_]:  # what follows is a value, and would be taken for commands
                return await stream.send(b"SERVER_ERROR too large, or an option that is not served here\r\n")
            case [b"delete", key]:
                await stream.send(b"NOT_FOUND\r\n" if cache.pop(key, None) is None else b"DELETED\r\n")
            case [b"quit"]:
                return None
            case _:
                await stream.send(b"ERROR\r\n")


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    asyncserver.run(asyncserver.serve(serve_client, "127.0.0.1", 11211, max_connections=1000, idle_timeout=300))
