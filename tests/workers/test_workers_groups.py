"""Workers and `--group`: one of them answers, also while they are replaced; what the command line says of groups."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.kit.networks import INTERFACE, in_own_network
from tests.kit.programs import ROOT
from tests.kit.waiting import PATIENCE
from tests.kit.workers import Start, WorkerProgram
from tests.workers.test_workers_broadcasts import ask_all, sender


def serve(start: Start, *options: str) -> tuple[WorkerProgram, int]:
    program = start(*options)
    return program, int(program.expect(r"2 workers serve on udp://.*:(\d+)")[1])


@pytest.mark.parametrize(
    ("host", "group", "own"),
    [("0.0.0.0", "239.1.2.9", "10.9.0.5"), ("[::]", "ff02::114", "fd00:9::5"), ("239.1.2.9", "239.1.2.9", "")],
)
@in_own_network
def test_group_is_answered_once(start: Start, host: str, group: str, own: str) -> None:
    """Each datagram is received, answered and counted by one worker, and no copy is dropped."""
    program, port = serve(start, "--udp", f"{host}:0", "--group", f"{group}%{INTERFACE}")
    scope = (0, socket.if_nametoindex(INTERFACE)) if ":" in group else ()
    if own:
        ((answer, source),) = ask_all(program, (group, port, *scope), (own, port), INTERFACE)
        assert answer.endswith(b"to many")
        assert source[1] == port
    else:
        with sender((group, port), INTERFACE) as sock:
            sock.sendto(b"to many", (group, port))
            assert sock.recv(1000).endswith(b"to many")
    assert program.end() == 0


@in_own_network
def test_rolling_reload_keeps_one_that_answers(start: Start) -> None:
    """While workers are replaced, and after: each datagram has one answer, and new code gives it in the end."""
    group = "239.1.2.9"
    program, port = serve(start, "--udp", "0.0.0.0:0", "--group", f"{group}%{INTERFACE}")
    with sender((group, port), INTERFACE) as sock:
        for reload in (1, 2):
            program.write_app(reload + 1)
            program.tell(signal.SIGHUP)
            answered = b""
            number = 0
            while not answered.startswith(b"%d " % (reload + 1)):
                question = b"question %d.%d" % (reload, number)
                sock.sendto(question, (group, port))
                answered = sock.recv(1000)
                assert answered.endswith(question), "an answer twice, or to another"
                number += 1
            program.serving()
            program.wait_for("with status 0 while it drained", 2 * reload)
        sock.sendto(b"last", (group, port))
        assert sock.recv(1000).endswith(b"last")
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.recv(1000)
    assert program.end() == 0


@in_own_network
def test_worker_that_dies_leaves_the_group_to_its_successor(start: Start) -> None:
    """The membership is the socket's, which outlives it."""
    group = "239.1.2.9"
    program, port = serve(start, "--udp", "0.0.0.0:0", "--group", f"{group}%{INTERFACE}")
    with sender((group, port), INTERFACE) as sock:
        seen = set()
        for _ in range(2):
            sock.sendto(b"who", (group, port))
            pid = int(sock.recv(1000).split()[1])
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
    assert len(seen) == 2
    assert program.end() == 0


def check(*options: str) -> tuple[int, str]:
    """What --check returns and says last."""
    command = [sys.executable, "-m", "asyncserver", "--check", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return done.returncode, (done.stderr if done.returncode else done.stdout).splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (["--udp", ":0", "--group", "239.1.2.9%lo", "--group", "ff02::114%lo"], 0, "all of it can be served"),
        (["--udp", "0.0.0.0:0", "--udp", "[::]:0", "--group", "239.1.2.9%lo", "--group", "ff02::114%lo"], 0, "all of"),
        (["--udp", "239.1.2.9:0", "--udp", "127.0.0.1:0", "--group", "239.1.2.9%lo"], 0, "all of it can be served"),
        (["--udp", "127.0.0.1:0", "--group", "239.1.2.9"], 2, "--group 239.1.2.9 is heard on no --udp address: give"),
        (["--udp", "0.0.0.0:0", "--group", "ff02::114%lo"], 2, "--group ff02::114%lo is heard on no --udp address"),
        (["--group", "239.1.2.9"], 2, "is heard on no --udp address"),
        (["--udp", ":0", "--group", "10.0.0.1"], 2, "argument --group: expected a multicast group"),
        (["--tcp", ":0", "--group", "239.1.2.9"], 2, "--group (ASYNCSERVER_GROUP) has no effect without --udp"),
        (["--udp", ":0", "--group", "239.1.2.9%nothing0"], 1, "there is no interface 'nothing0'"),
    ],
)
def test_command_line(options: list[str], status: int, text: str) -> None:
    """Each --udp address gets the groups that may be heard there; one that is heard nowhere is refused."""
    returned, last = check(*options)
    assert text in last
    assert returned == status
