"""Programs whose sockets systemd has opened, passed as it passes them."""

from __future__ import annotations

import ast
import contextlib
import itertools
import os
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncserver.listening.systemd import own_pidfd_id
from tests.kit.programs import LOOPS, Program
from tests.kit.systemd import LineClient, ask
from tests.kit.waiting import PATIENCE


def ask_datagram(address: Any, folder: Path, question: bytes = b"tell") -> str:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        if isinstance(address, str):
            client.bind(str(folder / f"client-{next(_numbers)}"))
        client.sendto(question, address)
        return client.recv(999).decode().strip()


_numbers = itertools.count()


@contextlib.contextmanager
def opened(folder: Path, *kinds: str) -> Iterator[list[socket.socket]]:
    """Open sockets as systemd does, and keep them open."""
    with contextlib.ExitStack() as stack:
        socks = []
        for kind in kinds:
            unix = kind.startswith("unix")
            sock = socket.socket(
                socket.AF_UNIX if unix else socket.AF_INET,
                socket.SOCK_DGRAM if kind in {"udp", "unix_datagram"} else socket.SOCK_STREAM,
            )
            socks.append(stack.enter_context(sock))
            sock.bind(str(folder / f"{kind}-{next(_numbers)}") if unix else ("127.0.0.1", 0))
            if sock.type == socket.SOCK_STREAM:
                sock.listen(77)
        yield socks


class Activated(Program):
    """A program to which sockets are passed as systemd passes them."""

    def __init__(self, folder: Path, socks: Sequence[Any], names: str, *arguments: str) -> None:
        numbers = tuple(sock.fileno() for sock in socks)
        passing = ["activate.py", names, ",".join(map(str, numbers)), "-W", "error", *arguments]
        super().__init__(passing, folder, numbers)

    def stop(self) -> None:
        self.process.terminate()
        assert self.wait() == 0, self.errors


class Activate:
    """Starts the command line with such sockets."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        self.folder = folder
        self.workers = workers

    def __call__(self, socks: Sequence[Any], names: str, *options: str) -> Activated:
        command = ("-m", "asyncserver", "app:handler", "--workers", str(self.workers))
        return Activated(self.folder, socks, names, *command, *options)


@pytest.fixture(params=[1, 2], ids=["one process", "workers"])
def activate(request: pytest.FixtureRequest, folder: Path) -> Activate:
    """Start programs in one process and with two workers."""
    return Activate(folder, request.param)


KINDS = ("tcp", "udp", "unix", "unix_datagram")


@pytest.mark.parametrize("loop", LOOPS)
def test_each_option_takes_the_sockets_of_its_kind(activate: Activate, folder: Path, loop: str) -> None:
    """All of one name, several of a kind; the handler sees no variables, its children inherit no descriptors."""
    options = [word for kind in KINDS for word in (f"--{kind.replace('_', '-')}", "systemd:app")]
    with (
        opened(folder, *KINDS, *KINDS, "tcp") as socks,
        activate(socks, "app:app:app:app:app:app:app:app:other", *options, "--loop", loop) as program,
    ):
        for sock in socks[:8]:
            address = sock.getsockname()
            datagram = sock.type == socket.SOCK_DGRAM
            answer = ask_datagram(address, folder) if datagram else ask(address)
            assert re.fullmatch(r"1 \d+ \[\] \[\]", answer)
        program.stop()
        for sock in socks:  # systemd's are as they were
            if sock.family == socket.AF_UNIX:
                assert Path(sock.getsockname()).is_socket()
            if sock.type == socket.SOCK_STREAM:
                with socket.socket(sock.family) as client:
                    client.connect(sock.getsockname())


@pytest.mark.parametrize("loop", LOOPS)
def test_queue_of_connections_outlives_the_program(activate: Activate, folder: Path, loop: str) -> None:
    """What is queued as it stops, and what comes while none runs, is answered by the next; nothing is reset."""
    options = ("--tcp", "systemd:app", "--max-connections", "1", "--loop", loop)
    with opened(folder, "tcp") as socks, contextlib.ExitStack() as stack:
        address = socks[0].getsockname()
        with activate(socks, "app", *options) as program:
            # As many as may be open, each in the middle of a message: others have to wait.
            busy = [stack.enter_context(LineClient(address)) for _ in range(activate.workers)]
            first = {client.ask().split()[1] for client in busy}
            for client in busy:
                client.sock.sendall(b"te")
            waiting = [stack.enter_context(LineClient(address)) for _ in range(5)]
            for client in waiting:
                client.sock.sendall(b"tell\n")
            program.process.terminate()
            program.wait_for("no new work")
            for client in busy:
                assert client.ask("ll").split()[1] in first
            assert program.wait() == 0
        waiting += [stack.enter_context(LineClient(address)) for _ in range(5)]
        for client in waiting[5:]:
            client.sock.sendall(b"tell\n")
        with activate(socks, "app", "--tcp", "systemd:app", "--loop", loop) as program:
            assert not {client.answer().split()[1] for client in waiting} & first
            program.stop()


@pytest.mark.parametrize("loop", LOOPS)
def test_queue_of_datagrams_outlives_the_program(folder: Path, loop: str) -> None:
    """The same for those in the kernel's buffer while no more are taken."""
    activate = Activate(folder)
    options = ("--udp", "systemd:app", "--unix", "systemd:app", "--max-pending", "1", "--loop", loop)
    with opened(folder, "udp", "unix") as socks, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect(socks[0].getsockname())
        with activate(socks, "app:app", *options) as program, LineClient(socks[1].getsockname()) as control:
            first = control.ask().split()[1]
            control.sock.sendall(b"rele")
            client.send(b"hold")
            client.send(b"tell")
            program.process.terminate()
            program.wait_for("no new work")
            control.ask("ase")
            assert client.recv(999).split()[1].decode() == first
            assert program.wait() == 0
        with activate(socks[:1], "app", "--udp", "systemd:app") as program:
            assert client.recv(999).split()[1].decode() != first
            program.stop()


