"""What the tests of unchanged programs share: the interpreter, and programs that are killed in the end."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.serverkit import ROOT

PROGRAMS = Path(__file__).parent / "legacy_programs"


def environment() -> dict[str, str]:
    """Children find the package wherever they are started."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def python(*arguments: object, cwd: Path = ROOT, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run the interpreter to its end."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, check=check, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=50)


@contextmanager
def started(*arguments: object, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A program that is killed if it is still there in the end."""
    command = [sys.executable, *map(str, arguments)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environment(), text=True, stdin=pipe, stdout=pipe, stderr=pipe, **options)
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: "subprocess.Popen[str]") -> list[str]:
    """The words of the next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline().split()


def connect(port: object) -> socket.socket:
    """A connection whose operations give up after ten seconds."""
    return socket.create_connection(("127.0.0.1", int(str(port))), timeout=10)
