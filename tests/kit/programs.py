"""Programs in processes of their own: what they print, the signals that they get, and how they end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tests.kit.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
#: Programs that know nothing of asyncserver.
PROGRAMS = ROOT / "tests/compat/programs"

LOOPS = ["asyncio"]
if "ASYNCSERVER_TESTS_WITHOUT_UVLOOP" not in os.environ:
    with contextlib.suppress(ModuleNotFoundError):
        import uvloop  # noqa: F401

        LOOPS.append("uvloop")

#: What programs have of the tests' environment: what finds other programs, and what switches the extension off.
KEPT = {"PATH", "HOME", "ASYNCSERVER_PURE"}


class Program:
    """A Python program in a process of its own, whose output is collected while it runs."""

    #: Whether it is the leader of a session, so that in the end its children are killed with it.
    leads_session = False

    def __init__(
        self, arguments: list[str], folder: Path, pass_fds: tuple[int, ...] = (), /, **environment: str
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("COVERAGE_")}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
            start_new_session=self.leads_session,
        )
        self.output = ""
        self.errors = ""
        self._seen = 0  # of the errors, by `expect`
        self._silent = 0  # how many of the two have come to their end
        self._news = threading.Condition()
        self._threads = [
            threading.Thread(target=self._collect, args=(name,), daemon=True) for name in ("output", "errors")
        ]
        for thread in self._threads:
            thread.start()

    def _collect(self, name: str) -> None:
        pipe = self.process.stdout if name == "output" else self.process.stderr
        assert pipe is not None
        for line in pipe:
            with self._news:
                setattr(self, name, getattr(self, name) + line)
                self._news.notify_all()
        with self._news:
            self._silent += 1
            self._news.notify_all()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until it has printed that, so often."""
        with self._news:
            found = self._news.wait_for(lambda: (self.output + self.errors).count(text) >= times, PATIENCE)
        assert found, f"no {text!r} in {self.output!r}, {self.errors!r}"

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait for a line of errors, or of the log, after the one that was last waited for."""
        compiled = re.compile(pattern)
        with self._news:
            self._news.wait_for(lambda: compiled.search(self.errors, self._seen) or self._silent == 2, PATIENCE)
            found = compiled.search(self.errors, self._seen)
            assert found, f"no {pattern!r} in {self.errors[self._seen :]!r}"
            self._seen = self.errors.index("\n", found.end())
            return found

    def tell(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal, and wait for the end; returns its exit status."""
        self.tell(number)
        return self.process.wait(PATIENCE)

    def wait(self) -> int:
        """Wait for its end and for all that it has said; returns its exit status."""
        status = self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill it, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL) if self.leads_session else self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def wait_until_asleep(pid: int) -> None:
    """Wait until the main thread of a program sleeps for good: who waits for the GIL wakes every 5 ms.

    CPython may overlook a signal that comes in the moment before that, until another comes or a thread ends.
    """
    switches, since = "", time.monotonic()
    while time.monotonic() - since < 0.2:
        text = Path(f"/proc/{pid}/task/{pid}/status").read_text()
        now = text[text.index("voluntary_ctxt_switches") :]
        if now != switches or "State:\tS" not in text:
            switches, since = now, time.monotonic()


def run_script(source: str, folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run a script to its end; returns its status, output and errors."""
    (folder / "script.py").write_text(source)
    with Program(["-W", "error", "script.py", *arguments], folder, **environment) as program:
        return program.wait(), program.output, program.errors


def environment() -> dict[str, str]:
    """Children find the package wherever they are started."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def python(*arguments: object, cwd: Path = ROOT, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the interpreter to its end."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, check=check, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=50)


@contextlib.contextmanager
def started(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program that is killed if it is still there in the end."""
    command = [sys.executable, *map(str, arguments)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environment(), text=True, stdin=pipe, stdout=pipe, stderr=pipe, **options)
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> list[str]:
    """The words of the next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline().split()