def test_settings_of_the_unit_stay_and_answers_are_not_delayed(folder: Path) -> None:
    """The queue is as long as Backlog= says; TCP_NODELAY is ours to set, and accepted sockets inherit it."""
    with (
        opened(folder, "tcp") as socks,
        Activate(folder)(socks, "app", "--tcp", "systemd:app", "--backlog", "5") as program,
    ):
        ask(socks[0].getsockname())
        info = socks[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        assert struct.unpack_from("I", info, 28)[0] == 77  # tcpi_sacked: a listening socket's backlog
        assert socks[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        program.stop()


PROGRAM = """
import os, sys, app, asyncserver
first, again = asyncserver.systemd_sockets("web"), asyncserver.systemd_sockets("web")
assert len(first) == 2 and all(a is b for a, b in zip(first, again, strict=True)), (first, again)
assert asyncserver.systemd_sockets("none") == []
(other,) = [sock for sock in asyncserver.systemd_sockets() if sock not in first]
assert not [name for name in os.environ if name.startswith("LISTEN_")]
other.close()
asyncserver.run(*[asyncserver.serve(app.handler, sock=sock) for sock in first], workers=int(sys.argv[1]))
"""


def test_program_asks_for_its_sockets_by_name(activate: Activate, folder: Path) -> None:
    """And gets the same ones however often; a descriptor that is no socket is none of them."""
    with opened(folder, "tcp", "udp", "tcp") as socks, open(os.devnull) as file:
        passed = [socks[0], file, socks[1], socks[2]]
        with Activated(folder, passed, "web:web:dns:web", "-c", PROGRAM, str(activate.workers)) as program:
            for sock in (socks[0], socks[2]):
                assert ask(sock.getsockname())
            program.stop()


def test_without_systemd_there_are_no_sockets(folder: Path) -> None:
    """So that one program can do both."""
    with Program(["-c", "import asyncserver; print(asyncserver.systemd_sockets())"], folder) as program:
        assert program.wait() == 0
        assert program.output == "[]\n"


REFUSED = "systemd has opened no such socket for this process; it has opened 'web' (SOCK_STREAM 127.0.0.1:"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("web", ["--tcp", "systemd:http"], f"--tcp systemd:http: {REFUSED}"),
        ("web", ["--udp", "systemd:web"], f"--udp systemd:web: {REFUSED}"),
        ("web", ["--unix-datagram", "systemd:web"], f"--unix-datagram systemd:web: {REFUSED}"),
        ("web:dns", ["--tcp", "systemd:web"], "LISTEN_FDNAMES must hold a name for each of the 1 descriptors"),
    ],
)
def test_what_systemd_has_not_opened_is_refused(folder: Path, names: str, options: list[str], message: str) -> None:
    """Status 2, with what there is instead."""
    with opened(folder, "tcp") as socks, Activate(folder)(socks, names, *options) as program:
        assert program.wait() == 2
        assert message in program.errors


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "it has opened none: start this program by its socket unit"),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, "it has opened none"),
        ({"LISTEN_PID": "me", "LISTEN_FDS": "1"}, "LISTEN_PID must be a whole number, as systemd sets it; got 'me'"),
    ],
)
def test_sockets_of_another_process_are_left_alone(folder: Path, variables: dict[str, str], message: str) -> None:
    """LISTEN_PID says whose they are."""
    arguments = ["-W", "error", "-m", "asyncserver", "app:handler", "--tcp", "systemd:web"]
    with Program(arguments, folder, **variables) as program:
        assert program.wait() == 2
        assert message in program.errors


