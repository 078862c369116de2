"""A syslog receiver: UDP (RFC 5426), TCP (RFC 6587), and a Unix socket like /dev/log.

Try it: logger --server 127.0.0.1 --port 5140 --udp hello; logger --socket syslog.sock hello
"""

import logging
import re

import asyncserver

MAX_MESSAGE = 8192  # bytes; RFC 5424, 6.1, asks for 2,048
MAX_FRAME = MAX_MESSAGE + len("8192 ")
SEVERITIES = ["emergency", "alert", "critical", "error", "warning", "notice", "info", "debug"]
# Of both forms, RFC 5424's `<PRI>1 TIME HOST APP ...` and the older `<PRI>TIME HOST APP: ...`.
MESSAGE = re.compile(rb"<(\d{1,3})>(?:1 )?(.*)", re.DOTALL)
# A length, or a message up to a line feed or, as Python's SysLogHandler sends it, a zero byte.
FRAME = re.compile(rb"(\d{1,4}) |([^\d\n\0][^\n\0]{,%d})[\n\0]" % MAX_MESSAGE)
BEGUN = re.compile(rb"\d{1,4}( .*)?|\D.{,%d}" % MAX_MESSAGE, re.DOTALL)


def take(message: bytes, peer: object) -> None:
    """Print one message, on one line whatever is in it: it comes from anywhere."""
    found = MESSAGE.match(message)
    priority, text = (int(found[1]), found[2]) if found else (256, message)
    if priority > 191:
        priority, text = 13, message  # user.notice: RFC 3164, 4.3.3
    shown = text.rstrip(b"\r\n\0").decode(errors="backslashreplace")
    words = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in shown)
    host = peer[0] if isinstance(peer, tuple) else "here"
    print(f"{host} {priority >> 3}.{SEVERITIES[priority & 7]}: {words}", flush=True)


async def receive_datagram(datagram: asyncserver.Datagram) -> None:
    """Take one message; nothing is sent back."""
    take(datagram.data, datagram.address)


async def receive_stream(stream: asyncserver.Stream) -> None:
    """Take messages behind their length, or each up to its end: RFC 6587, 3.4.1 and 3.4.2."""
    held = b""
    async for data in stream:
        held = (held + data).lstrip(b"\n\0")
        while (frame := FRAME.match(held)) and (end := frame.end() + int(frame[1] or 0)) <= min(len(held), MAX_FRAME):
            take(frame[2] or held[frame.end() : end], stream.peer_address)
            held = held[end:].lstrip(b"\n\0")
        if not held:
            stream.end_message()  # it gets no answer: a drain need not wait for one
        elif (frame and end > MAX_FRAME) or not BEGUN.fullmatch(held):
            return  # where the next one begins cannot be known


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    asyncserver.run(
        asyncserver.serve_datagrams(receive_datagram, "127.0.0.1", 5140, max_datagram_size=MAX_MESSAGE),
        asyncserver.serve_datagrams(receive_datagram, path="syslog.sock", path_mode=0o666),
        asyncserver.serve(receive_stream, "127.0.0.1", 5140, max_connections_per_host=100, keepalive=60),
    )
