"""What a program tells systemd, on a real Unix socket: ready, reloading, stopping, stuck."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.kit.programs import LOOPS, Program
from tests.kit.systemd import LineClient, Start, Systemd, ask, either_address, write_app
from tests.kit.waiting import PATIENCE


class Told:
    """A program that tells systemd, serving on a Unix socket of its own, and what a client of it can find out."""

    def __init__(self, folder: Path, systemd: Systemd, workers: int, watchdog: float | None, *options: str) -> None:
        self.systemd = systemd
        self.address = str(folder / "u.sock")
        # Versions of the handler's module are written within a second.
        environment = {"NOTIFY_SOCKET": systemd.variable, "PYTHONDONTWRITEBYTECODE": "1"}
        if watchdog is not None:
            environment["WATCHDOG_USEC"] = str(int(watchdog * 1e6))
        arguments = ["-W", "error", "-m", "asyncserver", "app:handler", "--unix", self.address]
        self.program = Program([*arguments, "--workers", str(workers), *options], folder, **environment)

    def tell(self, number: int) -> None:
        self.program.process.send_signal(number)


@pytest.fixture(params=[1, 2], ids=["one process", "workers"])
def start(request: pytest.FixtureRequest, folder: Path, systemd: Systemd) -> Iterator[Start]:
    """Start the command line, in one process and with two workers."""
    with contextlib.ExitStack() as stack:

        def start(watchdog: float | None = None, *options: str) -> Told:
            told = Told(folder, systemd, request.param, watchdog, *options)
            stack.enter_context(told.program)
            return told

        start.workers = request.param  # type: ignore[attr-defined]
        yield start


@either_address
@pytest.mark.parametrize("loop", LOOPS)
def test_ready_is_told_when_it_serves_and_stopping_when_it_drains(start: Start, systemd: Systemd, loop: str) -> None:
    """Who hears READY can connect; STOPPING comes at the first signal, while what runs goes on, and once."""
    told = start(None, "--loop", loop)
    assert systemd.next() == {"READY": "1", "STATUS": "serving"}
    with LineClient(told.address) as client:
        assert re.fullmatch(r"1 \d+ \[\] \[\]", client.ask()), "systemd's variables are gone, nothing is inherited"
        client.sock.sendall(b"te")
        told.tell(signal.SIGTERM)
        assert systemd.expect("STOPPING")["STATUS"] == "draining"
        assert client.ask("ll")
    assert told.program.wait() == 0
    assert systemd.queued() == []


def test_stopping_is_told_once_when_told_twice_to_stop(start: Start, systemd: Systemd) -> None:
    """The second signal changes the drain, not the state."""
    told = start()
    systemd.expect("READY")
    with LineClient(told.address) as client:
        client.ask()
        client.sock.sendall(b"te")
        told.tell(signal.SIGTERM)
        systemd.expect("STOPPING")
        told.tell(signal.SIGINT)
        assert told.program.wait() == 0
    assert systemd.queued() == []


def test_pulses_tell_that_it_lives_and_what_it_has_done(start: Start, systemd: Systemd) -> None:
    """Twice in the watchdog's time, with the counters of all workers."""
    told = start(0.4)
    systemd.expect("READY")
    for _ in range(3):
        ask(told.address)
    systemd.expect("WATCHDOG", "serving: 0 active, 3 connections")
    for _ in range(5):
        assert systemd.next()["WATCHDOG"] == "1"
    told.tell(signal.SIGTERM)
    systemd.expect("STOPPING")
    assert told.program.wait() == 0


