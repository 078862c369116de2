"""systemd's conventions: what the environment says, what systemd is told, and its own tools."""

from __future__ import annotations

import logging
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncserver.cli.options import make_parser
from asyncserver.listening.systemd import listen_names, own_pidfd_id
from asyncserver.monitoring.notify import NotifySocket, notify_address, watchdog_seconds
from asyncserver.reports.stats import ServerStats
from tests.kit.programs import ROOT
from tests.kit.systemd import Systemd, ask, either_address
from tests.kit.waiting import PATIENCE

# -- what the environment says


BIG = 2**63 + 5  # more than any inode number yet, and as long as they may get


def listen(pid: object = 7, fds: object = 1, names: str | None = None) -> dict[str, str]:
    environment = {"LISTEN_PID": str(pid), "LISTEN_FDS": str(fds)}
    return environment if names is None else environment | {"LISTEN_FDNAMES": names}


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, []),
        ({"LISTEN_FDS": "2"}, []),
        ({"LISTEN_PID": "7"}, []),
        (listen(fds=2), ["unknown", "unknown"]),
        (listen(fds=3, names="web:web:dns.socket"), ["web", "web", "dns.socket"]),
        (listen(fds=2, names=":"), ["", ""]),
        (listen(fds=0), []),
        (listen(fds=0, names=""), []),
        (listen(pid=8, fds="many", names="a:b"), []),
    ],
)
def test_names_of_the_descriptors(environment: dict[str, str], names: list[str]) -> None:
    """One for each, for the process whose number LISTEN_PID is; sd_listen_fds_with_names(3)."""
    assert listen_names(environment, 7) == names


@pytest.mark.parametrize(
    ("given", "own", "ours"),
    [
        ("321", 321, True),
        ("322", 321, False),
        (str(BIG), BIG, True),
        (str(BIG), BIG - 1, False),
        ("322", None, True),  # a kernel without such numbers
        (str(BIG), 5, True),  # a 32-bit kernel, which has the lower half only
    ],
)
def test_the_pidfds_number_tells_whose_they_are(given: str, own: int | None, ours: bool) -> None:
    """As LISTEN_PID does, which another process may have had before, or has in another namespace."""
    environment = listen(names="web") | {"LISTEN_PIDFDID": given}
    assert listen_names(environment, 7, own) == (["web"] if ours else [])
    assert listen_names(environment, 8, own) == []


def test_own_pidfd_has_a_number_of_its_own() -> None:
    """Of this process only; None on a kernel whose pidfds share one inode."""
    if own_pidfd_id() is None:
        assert tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 9)
        return
    assert own_pidfd_id() == own_pidfd_id()
    command = [sys.executable, "-c", "from asyncserver.listening.systemd import own_pidfd_id; print(own_pidfd_id())"]
    assert int(subprocess.check_output(command, cwd=ROOT)) != own_pidfd_id()


def test_kernels_without_such_numbers_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """One inode for all, as epoll's; or no pidfd at all."""
    with select.epoll() as anonymous, monkeypatch.context() as patched:
        patched.setattr(os, "pidfd_open", lambda _: os.dup(anonymous.fileno()))
        assert own_pidfd_id() is None
    monkeypatch.delattr(os, "pidfd_open")
    assert own_pidfd_id() is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (listen(pid="seven"), "LISTEN_PID must be a whole number, as systemd sets it; got 'seven'"),
        (listen(pid=""), "LISTEN_PID must be a whole number"),
        (listen(fds=""), "LISTEN_FDS must be a whole number, as systemd sets it; got ''"),
        (listen(fds="-1"), "LISTEN_FDS must be a whole number"),
        (listen(fds="1.0"), "LISTEN_FDS must be a whole number"),
        (listen(fds="\u0663"), "LISTEN_FDS must be a whole number"),
        (listen(fds="1_0"), "LISTEN_FDS must be a whole number"),
        (listen(fds=" 1"), "LISTEN_FDS must be a whole number"),
        (listen(fds="9" * 5000), "LISTEN_FDS must be a whole number"),
        (listen(fds=99999999), "LISTEN_FDS must be at most 1048576, got 99999999"),
        (
            listen() | {"LISTEN_PIDFDID": "0x12"},
            "LISTEN_PIDFDID must be a whole number, as systemd sets it; got '0x12'",
        ),
        (listen() | {"LISTEN_PIDFDID": ""}, "LISTEN_PIDFDID must be a whole number"),
        (listen() | {"LISTEN_PIDFDID": "-1"}, "LISTEN_PIDFDID must be a whole number"),
        (listen(fds=2, names="web"), "LISTEN_FDNAMES must hold a name for each of the 2 descriptors .* got 'web'"),
        (listen(fds=1, names="web:"), "LISTEN_FDNAMES must hold a name for each of the 1"),
    ],
)
def test_malformed_variables_are_refused(environment: dict[str, str], message: str) -> None:
    """With the variable's name, what it holds and what it should."""
    with pytest.raises(ValueError, match=message):
        listen_names(environment, 7)


