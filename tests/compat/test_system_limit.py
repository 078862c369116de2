"""The default bound of a server's threads is what the system can hold."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

import compat
from compat.pool.system_limit import FALLBACK, threads_to_be_had

FILES = {
    "proc/sys/kernel/threads-max": "192730",
    "proc/sys/kernel/pid_max": "4194304",
    "proc/sys/vm/max_map_count": "65530",
}


def system(root: Path, **files: str) -> Path:
    """A folder that says what /proc and /sys say."""
    for path, text in (FILES | files).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def _unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 28669),  # two memory areas for each thread
        ({"proc/sys/kernel/threads-max": "1000"}, 875),
        ({"proc/sys/kernel/pid_max": "800"}, 700),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/pids.max": "max", "sys/fs/cgroup/a/pids.max": "80"}, 70),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/pids.max": "4915"}, 4300),  # inside a container
        ({"proc/self/cgroup": "8:pids:/a\n0::/", "sys/fs/cgroup/pids/a/pids.max": "800"}, 700),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/pids.max": "1"}, 1),
    ],
)
def test_the_least_limit_counts(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    """Less an eighth, for everything else."""
    assert threads_to_be_had(system(tmp_path, **files)) == expected


def test_the_limit_of_a_user_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RLIMIT_NPROC, unless the user is root: setrlimit(2)."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (400, 400))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert threads_to_be_had(system(tmp_path)) == 350
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert threads_to_be_had(system(tmp_path)) == 28669


def test_a_system_that_says_nothing_has_a_bound_all_the_same(tmp_path: Path) -> None:
    """Such as one without /proc."""
    assert threads_to_be_had(tmp_path) == FALLBACK * 7 // 8


def test_it_is_the_default_of_every_threading_server() -> None:
    """What this system can hold, seen from here."""
    assert compat.ThreadingTCPServer.max_threads == compat.ThreadingMixIn.max_threads
    assert isinstance(compat.ThreadingMixIn.max_threads, int)