def test_reload_is_told_from_beginning_to_end(start: Start, systemd: Systemd, folder: Path) -> None:
    """Type=notify-reload: RELOADING not before the signal, READY when the new code serves."""
    told = start()
    systemd.expect("READY")
    for version in (2, 3):
        write_app(folder, version)
        before = time.monotonic_ns() // 1000
        told.tell(signal.SIGHUP)
        assert before <= int(systemd.expect("RELOADING")["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert systemd.expect("READY")["STATUS"] == "serving"
        if start.workers > 1:  # the old ones may accept until they hear that they are to leave
            deadline = time.monotonic() + PATIENCE
            while not ask(told.address).startswith(f"{version} "):
                assert time.monotonic() < deadline
    told.tell(signal.SIGTERM)
    systemd.expect("STOPPING")
    assert told.program.wait() == 0


def test_reload_that_fails_is_ready_too_and_says_so(start: Start, systemd: Systemd, folder: Path) -> None:
    """systemd knows no failed reload: what served before serves on, and `systemctl status` shows what is wrong."""
    pem = folder / "server.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    told = start(None, "--certfile", str(pem))
    systemd.expect("READY")
    pem.write_text("no certificate")
    told.tell(signal.SIGHUP)
    systemd.expect("RELOADING")
    assert re.match(r"serving, but new .* could not .* \(see the log\)", systemd.expect("READY")["STATUS"])
    told.tell(signal.SIGTERM)
    systemd.expect("STOPPING")
    assert told.program.wait() == 0


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("start", [1], indirect=True, ids=["one process"])
def test_loop_that_is_stuck_stops_pinging(start: Start, systemd: Systemd, loop: str, folder: Path) -> None:
    """So that systemd notices; and it pings again when it goes on."""
    told = start(0.4, "--loop", loop)
    systemd.expect("READY")
    with LineClient(told.address) as client:
        assert client.ask("block") == "blocked"
        systemd.queued()
        systemd.expect_silence(1)
        (folder / "released").touch()
        systemd.expect("WATCHDOG")
        assert client.answer()
    told.tell(signal.SIGTERM)
    systemd.expect("STOPPING")
    assert told.program.wait() == 0


@pytest.mark.parametrize("start", [2], indirect=True, ids=["workers"])
def test_worker_that_is_stuck_is_replaced_where_systemd_watches(start: Start, systemd: Systemd) -> None:
    """The supervisor pings on, and ends the worker as systemd would end a program."""
    told = start(0.4)
    systemd.expect("READY")
    with LineClient(told.address) as client:
        pid = client.ask().split()[1]
        assert client.ask("block") == "blocked"
        systemd.queued()
        for _ in range(5):
            systemd.expect("WATCHDOG")
        told.program.wait_for(f"worker {pid} has said nothing for 3 s: does a handler block?")
        told.program.wait_for(f"worker {pid} is killed, its loop has been stuck for 3 s:")
        told.program.wait_for("app.py")
        told.program.wait_for(f"worker {pid} ended by signal 6")
        assert client.file.readline() == b""
    assert ask(told.address).split()[1] != pid
    told.tell(signal.SIGTERM)
    systemd.expect("STOPPING")
    assert told.program.wait() == 0


SCRIPT = """
import logging, sys, app, asyncserver, asyncserver.workers.watchdog as watchdog
logging.basicConfig(level="INFO")
watchdog._SILENCE, watchdog._LEAST_SILENCE, watchdog._REPORT_EVERY = 2, 2, 0.2
asyncserver.run(asyncserver.serve(app.handler, path=sys.argv[1]), workers=2)
"""


def test_worker_that_is_stuck_is_told_of_each_time(folder: Path) -> None:
    """Within `stuck_timeout` it is left alone: a blocking handler may come to its end."""
    released = folder / "released"
    with Program(["-W", "error", "-c", SCRIPT, "u.sock"], folder) as program:
        program.wait_for("2 workers serve")
        with LineClient(str(folder / "u.sock")) as client:
            pid = client.ask().split()[1]
            for times in (1, 2):
                released.unlink(missing_ok=True)
                assert client.ask("block") == "blocked"
                program.wait_for(f"worker {pid} has said nothing for 2 s", times)
                released.touch()
                assert client.answer().split()[1] == pid
                program.process.send_signal(signal.SIGUSR1)  # so that it has something to say
                program.wait_for("on unix:u.sock: ", times)
                assert program.errors.count(f"worker {pid} has said nothing for 2 s") == times
        program.process.terminate()
        assert program.wait() == 0


def test_workers_that_were_stopped_with_their_supervisor_are_not_blamed(folder: Path, systemd: Systemd) -> None:
    """A frozen machine is not a stuck loop, although nothing has been said for long when it goes on."""
    variables = {"NOTIFY_SOCKET": systemd.variable, "WATCHDOG_USEC": "1000000"}
    with Program(["-W", "error", "-c", SCRIPT, "u.sock"], folder, **variables) as program:
        systemd.expect("READY")
        workers: set[int] = set()
        deadline = time.monotonic() + PATIENCE
        while len(workers) < 2:
            workers.add(int(ask(str(folder / "u.sock")).split()[1]))
            assert time.monotonic() < deadline
        everybody = [program.process.pid, *workers]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        systemd.queued()
        systemd.expect_silence(3.5)
        for pid in everybody:  # the supervisor first
            os.kill(pid, signal.SIGCONT)
        for _ in range(4):
            systemd.expect("WATCHDOG")
        assert int(ask(str(folder / "u.sock")).split()[1]) in workers
        assert "said nothing" not in program.errors
        program.process.terminate()
        assert program.wait() == 0
