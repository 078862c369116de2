"""As much of DNS as a proxy between a client and our server needs."""

from __future__ import annotations

import struct

_HEADER = struct.Struct("!6H")


def question(number: int, name: str = "who.example") -> bytes:
    """A query for TXT."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return _HEADER.pack(number, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, 16, 1)


def answer(query: bytes, text: str) -> bytes:
    """An answer with one TXT, to any query of one question."""
    number, *_ = _HEADER.unpack_from(query)
    end = query.index(b"\0", _HEADER.size) + 5
    record = struct.pack("!HHHIHB", 0xC00C, 16, 1, 0, len(text) + 1, len(text))
    return _HEADER.pack(number, 0x8180, 1, 1, 0, 0) + query[_HEADER.size : end] + record + text.encode()


def number_of(message: bytes) -> int:
    """Its id."""
    number: int = _HEADER.unpack_from(message)[0]
    return number


def text_of(message: bytes) -> str:
    """The text in such an answer."""
    start = message.index(b"\xc0\x0c", _HEADER.size) + 12
    return message[start + 1 : start + 1 + message[start]].decode()
