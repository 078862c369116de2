"""A name server for two names, over UDP and TCP (RFC 1035).

Try it: dig @127.0.0.1 -p 5300 www.example.com, and again with +tcp
"""

import ipaddress
import logging
import struct

import asyncserver

NAMES = {b"www.example.com": "192.0.2.80", b"mail.example.com": "192.0.2.25"}


def answer(query: bytes) -> bytes | None:
    """Answer a question; None if it is none: two servers could answer each other for ever."""
    try:
        number, flags, questions = struct.unpack_from("!HHH", query)
        labels, at = [], 12
        while length := query[at]:  # 4.1.2
            labels.append(query[at + 1 : at + 1 + length])
            at += 1 + length
        kind, _ = struct.unpack_from("!HH", query, at + 1)
    except (IndexError, struct.error):
        return None
    if flags & 0xF800 or questions != 1:  # an answer, or no standard query: 4.1.1
        return None
    found = NAMES.get(b".".join(labels).lower())
    record = b""
    if found and kind == 1:  # A
        record = struct.pack("!3HIH", 0xC00C, 1, 1, 300, 4) + ipaddress.ip_address(found).packed
    flags = 0x8400 | flags & 0x0100 | (0 if found else 3)  # an answer, ours; 3: there is no such name
    return struct.pack("!6H", number, flags, 1, int(bool(record)), 0, 0) + query[12 : at + 5] + record


async def handler(source: asyncserver.Stream | asyncserver.Datagram) -> bytes | None:
    """Answer a datagram, or what comes over a connection."""
    if isinstance(source, asyncserver.Datagram):
        return answer(source.data)
    while True:  # each message comes behind its length: 4.2.2
        length = int.from_bytes(await source.receive_exactly(2), "big")
        message = answer(await source.receive_exactly(length))
        if message is None:
            return None
        await source.send(len(message).to_bytes(2, "big") + message)


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    asyncserver.run(
        asyncserver.serve_datagrams(handler, "127.0.0.1", 5300),
        asyncserver.serve(handler, "127.0.0.1", 5300, max_connections_per_host=100, idle_timeout=10),
    )
