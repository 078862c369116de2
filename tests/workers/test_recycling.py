"""Workers that have handled much, or are old, are replaced: one at a time, and nothing is lost."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import asyncserver
from asyncserver.leaving.stopping import Stopping
from asyncserver.workers.recycling import Recycling
from asyncserver.workers.slot import NEVER, Slot, Worker
from tests.kit.traffic import Load
from tests.kit.workers import Start, ask, ask_udp, both_workers

if TYPE_CHECKING:
    from tests.kit.workers import WorkerProgram

RECYCLED = r"worker (\d+) is (\d+) s old, has handled (\d+) connections and datagrams, and goes on until"


SCRIPT = """
import logging, sys, app, asyncserver
from asyncserver.workers import cpus
logging.basicConfig(level="DEBUG")
cpus.allowed_cpus = lambda: COUNT
cpus.cpu_quota = lambda: None
asyncserver.run(
    asyncserver.serve(app.handler, "127.0.0.1", 0),
    asyncserver.serve_datagrams(app.handler, "127.0.0.1", 0),
    workers="auto",
    loop=sys.argv[1],
    max_requests=50,
)
"""


def children(program: WorkerProgram) -> list[str]:
    pid = program.process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize("count", [1, 2])
def test_recycling_under_load_loses_nothing(start: Start, count: int) -> None:
    """Every connection and datagram is answered and counted; there is never more than one process too many."""
    program = start(script=SCRIPT.replace("COUNT", str(count)))
    found = program.expect(rf"{count} workers? serves? on tcp://127\.0\.0\.1:(\d+), udp://127\.0\.0\.1:(\d+)")
    tcp, udp = map(int, found.groups())
    most = 0

    def short(done: Counter[str]) -> None:
        ask(tcp, 20_000)
        done["tcp"] += 1

    def datagrams(done: Counter[str]) -> None:
        assert ask_udp(udp, b"question")[2] == b"question"
        done["udp"] += 1

    def watch(done: Counter[str]) -> None:
        nonlocal most
        most = max(most, len(children(program)))
        done["looks"] += 1

    with Load(*[short] * 3, *[datagrams] * 2, watch) as load:
        for number in range(1, 5):
            program.expect(RECYCLED)
            program.wait_for("with status 0 while it drained", number)
            load.wait_for("tcp", 50)
            load.wait_for("udp", 50)
    assert not load.errors
    assert most <= count + 1
    assert program.end() == 0
    assert program.expect(r"on tcp://.*accepted=(\d+)")[1] == str(load.count["tcp"])
    found = program.expect(r"on udp://.*datagrams_received=(\d+).*datagrams_dropped=(\d+)")
    assert found.groups() == (str(load.count["udp"]), "0")
    assert all(int(handled) >= 50 for _, _, handled in re.findall(RECYCLED, program.errors))
    assert "killed" not in program.errors


def test_worker_that_has_handled_less_stays(start: Start) -> None:
    """Only one that has handled so many is replaced, when it has reported."""
    program = start("--tcp", "127.0.0.1:0", "--max-requests", "1000")
    (tcp,) = program.serving()
    one, other = both_workers(tcp)
    with one, other:
        before = {one.ask()[1], other.ask()[1]}
        program.tell(signal.SIGUSR1)  # all report
        program.expect(r"accepted=")
        assert {one.ask()[1], other.ask()[1]} == before
    assert program.end() == 0
    assert "and goes on until" not in program.errors


def test_the_next_one_waits_until_the_one_before_has_drained(start: Start) -> None:
    """Answers under way are completed, and meanwhile the successor serves; only then the other worker is replaced."""
    program = start("--tcp", "127.0.0.1:0", "--max-requests", "100")
    (tcp,) = program.serving()

    def short(count: Counter[str]) -> None:
        ask(tcp)
        count["answers"] += 1

    one, other = both_workers(tcp)
    with one, other:
        clients = {client.ask()[1]: client for client in (one, other)}
        for client in clients.values():
            client.send(1000, "held")
            assert client.head()[2] == 1000
        with Load(short) as load:
            old = int(program.expect(RECYCLED)[1])
            program.serving()
            load.wait_for("answers", 500)
        assert not load.errors
        program.tell(signal.SIGUSR1)  # all report
        program.expect(r"accepted=")
        assert len(re.findall(RECYCLED, program.errors)) == 1
        assert len(children(program)) == 3
        (program.folder / "released").touch()
        for client in clients.values():
            client.rest(1000)
        assert clients.pop(old).file.read(1) == b""
        program.expect(rf"worker {old} ended with status 0 while it drained")
        (later,) = clients
        program.wait_for(f"worker {later} ended with status 0 while it drained")
    assert program.end() == 0


def test_old_workers_are_replaced(start: Start) -> None:
    """Also those that have nothing to do: the supervisor wakes for that."""
    program = start("--tcp", "127.0.0.1:0", "--max-age", "1")
    (tcp,) = program.serving()
    replaced = [program.expect(RECYCLED) for _ in range(2)]
    assert all(int(age) >= 1 and count == "0" for _, age, count in (found.groups() for found in replaced))
    assert len({found[1] for found in replaced}) == 2
    assert ask(tcp)
    assert program.end() == 0


def test_successor_that_cannot_start_leaves_the_old_one(start: Start) -> None:
    """It is tried again; when the code is repaired, the worker is replaced."""
    program = start("--tcp", "127.0.0.1:0", "--max-age", "1")
    (tcp,) = program.serving()
    (program.folder / "app.py").write_text("this is not Python")
    for _ in range(2):
        program.expect("with status 1 before it served: the one that serves stays")
    assert ask(tcp)[0] == 1
    program.write_app(2)
    program.serving()
    assert 2 in {ask(tcp)[0] for _ in range(50)}
    assert program.end() == 0


class Clock:
    """The time for recycling, and slots whose successors start when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stack: contextlib.ExitStack, count: int, **limits: Any) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.workers: set[Worker] = set()
        self.slots = [Slot([[]]) for _ in range(count)]
        self._stack = stack
        for slot in self.slots:
            slot.worker = self.worker(slot)
            slot.worker.serving = True
        self.renewed: list[Slot] = []
        self.recycling = Recycling(self.slots, self.workers, Stopping(0.0), self.renewed.append, **limits)
        for worker in self.workers:
            self.recycling.note_report(worker)

    def worker(self, slot: Slot) -> Worker:
        ends = [self._stack.enter_context(end) for end in socket.socketpair()]
        worker = Worker(0, slot, *ends)
        self.workers.add(worker)
        return worker


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Clock]]:
    """Make a Clock."""
    with contextlib.ExitStack() as stack:
        yield lambda count, **limits: Clock(
            monkeypatch, stack, count, **{"max_requests": None, "max_age": None} | limits
        )


