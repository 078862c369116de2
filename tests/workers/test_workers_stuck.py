"""Workers whose loop is blocked: told, asked where they are, killed and replaced."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

import asyncserver
from tests.kit.monitoring import get, monitored
from tests.kit.waiting import side_by_side
from tests.kit.workers import Start, WorkerClient, ask, both_workers

if TYPE_CHECKING:
    from tests.kit.workers import WorkerProgram

STUCK = """
import app, asyncio, re, signal, time

def somewhere(how):
    if how == b"deaf":  # to the signal that asks where it is
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    if how == b"computing":  # in C, and no other thread gets a turn
        re.match("(a+)+$", "a" * 100 + "b")
    time.sleep(1000)

async def handler(stream):
    while line := await stream.receive_until(b"\\n", 100):
        if line in (b"sleeping", b"computing", b"deaf"):
            somewhere(line)
        name, size, seconds = line.split()
        address = "{}:{}".format(*stream.peer_address).encode()
        await stream.send(b"1 %d %b %b %b\\n" % (app.os.getpid(), size, name, address) + bytes(int(size)))
"""


def begin(start: Start, *options: str) -> WorkerProgram:
    (start.folder / "stuck.py").write_text(STUCK)
    return start("--tcp", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *options, handler="stuck:handler")


HOW = {
    "sleeping": r'File ".*stuck\.py", line 9 in somewhere',
    "computing": r'File ".*stuck\.py", line 8 in somewhere',
    "deaf": "it has not told where",
}


def test_stuck_worker_is_told_of_and_replaced(start: Start) -> None:
    """With its Python stack in the log; who waits for it is served by its successor, and the program is ready again."""
    programs = {how: begin(start, "--stuck-timeout", "2") for how in HOW}
    side_by_side(lambda how: is_told_of_and_replaced(programs[how], how), HOW)


def is_told_of_and_replaced(program: WorkerProgram, how: str) -> None:
    port = monitored(program)
    (tcp,) = program.serving()
    with WorkerClient(tcp) as client:
        client.sock.sendall(f"{how}\n".encode())
        pid = program.expect(r"worker (\d+) has said nothing for 2 s: does a handler block\?")[1]
        assert get(port, "/ready")[0] == 503
        program.expect(rf"worker {pid} is killed, its loop has been stuck for 2 s:")
        program.expect(HOW[how])
        program.expect(rf"worker {pid} ended by signal 9, and its connections with it; the next one starts in 0 s")
        program.serving()
        assert get(port, "/ready")[0] == 200
        with pytest.raises(ConnectionResetError):
            client.head()
    one, other = both_workers(tcp)
    with one, other:
        assert int(pid) not in {one.ask()[1], other.ask()[1]}
    assert program.end() == 0


def test_clients_in_the_queue_of_a_stuck_worker_are_served(start: Start) -> None:
    """None is refused or reset."""
    program = begin(start, "--stuck-timeout", "1")
    (tcp,) = program.serving()
    with WorkerClient(tcp) as client:
        client.sock.sendall(b"sleeping\n")
        program.expect("has said nothing for 1 s")
        for _ in range(20):
            ask(tcp)  # for half of them, when the successor serves
    program.serving()
    assert program.end() == 0


LEFT_ALONE = """
import logging, os, sys, time
import asyncserver, asyncserver.workers.watchdog as watchdog
watchdog._SILENCE, watchdog._REPORT_EVERY = 1, 0.2
logging.basicConfig(level="INFO")
async def handler(stream):
    async for data in stream:
        while not os.path.exists("released"):
            time.sleep(0.01)
        await stream.send(data)
asyncserver.run(asyncserver.serve(handler, "127.0.0.1", 0), loop=sys.argv[1], workers=2, stuck_timeout=0)
"""


def test_without_a_limit_a_stuck_worker_is_told_of_and_left_alone(start: Start) -> None:
    """0, as for a debugger."""
    program = start(script=LEFT_ALONE)
    (tcp,) = program.serving()
    with WorkerClient(tcp) as client:
        client.sock.sendall(b"question")
        program.expect("has said nothing for 1 s: does a handler block")
        (program.folder / "released").touch()
        assert client.file.read(8) == b"question"
    assert program.end() == 0
    assert not re.search("killed|ended by", program.errors)


@pytest.mark.parametrize(("seconds", "error"), [(-1, ValueError), ("5", TypeError), (None, TypeError)])
def test_wrong_stuck_timeout_is_told_at_once(seconds: Any, error: type[Exception]) -> None:
    """Whether there are workers or not."""

    async def handler(stream: asyncserver.Stream) -> None:
        """Is never called."""

    with pytest.raises(error, match="stuck_timeout must be"):
        asyncserver.run(asyncserver.serve(handler, "127.0.0.1", 0), stuck_timeout=seconds)
