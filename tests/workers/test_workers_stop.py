"""How workers end: SIGTERM once, twice, three times, under load."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.kit.programs import Program
from tests.kit.traffic import Traffic
from tests.kit.waiting import wait_until
from tests.kit.workers import Start, WorkerClient, WorkerProgram, both_workers, ended


@pytest.mark.parametrize("whom", ["supervisor", "everybody"])
def test_stop_under_load_answers_all_that_was_received(start: Start, whom: str) -> None:
    """SIGTERM, to the supervisor or (as Ctrl-C and systemd do) to all: whole answers, then status 0."""
    program = start()
    tcp, _ = program.serving()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(WorkerClient(tcp)) for _ in range(10)]
        clients = [stack.enter_context(WorkerClient(tcp)) for _ in range(100)]
        for client in clients:
            client.send(100_000, 0.3)
        program.tell(signal.SIGTERM) if whom == "supervisor" else os.killpg(program.process.pid, signal.SIGINT)
        pids = set()
        for client in clients:
            _, pid, size = client.head()
            client.rest(size)
            pids.add(pid)
        assert len(pids) == 2
        assert all(client.file.read(1) == b"" for client in (*idle, *clients))
        assert program.process.wait(20) == 0
    program.expect("waiting for what runs")
    assert "again" not in program.errors
    program.expect("accepted=110, active=0, .*completed=110")


@pytest.mark.parametrize("how", ["stop", "killed supervisor"])
def test_under_constant_load_what_a_worker_has_received_is_answered(start: Start, how: str) -> None:
    """Clients keep coming, and whoever is connected is served; what crosses the end was not received by anybody."""
    WorkerProgram.write_app_for_slow_clients(start.folder)
    program = start("--tcp", "127.0.0.1:0", "--drain-timeout", "10")
    (tcp,) = program.serving()
    one, other = both_workers(tcp)
    gone = [ended(client.ask()[1]) for client in (one, other)]
    with one, other, Traffic(("127.0.0.1", tcp), stopping=True) as load:
        load.wait_for("answered", 300)
        began = time.monotonic()
        program.tell(signal.SIGKILL if how == "killed supervisor" else signal.SIGTERM)
        assert program.process.wait(20) == (-signal.SIGKILL if how == "killed supervisor" else 0)
        assert all(wait(20) for wait in gone)
        assert time.monotonic() - began < 30
    load.check(program.received())


def test_stop_answers_what_the_kernel_had_queued(start: Start) -> None:
    """Connections that no worker has accepted when SIGTERM comes are served, in the last worker's last moment."""
    program = start()
    tcp, _ = program.serving()
    one, other = both_workers(tcp)
    with one, other, contextlib.ExitStack() as stack:
        pids = [client.ask()[1] for client in (one, other)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        # More for each worker than it accepts in one go.
        clients = [stack.enter_context(WorkerClient(tcp)) for _ in range(400)]
        for client in clients:
            client.send()
        program.tell(signal.SIGTERM)
        program.expect("waiting for what runs")
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for client in clients:
            client.rest(client.head()[2])
        assert program.process.wait(20) == 0


def test_second_signal_ends_it_at_once(start: Start) -> None:
    """Handlers that would go on for long are cancelled in every worker."""
    program = start()
    tcp, _ = program.serving()
    one, other = both_workers(tcp)
    with one, other:
        for client in (one, other):
            client.send(10, 1000)
            client.head()
        program.tell(signal.SIGINT)
        program.expect("waiting for what runs")
        started = time.monotonic()
        assert program.end() == 0
        assert time.monotonic() - started < 20
    program.expect("cancelled=2")


def test_third_signal_ends_even_a_blocked_worker(start: Start) -> None:
    """A handler that blocks its loop hears of nothing; the supervisor does not wait for it for ever."""
    program = start()
    tcp, _ = program.serving()
    with WorkerClient(tcp) as client:
        client.sock.sendall(b"block\n")
        client.head()
        for number, word in ((signal.SIGTERM, "waiting"), (signal.SIGINT, "again")):
            program.tell(number)
            program.expect(word)
        assert program.end() == 0
        program.expect("has not ended in time: killed")


SLOW = """
import pathlib, time

while pathlib.Path("slow").exists():
    time.sleep(0.01)

async def handler(stream):
    async for data in stream:
        await stream.send(data.upper())
"""


def test_stop_while_new_workers_start(tmp_path: Path) -> None:
    """The old ones have ended when the new ones are ready, and are not told to leave."""
    (tmp_path / "slow_module.py").write_text(SLOW)
    arguments = ["-m", "asyncserver", "slow_module:handler", "--tcp", "127.0.0.1:0", "--workers", "2"]
    with Program(arguments, tmp_path) as program:
        program.wait_for("workers serve on")
        children = Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children")
        old = set(children.read_text().split())
        assert len(old) == 2
        (tmp_path / "slow").touch()
        program.tell(signal.SIGHUP)
        program.wait_for("starting new workers")
        wait_until(lambda: len(children.read_text().split()) == 4)
        program.tell(signal.SIGTERM)
        wait_until(lambda: not old & set(children.read_text().split()))
        (tmp_path / "slow").unlink()
        assert program.wait() == 0, program.errors
        assert "Bad file descriptor" not in program.errors