# Of few characters, since Hypothesis takes seconds to learn all that Unicode has.
texts = st.text("0123456789:-_. aZ@/\0\n\u00e4\u0663", max_size=12) | st.text("0123:", max_size=4)


VARIABLES = ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"]


@given(st.dictionaries(st.sampled_from(VARIABLES), texts), st.integers(0, 30))
@example({"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": ":"}, 7)
def test_any_environment_has_names_or_is_refused(environment: dict[str, str], pid: int) -> None:
    """Names for as many as LISTEN_FDS says and for nobody else, or an error that names the variable."""
    try:
        names = listen_names(environment, pid)
    except ValueError as exc:
        assert str(exc).startswith(tuple(f"{name} must" for name in VARIABLES))
        return
    if names:
        assert int(environment["LISTEN_PID"]) == pid
        assert len(names) == int(environment["LISTEN_FDS"])
        assert ":".join(names) == environment.get("LISTEN_FDNAMES", ":".join(["unknown"] * len(names)))


@given(st.lists(st.text("abcXYZ019._ -", max_size=12), min_size=1), st.integers(1, 1 << 22))
def test_names_come_back_as_systemd_wrote_them(names: list[str], pid: int) -> None:
    """Whatever names a unit may have, for any process number."""
    assert listen_names(listen(pid, len(names), ":".join(names)), pid) == names


@given(st.dictionaries(st.sampled_from(["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"]), texts), st.integers(1, 99))
def test_no_environment_keeps_a_program_from_serving(environment: dict[str, str], pid: int) -> None:
    """Telling systemd is never a reason to fail."""
    address = notify_address(environment)
    assert address is None or address[0] in "/\0"
    assert watchdog_seconds(environment, pid) > 0


@pytest.mark.parametrize(
    ("text", "address"),
    [("/run/notify", "/run/notify"), ("@abstract", "\0abstract"), ("", None), ("@", None), ("vsock:2:1", None)],
)
def test_address_to_notify(text: str, address: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """A path or an abstract name; what else there may be is told in the log."""
    assert notify_address({"NOTIFY_SOCKET": text}) == address
    assert ("must be a path, or @ and an abstract name" in caplog.text) == (bool(text) and address is None)


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, float("inf")),
        ({"WATCHDOG_USEC": "30000000"}, 30),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, float("inf")),
        ({"WATCHDOG_USEC": "0"}, float("inf")),
        ({"WATCHDOG_USEC": "soon"}, float("inf")),
    ],
)
def test_watchdog(environment: dict[str, str], seconds: float, caplog: pytest.LogCaptureFixture) -> None:
    """Seconds, for the process that it is for; sd_watchdog_enabled(3)."""
    assert watchdog_seconds(environment, 7) == seconds
    assert ("the watchdog is not told" in caplog.text) == ("soon" in environment.values())


# -- telling


STATS = [ServerStats(accepted=2, active=1), ServerStats(datagrams_received=5, failed=1, datagrams_dropped=3)]


def test_without_systemd_nothing_is_told() -> None:
    """And nothing fails, costs a descriptor, or needs a timer."""
    with NotifySocket(None, 30.0) as notify:
        assert notify.pulse_every == notify.watchdog == float("inf")
        notify.ready()
        notify.reloading()
        notify.pulse(STATS)
        notify.stopping()


