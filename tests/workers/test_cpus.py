"""`workers="auto"`: as many as CPUs, by affinity and the cgroup's quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asyncserver.workers import cpus
from tests.kit.workers import Start, ask


def cgroup(root: Path, path: str, maximum: str) -> None:
    (root / path).mkdir(parents=True, exist_ok=True)
    (root / path / "cpu.max").write_text(maximum)


@pytest.mark.parametrize(
    ("own", "quotas", "expected"),
    [
        ("0::/\n", {"": "150000 100000\n"}, 1.5),  # as a container sees its own
        ("0::/\n", {"": "max 100000\n"}, None),
        ("0::/\n", {}, None),  # the root of all, which has no such file
        ("0::/a/b\n", {"a/b": "max 100000", "a": "300000 100000"}, 3.0),  # that of a service's slice
        ("0::/a/b\n", {"a/b": "50000 100000", "a": "300000 100000"}, 0.5),
        ("0::/a/b\n", {"a": "300000 100000", "a/b/c": "1 1000"}, 3.0),
        ("0::/../x\n", {"": "200000 100000"}, 2.0),  # moved out of its namespace's root
        ("1:name=systemd:/\n0::/a\n", {"a": "100000 50000 0"}, 2.0),  # hybrid, and a third number
        ("2:cpu,cpuacct:/a\n", {"a": "100000 100000"}, None),  # version 1
        ("0::/a\n", {"a": "nonsense"}, None),
        ("0::/a\n", {"a": "100000 0"}, None),
    ],
)
def test_quota_is_the_least_of_the_cgroups_around(
    own: str, quotas: dict[str, str], expected: float | None, tmp_path: Path
) -> None:
    """Each cgroup's limit bounds all in it; "max" is none."""
    root, file = tmp_path / "cgroup", tmp_path / "own"
    file.write_text(own)
    for path, maximum in quotas.items():
        cgroup(root, path, maximum)
    assert cpus.cpu_quota(root, file) == expected


def test_without_proc_there_is_no_quota(tmp_path: Path) -> None:
    """Nothing is known then."""
    assert cpus.cpu_quota(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(("allowed", "quota", "usable"), [(8, None, 8), (8, 2.5, 3), (2, 8.0, 2), (4, 0.1, 1)])
def test_quota_is_rounded_up(
    allowed: int, quota: float | None, usable: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a CPU is one worker. The log says what was found."""
    caplog.set_level("INFO", "asyncserver")
    monkeypatch.setattr(cpus, "allowed_cpus", lambda: allowed)
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    assert cpus.usable_cpus() == usable
    told = "" if quota is None else f", quota of its cgroup: {quota:g}"
    assert caplog.messages == [f"workers=auto: {usable} (CPUs that this process may use: {allowed}{told})"]


SCRIPT = """
import logging, os, sys, app, asyncserver
logging.basicConfig(level="INFO")
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
asyncserver.run(asyncserver.serve(app.handler, "127.0.0.1", 0), workers="auto", loop=sys.argv[1], max_requests=4)
"""


def test_one_cpu_is_one_worker_with_a_supervisor(start: Start) -> None:
    """So that it is recycled there too, and serves on the same port before the old one drains."""
    program = start(script=SCRIPT)
    program.expect(r"workers=auto: 1 \(CPUs that this process may use: 1[,)]")
    tcp = int(program.expect(r"1 worker serves on tcp://127\.0\.0\.1:(\d+)")[1])
    first = {ask(tcp)[1] for _ in range(4)}
    assert len(first) == 1
    assert program.process.pid not in first
    program.expect(rf"worker {first.pop()} is \d+ s old, has handled 4 connections")
    program.expect("1 worker serves on")
    assert ask(tcp)
    assert program.end() == 0


def test_auto_is_as_many_as_cpus(start: Start) -> None:
    """On the command line too."""
    program = start("--tcp", "127.0.0.1:0", "--workers", "auto")
    found = program.expect(r"workers=auto: (\d+) \(CPUs that this process may use: (\d+)[,)]")
    assert int(found[2]) == len(os.sched_getaffinity(0))
    assert 1 <= int(found[1]) <= int(found[2])
    program.expect(rf"{found[1]} workers? serves? on")
    assert program.end() == 0