PIDFDID = """
import os, subprocess, sys
own = os.fstat(os.pidfd_open(os.getpid())).st_ino
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
os.environ["LISTEN_PIDFDID"] = {"right": str(own), "wrong": str(own + 1), "nonsense": "web"}[sys.argv[1]]
import asyncserver
try:
    print(len(asyncserver.systemd_sockets()), "taken")
except ValueError as exc:
    print(exc)
child = "import os; print([name for name in os.environ if name.startswith('LISTEN_')])"
subprocess.run([sys.executable, "-c", child], check=True)
print("inherited" if os.get_inheritable(3) else "kept")
"""


LISTEN = "['LISTEN_FDNAMES', 'LISTEN_FDS', 'LISTEN_PID', 'LISTEN_PIDFDID']"


@pytest.mark.skipif(own_pidfd_id() is None, reason="this kernel's pidfds have no numbers")
@pytest.mark.parametrize(
    ("which", "outcome"),
    [
        ("right", ["1 taken", "[]", "kept"]),
        ("wrong", ["0 taken", LISTEN, "inherited"]),
        ("nonsense", ["LISTEN_PIDFDID must be a whole number, as systemd sets it; got 'web'", LISTEN, "inherited"]),
    ],
)
def test_sockets_of_another_pidfd_are_left_alone(folder: Path, which: str, outcome: list[str]) -> None:
    """LISTEN_PIDFDID tells two processes of one number apart; what is not ours is passed on as it was."""
    with opened(folder, "tcp") as socks, Activated(folder, socks, "web", "-c", PIDFDID, which) as program:
        assert program.wait() == 0
        first, variables, last = program.output.splitlines()
        assert [first, str(sorted(ast.literal_eval(variables))), last] == outcome


def test_descriptors_that_are_not_open_are_told(folder: Path) -> None:
    """Something between systemd and the program has closed them."""
    script = (
        "import os; os.closerange(3, 99); os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '2'}; "
        "import asyncserver; asyncserver.systemd_sockets()"
    )
    with Program(["-c", script], folder) as program:
        assert program.wait() == 1
        assert "BindError: [Errno 9] LISTEN_FDS=2 promises descriptors 3 to 4, but 3 is not open" in program.errors


def test_connection_instead_of_a_listening_socket_is_refused(folder: Path) -> None:
    """What Accept=yes would pass."""
    with (
        opened(folder, "tcp") as socks,
        socket.create_connection(socks[0].getsockname()) as client,
        Activate(folder)([client], "connection", "--tcp", "systemd:connection") as program,
    ):
        assert program.wait() == 1
        assert "cannot listen on <socket.socket" in program.errors


def test_abstract_names_are_shown_with_an_at(activate: Activate, folder: Path) -> None:
    """What is served, and what is there instead of what was asked for."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0{folder}")
        sock.listen(7)
        with activate([sock], "app", "--unix", "systemd:app") as program:
            program.wait_for(f"@{folder}")
            assert ask(sock.getsockname()).startswith("1 ")
            program.stop()
        with activate([sock], "app", "--unix", "systemd:other") as program:
            assert program.wait() == 2
            assert f"it has opened 'app' (SOCK_STREAM @{folder})" in program.errors
