"""How many threads this system allows a process: the default bound of a server."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

RESERVE = 1 / 8  # of the least limit: for the program's own threads, children and neighbours
MEMORY_AREAS = 2  # of each thread: stack and guard page, mmap(2), pthread_create(3)
FALLBACK = 4096  # where no limit can be read


def threads_to_be_had(root: Path = Path("/")) -> int:
    """Return the least of Linux's limits for threads, less a reserve; at least 1.

    `root` is where `proc` and `sys` are, for tests.
    """
    least = min(_limits(root), default=FALLBACK)
    return max(1, int(least * (1 - RESERVE)))


def _limits(root: Path) -> Iterator[int]:
    kernel = root / "proc/sys/kernel"
    for path in (kernel / "threads-max", kernel / "pid_max", *_control_groups(root)):
        if (limit := _number_in(path)) is not None:
            yield limit
    if (areas := _number_in(root / "proc/sys/vm/max_map_count")) is not None:
        yield areas // MEMORY_AREAS
    with contextlib.suppress(OSError):  # a filter of system calls
        soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)  # of all that a user has; root has no limit
        if soft != resource.RLIM_INFINITY and os.geteuid() != 0:
            yield soft


def _control_groups(root: Path) -> Iterator[Path]:
    """pids.max of our control group and of those above it; both versions: cgroups(7)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "pids" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("pids" if controllers else "")
        group = top / path.lstrip("/")
        yield top / "pids.max"  # a container sees its own as the top
        yield group / "pids.max"
        yield from (parent / "pids.max" for parent in group.parents if parent.is_relative_to(top))


def _number_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max"
        return None
