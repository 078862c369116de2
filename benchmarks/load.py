"""The load generator's command: the C program, built on first use, or its Python stand-in."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
# For each C library: a program that a newer one was found for does not start beside an older, as in a container.
BUILD = HERE / ".build" / "-".join([platform.machine(), *platform.libc_ver()])
FLAGS = ["-O2", "-Wall", "-Wextra"]


class LoadError(Exception):
    """The load generator could not do its work; the text is what it said."""


def compile_c(
    source: Path, name: str = "", *, defines: tuple[str, ...] = (), libraries: tuple[str, ...] = ()
) -> Path | None:
    """The program built from a C file, anew when it or its parts are newer; None when there is no compiler.

    Raises:
        subprocess.CalledProcessError: The compiler refused the file.
    """
    program = BUILD / (name or source.stem)
    parts = [source, *source.parent.glob(f"{source.stem}_*.h")]
    if program.exists() and program.stat().st_mtime >= max(part.stat().st_mtime for part in parts):
        return program
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    BUILD.mkdir(parents=True, exist_ok=True)
    fresh = program.with_suffix(f".{os.getpid()}")  # renamed when complete, so that two runs at once do no harm
    command = [compiler, *FLAGS, *defines, "-o", str(fresh), str(source), *libraries]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return fresh.replace(program)


@dataclass(frozen=True)
class Load:
    """How to run a load generator.

    Attributes:
        c: Started for everything, or None where there is no compiler.
        c_tls: Whether the C program can do TLS (OpenSSL's headers were there).
        core: The core it is pinned to, or None.
    """

    c: Path | None
    c_tls: bool
    core: int | None = None

    def is_c(self, mode: str) -> bool:
        """Whether the C program drives this mode; if not, the load generator may be the bottleneck."""
        return self.c is not None and (mode != "tls" or self.c_tls)

    def command(self, mode: str, address: str, **options: object) -> list[str]:
        """The command line; options are those of load.c."""
        start = [str(self.c)] if self.is_c(mode) else [sys.executable, "-m", "benchmarks.python_load"]
        pinned = ["taskset", "-c", str(self.core)] if self.core is not None else []
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [*pinned, *start, mode, address, *words]

    def run(self, mode: str, address: str, *, patience: float, **options: object) -> dict[str, float]:
        """Run it to its end and return what it measured.

        Args:
            mode: See the head of load.c.
            address: Where the server listens.
            patience: Seconds after which it counts as hung.
            options: As in `command`.

        Raises:
            LoadError: It failed or hung.
        """
        command = self.command(mode, address, **options)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=patience, check=False, cwd=HERE.parent
            )
        except subprocess.TimeoutExpired:
            raise LoadError(f"the load generator did not end within {patience:.0f} s") from None
        if done.returncode:
            raise LoadError((done.stderr.strip().splitlines() or ["the load generator failed silently"])[-1])
        figures: dict[str, float] = json.loads(done.stdout)
        return figures


def build(core: int | None = None) -> Load:
    """Build the C load generator if that is possible: with TLS, else without, else not at all."""
    source = HERE / "load.c"
    try:
        with_tls = compile_c(source, "load-tls", defines=("-DWITH_TLS",), libraries=("-lssl", "-lcrypto"))
        return Load(with_tls, c_tls=with_tls is not None, core=core)
    except subprocess.CalledProcessError:
        return Load(compile_c(source), c_tls=False, core=core)
