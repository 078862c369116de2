"""How many threads this system allows a process: the default bound of a server."""

import contextlib
import os
import resource
from collections.abc import Iterator

RESERVE = 1 / 8  # of the least limit: for the program's own threads, children and neighbours
MEMORY_AREAS = 2  # of each thread: stack and guard page, mmap(2), pthread_create(3)
FALLBACK = 4096  # where no limit can be read


def threads_to_be_had(root: str | os.PathLike[str] = "/") -> int:
    """Return the least of Linux's limits for threads, less a reserve; at least 1.

    `root` is where `proc` and `sys` are, for tests.
    """
    least = min(_limits(os.fspath(root)), default=FALLBACK)
    return max(1, int(least * (1 - RESERVE)))


def _limits(root: str) -> Iterator[int]:  # without pathlib, a sixth of the package's import
    kernel = os.path.join(root, "proc/sys/kernel")
    for path in (os.path.join(kernel, "threads-max"), os.path.join(kernel, "pid_max"), *_control_groups(root)):
        if (limit := _number_in(path)) is not None:
            yield limit
    if (areas := _number_in(os.path.join(root, "proc/sys/vm/max_map_count"))) is not None:
        yield areas // MEMORY_AREAS
    with contextlib.suppress(OSError):  # a filter of system calls
        soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)  # of all that a user has; root has no limit
        if soft != resource.RLIM_INFINITY and os.geteuid() != 0:
            yield soft


def _control_groups(root: str) -> Iterator[str]:
    """pids.max of our control group and of those above it; both versions: cgroups(7)."""
    try:
        with open(os.path.join(root, "proc/self/cgroup")) as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "pids" not in controllers.split(","):
            continue
        top = os.path.join(root, "sys/fs/cgroup", "pids" if controllers else "")
        yield os.path.join(top, "pids.max")  # a container sees its own as the top
        group = path.strip("/")
        while group:
            yield os.path.join(top, group, "pids.max")
            group = os.path.dirname(group)


def _number_in(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):  # "max"
        return None
