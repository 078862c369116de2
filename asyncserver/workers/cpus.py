"""How many CPUs this process may use: what `workers="auto"` stands for."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from pathlib import Path

from .._logger import logger as _logger
from ..kernel.features import tell_missing

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """As many CPUs as this process may run on, within its cgroup's quota. Logs how many."""
    allowed, quota = allowed_cpus(), cpu_quota()
    usable = allowed if quota is None else min(allowed, max(1, math.ceil(quota)))
    limit = "" if quota is None else f", quota of its cgroup: {quota:g}"
    _logger.info("workers=auto: %d (CPUs that this process may use: %d%s)", usable, allowed, limit)
    return usable


def allowed_cpus() -> int:
    """CPUs that this process may run on; PYTHON_CPU_COUNT overrides it from Python 3.13 on."""
    try:
        if sys.version_info >= (3, 13):
            return os.process_cpu_count() or 1
        return len(os.sched_getaffinity(0))
    except OSError:
        tell_missing("sched_getaffinity", "this process is taken to run on all CPUs")
        return os.cpu_count() or 1


def cpu_quota(root: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> float | None:
    """CPUs' worth of time that the process's cgroup, or one around it, may use; None for no limit.

    The file cpu.max holds "$MAX $PERIOD", microseconds, or "max" for no limit; the root has none
    (Linux, Documentation/admin-guide/cgroup-v2.rst). In a container's namespace its own cgroup is
    "/", the root of what it sees. Of cgroup v1 nothing is read.

    Args:
        root: where cgroups are mounted.
        own: which cgroup the process belongs to: the line with "0::".
    """
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            if line.startswith("0::/"):
                path = line.removeprefix("0::/")
                inside = root if ".." in path.split("/") else root / path  # else outside of what we see
                folders = [inside, *inside.parents]
                quotas = [_quota_of(folder / "cpu.max") for folder in folders[: folders.index(root) + 1]]
                return min((quota for quota in quotas if quota is not None), default=None)
    return None


def _quota_of(file: Path) -> float | None:
    try:
        quota, period, *_ = file.read_text().split()
    except (OSError, ValueError):  # there is none for the root, nor where the controller is off
        return None
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None