@either_address
def test_each_state_is_told(systemd: Systemd) -> None:
    """With the words that systemd knows, and a status for people."""
    with NotifySocket(systemd.variable.replace("@", "\0"), 4.0) as notify:
        assert notify.pulse_every == 2.0
        notify.pulse(STATS)
        counts = "1 active, 2 connections, 5 datagrams, 1 failed, 0 refused, 3 dropped"
        assert systemd.next() == {"WATCHDOG": "1", "STATUS": f"starting: {counts}"}
        notify.ready()
        assert systemd.next() == {"READY": "1", "STATUS": "serving"}
        before = time.monotonic_ns() // 1000
        notify.reloading()
        message = systemd.next()
        assert before <= int(message.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
        assert message == {"RELOADING": "1", "STATUS": "reloading"}
        notify.ready(", but")
        assert systemd.next() == {"READY": "1", "STATUS": "serving, but"}
        notify.stopping()
        notify.stopping()
        assert systemd.next() == {"STOPPING": "1", "STATUS": "draining"}
        notify.pulse([])
        assert systemd.next()["STATUS"].startswith("draining: 0 active")


def test_without_a_watchdog_the_status_is_told_every_five_seconds(systemd: Systemd) -> None:
    """Nobody looks more often."""
    with NotifySocket(systemd.variable.replace("@", "\0")) as notify:
        assert notify.pulse_every == 5.0
        assert notify.watchdog == float("inf")


def test_states_wait_until_systemd_reads(systemd: Systemd) -> None:
    """What it has no room for is told in order as soon as it has; pulses of that time are not."""
    address = systemd.variable.replace("@", "\0")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, NotifySocket(address) as notify:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"STATUS=other", address)
        notify.ready()
        notify.pulse(STATS)
        notify.reloading()
        notify.ready()
        assert {tuple(message) for message in systemd.queued()} == {("STATUS",)}
        notify.pulse(STATS)
        told = [next(iter(message)) for message in systemd.queued()]
        assert told == ["READY", "RELOADING", "READY", "WATCHDOG"]


def test_systemd_that_is_gone_is_no_error(systemd: Systemd, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, whatever else is to be told; and it is told again should it come back."""
    caplog.set_level(logging.DEBUG, "asyncserver")
    systemd.sock.close()
    with NotifySocket(systemd.variable.replace("@", "\0")) as notify:
        notify.ready()
        notify.pulse(STATS)
        notify.stopping()
    assert [one.levelname for one in caplog.records] == ["WARNING", "DEBUG", "DEBUG"]
    assert "systemd cannot be told about this program, at NOTIFY_SOCKET=" in caplog.text


# -- systemd's own tools


needs = shutil.which


@pytest.mark.skipif(not needs("systemd-socket-activate"), reason="systemd-socket-activate is not installed")
def test_started_by_systemd_socket_activate(folder: Path) -> None:
    """The real one, which starts the program for its first client."""
    address = str(folder / "u.sock")
    starter = [str(needs("systemd-socket-activate")), "--listen", address, "--fdname", "web"]
    command = [sys.executable, "-W", "error", "-m", "asyncserver", "app:handler", "--unix", "systemd:web"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    passing = [f"--setenv={name}={value}" for name, value in environment.items()]
    with subprocess.Popen(
        [*starter, *passing, *command], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            while "Listening on" not in process.stderr.readline():
                assert process.poll() is None
            for _ in range(2):
                assert re.fullmatch(rf"1 {process.pid} \[\] \[\]", ask(address))
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


UNITS = sorted((ROOT / "docs/systemd").glob("asyncserver*"))


@pytest.mark.skipif(not needs("systemd-analyze"), reason="systemd-analyze is not installed")
def test_units_are_right(tmp_path: Path) -> None:
    """systemd-analyze finds nothing wrong with them."""
    analyze = str(needs("systemd-analyze"))
    version = int(subprocess.run([analyze, "--version"], capture_output=True, text=True, check=True).stdout.split()[1])
    for unit in UNITS:
        text = unit.read_text().replace("/opt/example/.venv/bin/python", sys.executable)
        if version < 253:  # which does not know it; the unit says what to write instead
            text = text.replace("Type=notify-reload", "Type=notify\nExecReload=/bin/kill -HUP $MAINPID")
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", *map(str, tmp_path.iterdir())], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_units_start_what_the_command_line_understands() -> None:
    """Their options exist, and the names are those that the socket unit gives."""
    services = [unit for unit in UNITS if unit.suffix == ".service"]
    assert len(services) == 2
    named = {
        name for unit in UNITS for name in re.findall(r"^FileDescriptorName=(.*)$", unit.read_text(), re.MULTILINE)
    }
    for unit in services:
        text = unit.read_text().replace("\\\n", " ")
        (command,) = re.findall(r"^ExecStart=\S+ -m asyncserver (.*)$", text, re.MULTILINE)
        options = make_parser("").parse_args(command.split())
        places = [place for places in vars(options).values() if isinstance(places, list) for place in places]
        assert {place["systemd"] for place in places if "systemd" in place} <= named
