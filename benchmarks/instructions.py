"""Instructions that the compiled build takes for an operation, counted by callgrind (valgrind), which needs no clock.

A server runs under callgrind in a process of its own, in user space alone; the client is here, and takes a step only
when the server has come to rest (counting_client.py). Of each kind of operation there are two lots, and the difference
of their counts is divided by that of their sizes: what a lot itself costs cancels out. Start-up is in neither.

What is counted is also the interpreter's, libc's and uvloop's code, so counts are compared only with those of the same
builds: `build()` names them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import re
import select
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.counting_client import operations, settle
from benchmarks.load import HERE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KINDS = ("message", "connection", "datagram")
# Operations before the first count, since the interpreter adapts its code to what it does, and in the two lots.
WARM_UP = 100
LOTS = (20, 120)
PATIENCE = 300.0  # a start takes some seconds where nothing else runs
AS_EVER = {"ASYNCSERVER_PURE": "", "PYTHONHASHSEED": "0", "PYTHONDEVMODE": "", "PYTHONASYNCIODEBUG": ""}


def missing() -> str | None:
    """Why nothing can be counted here, if so."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if importlib.util.find_spec("uvloop") is None:
        return "uvloop is not installed"
    if importlib.util.find_spec("asyncserver.speedups._compiled") is None:
        return "the extension is not built for this Python: python hatch_build.py"
    return None


def build() -> str:
    """What the counts depend on besides our code."""
    flags = sysconfig.get_config_var("CONFIG_ARGS") or ""
    optimised = [word for word, flag in (("PGO", "--enable-optimizations"), ("LTO", "--with-lto")) if flag in flags]
    interpreter = ", ".join([platform.python_compiler(), *optimised])
    return (
        f"{platform.python_version()} ({interpreter}), extension ({_compiler()}), {' '.join(platform.libc_ver())}, "
        f"uvloop {importlib.metadata.version('uvloop')}, {platform.machine()}"
    )


def _compiler() -> str:
    """Who has compiled the extension: compilers leave their name in what they make."""
    spec = importlib.util.find_spec("asyncserver.speedups._compiled")
    assert spec is not None
    assert spec.origin is not None
    found = re.search(rb"GCC: \([^)]*\) ([\d.]+)|clang version ([\d.]+)", Path(spec.origin).read_bytes())
    if found is None:
        return "unknown"
    return f"GCC {found[1].decode()}" if found[1] else f"Clang {found[2].decode()}"


class CountedServer:
    """A server under callgrind.

    Raises:
        RuntimeError: It did not start, or does not answer; the text is the last thing it said.
    """

    def __init__(self, loop: str, folder: Path) -> None:
        self._profile = folder / "profile"
        self._errors = (folder / "errors").open("w+")
        self._marks = itertools.count(1)
        # Where libc's tzset() begins, which nothing else calls, it writes what it has counted and begins anew.
        callgrind = ["valgrind", "--tool=callgrind", "--dump-before=tzset", f"--callgrind-out-file={self._profile}"]
        self._process = subprocess.Popen(
            [*callgrind, "--quiet", sys.executable, "-m", "benchmarks.callgrind_server", loop],
            env={**os.environ, **AS_EVER},
            cwd=HERE.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self.pid = self._process.pid
        self.ready: dict[str, Any] = {}

    def start(self) -> None:
        """Wait until it serves."""
        self.ready = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            raise RuntimeError(f"it has not answered within {PATIENCE:.0f} s")
        if not (line := self._process.stdout.readline()):
            self._errors.seek(0)
            raise RuntimeError((self._errors.read().strip().splitlines() or ["it failed silently"])[-1])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def since_last(self) -> int:
        """Instructions since this was last called."""
        assert self._process.stdin is not None
        self._process.stdin.write(b".")
        self._process.stdin.flush()
        self._answer()
        profile = self._profile.with_name(f"{self._profile.name}.{next(self._marks)}").read_text()
        return int(profile.rpartition("\ntotals:")[2])

    def close(self) -> None:
        """End it; nothing that it has to write is of use any more."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def measure(loop: str, kinds: Iterable[str] = KINDS) -> dict[str, float]:
    """Instructions for one operation of each kind, on the loop of that name.

    Raises:
        RuntimeError: They could not be counted; the text says why.
    """
    with (
        tempfile.TemporaryDirectory(prefix="guard-") as folder,
        contextlib.closing(CountedServer(loop, Path(folder))) as server,
    ):
        server.start()
        if not server.ready["accelerated"]:
            raise RuntimeError("the extension is there, but not used: python hatch_build.py")
        return {kind: _per_operation(server, kind) for kind in kinds}


def _per_operation(server: CountedServer, kind: str) -> float:
    host, port = server.ready["udp" if kind == "datagram" else "tcp"]
    with contextlib.closing(operations(kind, (host, port), server.pid)) as steps:
        _, few, many = (_lot(server, steps, size) for size in (WARM_UP, *LOTS))
    return (many - few) / (LOTS[1] - LOTS[0])


def _lot(server: CountedServer, steps: Iterator[None], size: int) -> int:
    for _ in range(size):
        next(steps)
    settle(server.pid)
    return server.since_last()
