"""Worker processes: real ones, started from the command line and from code, spread over, killed and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver import ServerStats
from asyncserver.listening.binding import Binding
from asyncserver.workers import process as _worker
from tests.kit.traffic import Load
from tests.kit.waiting import PATIENCE
from tests.kit.workers import Start, WorkerClient, ask, ask_udp, both_workers, ended


def test_both_workers_serve_tcp_and_udp_and_unix(start: Start, tmp_path: Path) -> None:
    """The kernel spreads clients over the workers; SIGUSR1 logs the sum of their counters."""
    program = start("--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--unix", "u.sock")
    tcp, udp = program.serving()
    connections = Counter(ask(tcp)[1] for _ in range(100))
    datagrams = Counter(ask_udp(udp, b"x")[1] for _ in range(100))
    assert connections.keys() == datagrams.keys()
    assert len(connections) == 2
    assert min(*connections.values(), *datagrams.values()) > 15  # 50 give or take; less than 16 in 100: 1e-12
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "u.sock"))
        client.sendall(b"x 0 0\n")
        assert int(client.recv(99).split()[1]) in connections
    program.tell(signal.SIGUSR1)
    assert program.expect(rf"on tcp://127\.0\.0\.1:{tcp}: .*accepted=(\d+)")[1] == "100"
    assert program.expect(r"on unix:u\.sock: .*accepted=(\d+)")[1] == "1"
    assert program.expect(rf"on udp://127\.0\.0\.1:{udp}: .*datagrams_received=(\d+)")[1] == "100"
    assert program.end() == 0
    assert not (tmp_path / "u.sock").exists()


def test_a_second_program_on_the_port_is_refused(start: Start) -> None:
    """Workers share a port with each other, not with whoever comes by accident."""
    first = start()
    tcp, udp = first.serving()
    for option, port in (("--tcp", tcp), ("--udp", udp)):
        second = start(option, f"127.0.0.1:{port}")
        assert second.process.wait(20) == 1
        second.expect("it is taken")
    assert first.end() == 0


def test_killed_worker_breaks_its_own_connections_only_and_is_replaced_within_a_second(start: Start) -> None:
    """kill -9 under load: the other worker's connections go on, and the queue of the dead one is served."""
    program = start()
    tcp, _ = program.serving()
    victim, other = both_workers(tcp)
    before = {victim.ask()[1], other.ask()[1]}

    def job(count: Counter[str]) -> None:
        try:
            count["new"] += ask(tcp)[1] not in before
            count["answered"] += 1
        except (ConnectionError, AssertionError):
            count["broken"] += 1

    with victim, other, Load(*[job] * 4) as load:
        load.wait_for("answered", 100)
        pid = victim.ask()[1]
        os.kill(pid, signal.SIGKILL)
        load.wait_for("new", 1)
        load.wait_for("answered", 200)
        for _ in range(3):
            assert other.ask()[1] != pid
        with pytest.raises(ConnectionError):
            victim.ask()
    assert not load.errors
    assert load.count["broken"] <= 4  # that each of the four had with the victim just then
    program.expect("ended by signal 9, and its connections with it; the next one starts in 0 s")
    assert program.end() == 0


def test_worker_that_keeps_dying_is_replaced_ever_later(start: Start) -> None:
    """Back-off per slot: at once, then after 0.1, 0.2, ... seconds."""
    program = start()
    tcp, _ = program.serving()
    delays = []
    for _ in range(7):
        with WorkerClient(tcp) as client:
            client.sock.sendall(b"die\n")
            with contextlib.suppress(ConnectionResetError):
                assert client.sock.recv(1) == b""
        delays.append(program.expect(r"status 3, .*starts in ([\d.]+) s")[1])
    # Which of the two slots it was is the kernel's choice: seven deaths are at least four in one of them.
    assert delays[0] == "0"
    assert "0.2" in delays
    assert set(delays) <= {"0", "0.1", "0.2", "0.4", "0.8", "1.6", "3.2"}  # all seven in one, at the worst
    assert ask(tcp)
    assert program.end() == 0


def test_killed_supervisor_lets_workers_drain_and_leave(start: Start) -> None:
    """kill -9 of the supervisor: what runs is answered, then the workers end and the port is free."""
    program = start()
    tcp, _ = program.serving()
    one, other = both_workers(tcp)
    with one, other:
        gone = [ended(client.ask()[1]) for client in (one, other)]
        one.send(1000, 0.5)
        _, _, size = one.head()
        program.tell(signal.SIGKILL)
        program.expect("the supervisor is gone")
        one.rest(size)
        assert other.file.read(1) == b""
        assert all(wait(10) for wait in gone)
    with pytest.raises(ConnectionRefusedError):
        WorkerClient(tcp)


def test_program_that_cannot_start_ends_with_its_reason(start: Start) -> None:
    """Workers that never served are not started again and again."""
    program = start(handler="app:nosuch")
    assert program.process.wait(20) == 1
    program.expect("ValueError: module 'app' has no 'nosuch'")
    program.expect("ended with status 1 before all workers served")


NO_SECOND_FORK = """
import itertools, os, sys
from pathlib import Path
import asyncserver, app

calls, fork = itertools.count(1), os.fork

def fork_once():
    if next(calls) > 1:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()

os.fork = fork_once
before = os.listdir("/proc/self/fd")
try:
    asyncserver.run(asyncserver.serve(app.handler, "127.0.0.1", 0), loop=sys.argv[1], workers=2)
except BlockingIOError:
    assert os.listdir("/proc/self/fd") == before
    assert Path("/proc/self/task", str(os.getpid()), "children").read_text() == ""
    print("nothing is left", file=sys.stderr)
"""


