"""Where and with what a run was made."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

_CAP_SYS_ADMIN = 21  # linux/capability.h


def describe() -> dict[str, object]:
    """The machine, the interpreter and the compiler, as far as they tell."""
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "usable_cores": sorted(os.sched_getaffinity(0)),
        "core_siblings": sorted({siblings(core) for core in os.sched_getaffinity(0)}),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "openssl": ssl.OPENSSL_VERSION,
        "compiler": _compiler(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def siblings(core: int) -> str:
    """The logical processors that share a physical core with this one, as Linux writes lists."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    return path.read_text().strip() if path.exists() else str(core)


def choose_cores() -> tuple[int | None, int | None]:
    """A core for servers and one for load, on different physical cores if possible; None if there is one."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2 or sys.platform != "linux":
        return None, None
    server = usable[0]
    apart = [core for core in usable[1:] if siblings(core) != siblings(server)]
    return server, (apart or usable)[-1]


def is_privileged() -> bool:
    """Whether we could do what only root can, by capabilities(7)."""
    return bool(int(_first("/proc/self/status", "CapEff") or "0", 16) >> _CAP_SYS_ADMIN & 1)


@functools.cache
def dropping_privileges() -> tuple[str, ...]:
    """What to put before a server's command, so that it is measured as services run: without root's privileges.

    compat compares what a thread may change before it uses it again, and root's may change more. Empty for users who
    have none, and where they cannot be given up.
    """
    words = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    if not is_privileged() or shutil.which(words[0]) is None:
        return ()
    tried = subprocess.run([*words, "true"], capture_output=True, check=False)
    return () if tried.returncode else words


def _first(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _compiler() -> str:
    try:
        done = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return done.stdout.splitlines()[0]
