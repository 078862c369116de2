"""`python -m tests.fuzz [seconds] [headers|streams]`: coverage-guided fuzzing with atheris (not in the environments of
the tests: it is for Python 3.11 to 3.13 as its wheels come).

`headers` are the byte parsers. Ends with an error at the first exception that is not documented, or when a header reads
otherwise in pieces than whole. `streams` receives bytes that come in pieces in every way, compiled if the extension is
there: each operation has to return what a simple model of it says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

import asyncserver
from asyncserver.cli import values
from asyncserver.datagrams.proxied import read_header
from asyncserver.exceptions import HeaderError
from asyncserver.proxy.proxy_protocol import HeaderParser

_DELIMITERS = (b"\0", b"\n", b"\r\n", b"abab")


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


def one_header(data: bytes) -> None:
    """Whole, byte by byte and in a datagram it is the same header; an address is an address or a usage error."""
    whole = parse([data])
    with contextlib.suppress(HeaderError):
        assert read_header(data) == whole
    assert parse([data[index : index + 1] for index in range(len(data))]) == whole
    with contextlib.suppress(argparse.ArgumentTypeError):
        values.address(data.decode("latin-1"))


class Streams:
    """A server that does with each connection what the input says, and its clients."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._path = folder / "s"
        self._handle: Callable[[asyncserver.Stream], Awaitable[None]]

        async def handler(stream: asyncserver.Stream) -> None:
            await self._handle(stream)

        self._serving = asyncserver.serve(handler, path=self._path)
        self._loop.run_until_complete(self._serving.__aenter__())

    def one_input(self, data: bytes) -> None:
        """Up to eight operations with two bytes each, then what the peer sends, in pieces whose sizes repeat them."""
        count = data[0] % 8 + 1 if data else 0
        words, payload = data[1 : 1 + 2 * count], data[1 + 2 * count :]
        self._loop.run_until_complete(asyncio.wait_for(self._talk(words, payload), 20))

    async def _talk(self, words: bytes, payload: bytes) -> None:
        done = self._loop.create_future()

        async def handle(stream: asyncserver.Stream) -> None:
            try:
                await self._receive(stream, words, payload)
                done.set_result(None)
            except BaseException as exc:  # to be raised where the fuzzer sees it
                done.set_exception(exc)

        self._handle = handle
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self._path))
            rest = payload
            while rest:
                size = 1 + (words[len(rest) % len(words)] if words else 0)
                client.send(rest[:size])
                rest = rest[size:]
                await asyncio.sleep(0)
            client.shutdown(socket.SHUT_WR)
            await done

    async def _receive(self, stream: asyncserver.Stream, words: bytes, rest: bytes) -> None:
        for kind, number in zip(words[::2], words[1::2], strict=False):
            rest = rest[await self._one_operation(stream, kind, number, rest) :]
        left = b"".join([chunk async for chunk in stream])
        assert left == rest

    async def _one_operation(self, stream: asyncserver.Stream, kind: int, number: int, rest: bytes) -> int:
        """Receive, compare with what it should be, and return how many bytes were taken."""
        delimiter = _DELIMITERS[kind // 4 % 4]
        try:
            match kind % 4:
                case 0:
                    got = await stream.receive(number + 1)
                    assert 0 < len(got) <= number + 1
                case 1:
                    got = await stream.receive_exactly(number)
                    assert len(got) == number
                case 2:
                    got = await anext(stream)
                    assert got
                case _:
                    got = await stream.receive_until(delimiter, number)
                    assert rest.find(delimiter, 0, number) == len(got)
                    return len(got) + len(delimiter)
        except (anyio.EndOfStream, StopAsyncIteration):
            assert not rest
            assert kind % 4 in {0, 2}
            return 0
        except anyio.IncompleteRead:
            assert len(rest) < max(number, 1)  # that there is no delimiter in no bytes, it says when some are there
            assert kind % 4 == 1 or delimiter not in rest[:number]
            return 0
        except anyio.DelimiterNotFound:
            assert len(rest) >= number
            assert delimiter not in rest[:number]
            return 0
        assert rest.startswith(got)
        return len(got)


def main(seconds: int, what: str) -> None:
    """Fuzz for so many seconds."""
    atheris: Any = importlib.import_module("atheris")
    atheris.instrument_all()
    print(f"{what}, {'compiled' if asyncserver.accelerated else 'pure Python'}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        target = one_header if what == "headers" else Streams(Path(folder)).one_input
        arguments = [sys.argv[0], f"-max_total_time={seconds}", "-max_len=600", "-print_final_stats=1"]
        atheris.Setup(arguments, target)
        atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60, sys.argv[2] if len(sys.argv) > 2 else "headers")
