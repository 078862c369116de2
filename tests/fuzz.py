"""`python -m tests.fuzz [seconds]`: coverage-guided fuzzing of the byte parsers, with atheris (not in the environments
of the tests: it is for Python 3.11 to 3.13 as its wheels come). Ends with an error at the first exception that is not
documented, or when a header reads otherwise in pieces than whole.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from typing import Any

from asyncserver.cli import values
from asyncserver.datagrams.proxied import read_header
from asyncserver.exceptions import HeaderError
from asyncserver.proxy.proxy_protocol import HeaderParser


def parse(pieces: list[bytes]) -> tuple[object, int]:
    """What a header says, or that it is none, and how many bytes belong to it."""
    parser, taken = HeaderParser(), 0
    rest = b"".join(pieces)
    for piece in pieces:
        ahead = piece
        while ahead and parser.header is None:
            try:
                belonging = parser.belonging(ahead[: parser.wanted])
                parser.feed(ahead[:belonging])
            except HeaderError:
                return "no header", 0
            taken += belonging
            ahead = ahead[belonging:]
    assert taken <= len(rest)
    return parser.header, taken


def one_input(data: bytes) -> None:
    """Whole, byte by byte and in a datagram it is the same header; an address is an address or a usage error."""
    whole = parse([data])
    with contextlib.suppress(HeaderError):
        assert read_header(data) == whole
    assert parse([data[index : index + 1] for index in range(len(data))]) == whole
    with contextlib.suppress(argparse.ArgumentTypeError):
        values.address(data.decode("latin-1"))


def main(seconds: int) -> None:
    """Fuzz for so many seconds."""
    atheris: Any = importlib.import_module("atheris")
    atheris.instrument_all()
    arguments = [sys.argv[0], f"-max_total_time={seconds}", "-max_len=600", "-print_final_stats=1"]
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