THREADED = """
import logging, sys, threading
import asyncserver, app

logging.basicConfig(level="INFO")
threading.Thread(target=threading.Event().wait, daemon=True).start()
asyncserver.run(asyncserver.serve(app.handler, "127.0.0.1", 0), loop=sys.argv[1], workers=2)
"""


def test_warning_of_threads_that_is_an_error_does_not_lose_a_worker(start: Start) -> None:
    """Python 3.15 raises it in the parent, when the child is there; at the start, and at each reload."""
    program = start(script=THREADED)
    (tcp,) = program.serving()
    program.tell(signal.SIGHUP)
    program.serving()
    ask(tcp)
    assert program.end() == 0


def test_start_that_fails_leaves_nothing(start: Start) -> None:
    """No process, also no dead one, and no descriptor: the program may go on."""
    program = start(script=NO_SECOND_FORK)
    program.expect("nothing is left")
    assert program.process.wait(PATIENCE) == 0


CHILDREN_IGNORED = """
import logging, signal, sys
import asyncserver, app

logging.basicConfig(level=logging.INFO)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
asyncserver.run(asyncserver.serve(app.handler, "127.0.0.1", 0), loop=sys.argv[1], workers=2)
assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
"""


def test_dead_worker_is_replaced_where_sigchld_was_ignored(start: Start) -> None:
    """As a program may be started; afterwards it is ignored again."""
    program = start(script=CHILDREN_IGNORED)
    (tcp,) = program.serving()
    with WorkerClient(tcp) as client:
        client.sock.sendall(b"die\n")
        program.expect("status 3, .*starts in 0 s")
    program.serving()
    assert ask(tcp)
    assert program.end() == 0


MANY = """
import logging, sys
import asyncserver, app
from asyncserver.workers import process as _worker

logging.basicConfig(level=logging.INFO)
logging.root.handlers[0].setFormatter(asyncserver.JSONFormatter())
servings = [asyncserver.serve(app.handler, "127.0.0.1", 0) for _ in range(_worker.MOST_SERVERS)]
asyncserver.run(*servings, loop=sys.argv[1], workers=2, metrics="127.0.0.1:0")
"""


def test_counters_of_many_servers_reach_the_supervisor(start: Start) -> None:
    """As many as are promised."""
    program = start(script=MANY)
    ports = program.serving()
    assert len(ports) == _worker.MOST_SERVERS
    assert ask(ports[0])
    assert ask(ports[-1])
    assert program.end() == 0
    assert program.errors.count('"total_accepted": 1,') == 2


def test_more_servers_than_workers_can_tell_of_are_refused() -> None:
    """Before anything is bound."""
    servings = [asyncserver.serve(handler, "127.0.0.1", 0) for _ in range(_worker.MOST_SERVERS + 1)]
    with pytest.raises(ValueError, match="at most 300 servers each, got 301"):
        asyncserver.run(*servings, workers=2)


def test_readings_of_the_most_servers_fit_into_a_message() -> None:
    """Whatever they have counted: random digits are what compresses least."""
    numbers = random.Random(0)
    names = [*ServerStats.__slots__[:13], *(f"duration_{number}" for number in range(25)), "duration_sum"]
    names += [f"drain_{name}" for name in asyncserver.DrainReport.__slots__]
    readings = [{name: numbers.randrange(10**12) for name in names} for _ in range(_worker.MOST_SERVERS)]
    assert len(zlib.compress(json.dumps(readings).encode(), zlib.Z_BEST_SPEED)) < _worker.LONGEST_MESSAGE


async def handler(stream: asyncserver.Stream) -> None:
    """Is never called."""


@pytest.mark.parametrize(
    ("workers", "error"),
    [(0, ValueError), (-1, ValueError), ("2", TypeError), ("many", TypeError), (True, TypeError), (1.5, TypeError)],
)
def test_wrong_number_of_workers(workers: Any, error: type[Exception]) -> None:
    """Told before anything is bound."""
    serving = asyncserver.serve(handler, "127.0.0.1", 0)
    with pytest.raises(error, match=r"workers must be .*, got"):
        asyncserver.run(serving, workers=workers)
    serving.close()


async def test_workers_in_a_running_loop_are_refused() -> None:
    """A loop cannot be forked."""
    serving = asyncserver.serve(handler, "127.0.0.1", 0)
    with pytest.raises(RuntimeError, match="no event loop"):
        asyncserver.run(serving, workers=2)
    with pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(asyncserver.run, serving, workers=2)
    serving.close()


async def test_slots_share_what_the_system_cannot_multiply(tmp_path: Path) -> None:
    """A Unix socket and one that is given are one for all; an address has a socket for each, on one port."""
    binding = Binding(["127.0.0.1", "::1"], 0)
    slots = binding.open_slots(socket.SOCK_STREAM, 3)
    assert len({bound.sock.fileno() for slot in slots for bound in slot}) == 6
    assert len({bound.sock.getsockname()[1] for slot in slots for bound in slot}) == 1
    shared = Binding(path=tmp_path / "u").open_slots(socket.SOCK_DGRAM, 2)
    assert shared[0][0] is shared[1][0]
    for bound in (one for slot in (*slots, *shared) for one in slot):
        bound.close()
