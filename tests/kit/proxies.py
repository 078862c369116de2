"""HAProxy and nginx as the tests start them: the real programs, in the foreground, where they are installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.waiting import PATIENCE, wait_until

WHERE = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"  # where they are, and an ordinary user's PATH is not
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")  # Debian's; elsewhere it is built in


def find(name: str) -> str:
    """Return the path of a program; skips the test where it is missing."""
    path = shutil.which(name, path=WHERE)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def nginx_command(conf: Path) -> list[str]:
    """Return what starts nginx with a file; skips the test where it has no stream module."""
    settings = f"daemon off; pid {conf.parent}/nginx.pid; error_log stderr notice;"
    command = [find("nginx"), "-e", "stderr", "-c", str(conf), "-g", settings]
    checked = subprocess.run([*command, "-t"], check=False, capture_output=True, text=True, timeout=PATIENCE)
    if 'unknown directive "stream"' in checked.stderr:
        pytest.skip("nginx has no stream module")
    assert checked.returncode == 0, checked.stderr
    return command


@contextlib.contextmanager
def running(command: list[str], log: Path, up: Callable[[], bool], inherited: tuple[int, ...] = ()) -> Iterator[None]:
    """Run a proxy, from when it is up; what it says is in a file."""
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, pass_fds=inherited, stdout=stderr, stderr=stderr) as process,
    ):
        try:
            wait_until(lambda: up() or process.poll() is not None)
            assert process.poll() is None, f"the proxy has ended instead of listening: {log.read_text()}"
            yield
            assert process.poll() is None, f"the proxy has ended: {log.read_text()}"
        finally:
            process.terminate()


def connectable(address: tuple[str, int]) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


def own_address(last: int) -> str:
    """Return a loopback address that no other process of the tests uses: all of its ports are free."""
    return f"127.{192 + os.getpid() // 256 % 63}.{os.getpid() % 256}.{last}"


def dnsdist_command(conf: Path) -> list[str]:
    """Return what starts dnsdist with a file."""
    return [find("dnsdist"), "--supervised", "--disable-syslog", "-C", str(conf)]