def test_tries_that_fail_come_ever_later(clock: Callable[..., Clock]) -> None:
    """1, 2, 4 ... 60 seconds after a failure, so that a program that cannot start is not started without end."""
    one = clock(1, max_age=100.0)
    delays = []
    one.now = one.recycling.due
    for number in range(1, 9):
        one.recycling.expire()
        assert len(one.renewed) == number
        one.slots[0].successor = one.worker(one.slots[0])
        assert one.recycling.due == NEVER
        one.now += 5
        one.slots[0].successor = None  # it has died
        one.recycling.expire()
        delays.append(one.recycling.due - one.now)
        one.now = one.recycling.due
    assert delays == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60])


def test_try_that_succeeds_makes_the_next_one_prompt(clock: Callable[..., Clock]) -> None:
    """Failures of long ago do not count."""
    one = clock(1, max_age=100.0)
    (slot,) = one.slots
    one.now = one.recycling.due
    for _ in range(2):  # both fail: the supervisor here starts nothing
        one.recycling.expire()
        one.recycling.expire()
        one.now = one.recycling.due
    one.recycling.expire()
    assert slot.worker is not None
    one.workers.remove(slot.worker)
    slot.worker = one.worker(slot)
    slot.worker.serving = True
    one.recycling.note_report(slot.worker)
    one.recycling.expire()
    one.now = one.recycling.due
    one.recycling.expire()
    one.recycling.expire()
    assert one.recycling.due - one.now == pytest.approx(1)


def test_limits_are_exceeded_by_a_tenth_at_most(clock: Callable[..., Clock]) -> None:
    """At random, so that workers that have begun together do not end together."""
    many = clock(100, max_age=1000.0, max_requests=1000)
    ages = sorted(worker.recycle_at - worker.started for worker in many.workers)
    assert 1000 <= ages[0] < 1030  # three tenths of them are less, and more
    assert 1070 < ages[-1] <= 1100
    for count, enough in ((999, set()), (1050, {True, False}), (1100, {True})):
        found = set()
        for worker in many.workers:
            worker.readings = [{"accepted": count - 9, "datagrams_dropped": 5000}, {"datagrams_received": 9}]
            many.recycling.note_report(worker)
            found.add(worker.recycle_at == worker.started)
        assert found - {False} == enough - {False}
        assert enough - found == set()


def test_nothing_is_recycled_while_the_program_stops(clock: Callable[..., Clock]) -> None:
    """Nor where a slot is empty, or a worker of SIGHUP drains."""
    two = clock(2, max_requests=1)
    for worker in two.workers:
        worker.readings = [{"accepted": 1}]
        two.recycling.note_report(worker)
    assert two.recycling.due <= two.now
    draining = two.worker(two.slots[0])
    draining.leaving = True
    assert two.recycling.due == NEVER
    two.workers.remove(draining)
    kept, two.slots[0].worker = two.slots[0].worker, None
    assert two.recycling.due == NEVER
    two.slots[0].worker = kept
    assert two.recycling.due <= two.now
    two.recycling._stopping.fail()
    two.recycling.expire()
    assert not two.renewed
    assert two.recycling.due == NEVER


def test_worker_of_one_process_cannot_be_recycled() -> None:
    """It has no other that takes over."""

    async def handler(stream: asyncserver.Stream) -> None:
        """Is never called."""

    def run(**options: Any) -> None:
        asyncserver.run(asyncserver.serve(handler, "127.0.0.1", 0), **options)

    with pytest.raises(ValueError, match="max_requests has no effect without workers: give workers=2 or more"):
        run(max_requests=5)
    with pytest.raises(ValueError, match="max_age has no effect without workers"):
        run(max_age=5.0, workers=1)
    with pytest.raises(ValueError, match="max_requests must be at least 1, got 0"):
        run(max_requests=0, workers=2)
    with pytest.raises(TypeError, match=r"max_requests must be a whole number, got 1\.5"):
        run(max_requests=1.5, workers=2)
    with pytest.raises(ValueError, match="max_age must be more than 0 seconds, got 0"):
        run(max_age=0, workers="auto")
    with pytest.raises(TypeError, match="max_age must be a number of seconds, got '5'"):
        run(max_age="5", workers=2)
