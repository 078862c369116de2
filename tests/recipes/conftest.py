"""Recipes as a reader runs them: a file and a process each, with a free port in the place of every port."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Self

import pytest

from tests.kit.programs import ROOT, Program
from tests.kit.sockets import connect, reset
from tests.kit.waiting import wait_until

RECIPES = ROOT / "docs/recipes"


class Recipe(Program):
    """A recipe that runs.

    Args:
        name: its file's name.
        folder: where it runs.
        replaced: words of it that a test needs otherwise, such as a time that is not to be waited for.
    """

    def __init__(self, name: str, folder: Path, replaced: dict[str, str]) -> None:
        text = (RECIPES / name).read_text()
        for words, others in replaced.items():
            assert words in text
            text = text.replace(words, others)
        text, self._places = re.subn(r'("127\.0\.0\.1",\s+)(?:7000|5300|5140|2121|11211)\b', r"\g<1>0", text)
        (folder / name).write_text(text)
        # uvicorn raises the signal once more when it has closed all.
        self._ends = {0, -signal.SIGTERM} if "uvicorn" in text else {0}
        super().__init__(["-W", "error", name], folder)

    def ports(self) -> list[int]:
        """Wait until it serves; returns the ports in their order."""
        found: list[str] = []

        def told() -> bool:
            found[:] = re.findall(r"serving on .*127\.0\.0\.1(?::|', )(\d+)", self.errors + self.output)
            return len(found) == self._places

        wait_until(told)
        return [int(port) for port in found]

    def __exit__(self, *exc: object) -> None:
        try:
            if exc[0] is None:
                assert self.process.poll() is not None or self.end() in self._ends, self.errors
                self.wait()
                assert not re.search(r"Traceback|handler of .* failed|never retrieved", self.errors), self.errors
        finally:
            self.close()


class Start(Protocol):
    """Starts a recipe; it ends with the test, politely, and has logged no error."""

    def __call__(self, name: str, replaced: dict[str, str] | None = None) -> Recipe: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start recipes in a folder of the test's own."""
    with contextlib.ExitStack() as stack:
        yield lambda name, replaced=None: stack.enter_context(Recipe(name, tmp_path, replaced or {}))


class Person:
    """A client that speaks and hears lines."""

    def __init__(self, address: int | str, receive_buffer: int | None = None) -> None:
        self.sock = connect(address, receive_buffer=receive_buffer)
        self._file = self.sock.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self.sock.close()

    def says(self, line: bytes) -> None:
        """Send a line."""
        self.sock.sendall(line + b"\n")

    def hears(self) -> bytes:
        """Receive a line, without its end; b"" at the end of the connection."""
        return self._file.readline().rstrip(b"\r\n")

    def reads(self, nbytes: int) -> bytes:
        """Receive so many bytes, fewer at the end of the connection."""
        return self._file.read(nbytes)

    def resets(self) -> None:
        """Break the connection."""
        self._file.close()  # or the socket would stay open
        reset(self.sock)

    def rest(self) -> bytes:
        """Receive up to the end, which may be a reset."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while chunk := self._file.read1(65536):
                data += chunk
        return data


def ends_at_once(recipe: Recipe, *connected: Person) -> bool:
    """Whether SIGTERM ends it, and connections of which nothing is owed, long before the drain's deadline."""
    recipe.tell(signal.SIGTERM)
    for one in connected:
        one.rest()
    assert recipe.wait() == 0
    reports = re.findall(r"(\d+) completed, (\d+) cancelled, (\d+) aborted in", recipe.errors)
    return [sum(map(int, numbers)) for numbers in zip(*reports, strict=True)] == [len(connected), 0, 0]
