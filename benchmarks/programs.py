"""Workloads without a load generator (import time, latency of `shutdown()`), and the run's certificate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.load import HERE

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from benchmarks.workloads import Workload

IMPORTS = (
    "import asyncio",
    "import socketserver, asyncio",
    "import asyncserver",
    "import asyncserver.listening.binding, asyncserver.servers.stream_server",  # all that the first serve() brings in
    "import compat",
    "import uvloop",
    "import anyio, anyio._backends._asyncio",
    "import trio",
    "import gevent.server",
    "import twisted.internet.reactor, twisted.internet.protocol",
    "import easynetwork.servers",
)
SHUTDOWNS = ("socketserver", "compat")

_TIMED_IMPORT = """
import time
begin = time.process_time()
{}
print((time.process_time() - begin) * 1000)
"""


class ProgramError(Exception):
    """A program failed; the text is the last thing it said."""


def contenders(workload: Workload) -> list[str]:
    """The names of those that run this workload, if it is one of ours."""
    if workload.kind != "program":
        return []
    return list(IMPORTS) if workload.mode == "import" else list(SHUTDOWNS)


def run(workload: Workload, name: str, cores: AbstractSet[int]) -> float:
    """One figure of one contender, in a fresh process.

    Raises:
        ProgramError: It failed; for a package that is not installed too.
    """
    if workload.mode == "shutdown":
        return _output(["-m", "benchmarks.shutdown_latency", name], cores)
    code = _TIMED_IMPORT.format(name)
    return min(_output(["-c", code], cores) for _ in range(3))  # the first may still have to write bytecode


def _output(arguments: list[str], cores: AbstractSet[int]) -> float:
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    done = subprocess.run(
        [*pinned, sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=HERE.parent,
        # An import is to be timed as users have it, from bytecode.
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    )
    if done.returncode:
        raise ProgramError((done.stderr.strip().splitlines() or ["it failed silently"])[-1])
    return float(json.loads(done.stdout))


def write_certificate(path: Path) -> None:
    """Write a key and a certificate for 127.0.0.1, for this run only.

    Raises:
        ModuleNotFoundError: trustme is not installed.
    """
    import trustme  # noqa: PLC0415 - optional

    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(path))
    path.chmod(0o600)
