"""systemd's conventions: sockets passed as it passes them, and what a program tells it, on a real Unix socket."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from asyncserver.options import make_parser
from asyncserver.reports import ServerStats
from asyncserver.systemd import NotifySocket, listen_names, notify_address, watchdog_seconds
from tests.serverkit import LOOPS, PATIENCE, ROOT, Program

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A request is a line. `tell`: who answers, what systemd's variables it sees, which of its first descriptors a program
# started from here would inherit. `block SECONDS`: the loop is stuck.
APP = """
import asyncio, os, time
held = asyncio.Event()

def tell():
    left = [name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))]
    inherited = []
    for descriptor in range(3, 20):
        try:
            inherited += [descriptor] if os.get_inheritable(descriptor) else []
        except OSError:
            continue
    return f"VERSION {os.getpid()} {left} {inherited}\\n".encode()

async def handler(source):
    if hasattr(source, "data"):
        if source.data == b"hold":
            await held.wait()
        return tell()
    while True:
        line = await source.receive_until(b"\\n", 100)
        if line == b"release":
            held.set()
        if line.startswith(b"block"):
            await source.send(b"blocked\\n")
            time.sleep(float(line.split()[1]))
        await source.send(tell())
"""

# Passes descriptors on as systemd does: from number 3 on, to the process whose number LISTEN_PID is.
ACTIVATE = """
import fcntl, os, sys
names, numbers, *arguments = sys.argv[1:]
moved = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in numbers.split(",")]
os.closerange(3, 100)
for number, descriptor in enumerate(moved, 3):
    os.dup2(descriptor, number)
    os.close(descriptor)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(moved)), "LISTEN_FDNAMES": names}
os.execv(sys.executable, [sys.executable, *arguments])
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, for Unix sockets, with the handler's module."""
    with tempfile.TemporaryDirectory() as name:
        write_app(Path(name), 1)
        (Path(name) / "activate.py").write_text(ACTIVATE)
        yield Path(name)


def write_app(folder: Path, version: int | str) -> None:
    """Write the handler's module anew, and at once."""
    (folder / "new").write_text(APP.replace("VERSION", str(version)))
    (folder / "new").rename(folder / "app.py")


class Client:
    """Asks over a connection, in lines."""

    def __init__(self, address: Any) -> None:
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(address)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def answer(self) -> str:
        """Receive a line; fails if there is none."""
        line = self.file.readline()
        assert line.endswith(b"\n"), line
        return line.decode().strip()

    def ask(self, line: str = "tell") -> str:
        self.sock.sendall(line.encode() + b"\n")
        return self.answer()


def ask(address: Any) -> str:
    with Client(address) as client:
        return client.ask()


def ask_datagram(address: Any, folder: Path, question: bytes = b"tell") -> str:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        if isinstance(address, str):
            client.bind(str(folder / f"client-{next(_numbers)}"))
        client.sendto(question, address)
        return client.recv(999).decode().strip()


_numbers = itertools.count()


# -- what the environment says


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


@given(st.dictionaries(st.sampled_from(["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]), texts), st.integers(0, 30))
@example({"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": ":"}, 7)
def test_any_environment_has_names_or_is_refused(environment: dict[str, str], pid: int) -> None:
    """Names for as many as LISTEN_FDS says and for nobody else, or an error that names the variable."""
    try:
        names = listen_names(environment, pid)
    except ValueError as exc:
        assert str(exc).startswith(("LISTEN_PID must", "LISTEN_FDS must", "LISTEN_FDNAMES must"))
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


class Systemd:
    """systemd's end of the socket that programs tell."""

    def __init__(self, address: str) -> None:
        self.variable = address.replace("\0", "@")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.sock.settimeout(PATIENCE)

    def next(self) -> dict[str, str]:
        """Receive a message."""
        return dict(line.split("=", 1) for line in self.sock.recv(4096).decode().split("\n"))

    def expect(self, name: str, pattern: str = "") -> dict[str, str]:
        """Receive messages up to the one that says so; those before it may only be pulses."""
        while True:
            message = self.next()
            if name in message and re.search(pattern, message["STATUS"]):
                return message
            assert "WATCHDOG" in message, f"{message} before {name}"

    def queued(self) -> list[dict[str, str]]:
        """Receive what has come already."""
        found = []
        self.sock.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.next())
        self.sock.settimeout(PATIENCE)
        return found

    def expect_silence(self, seconds: float) -> None:
        """See that nothing comes for so long."""
        self.sock.settimeout(seconds)
        with pytest.raises(TimeoutError):
            self.next()
        self.sock.settimeout(PATIENCE)


@pytest.fixture
def systemd(request: pytest.FixtureRequest, folder: Path) -> Iterator[Systemd]:
    """With an abstract address where a test asks for it."""
    one = Systemd(f"\0{folder}" if getattr(request, "param", "") == "abstract" else str(folder / "notify"))
    yield one
    one.sock.close()


either_address = pytest.mark.parametrize("systemd", ["path", "abstract"], indirect=True)

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


# -- a program that tells


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


Start = Any


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
    with Client(told.address) as client:
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
    with Client(told.address) as client:
        client.ask()
        client.sock.sendall(b"te")
        told.tell(signal.SIGTERM)
        systemd.expect("STOPPING")
        told.tell(signal.SIGTERM)
        assert told.program.wait() == 0
    assert systemd.queued() == []


def test_pulses_tell_that_it_lives_and_what_it_has_done(start: Start, systemd: Systemd) -> None:
    """Twice in the watchdog's time, with the counters of all workers."""
    told = start(0.4)
    systemd.expect("READY")
    for _ in range(3):
        ask(told.address)
    systemd.expect("WATCHDOG", "serving: 0 active, 3 connections")
    began = time.monotonic()
    for _ in range(5):
        assert systemd.next()["WATCHDOG"] == "1"
    assert 0.6 < time.monotonic() - began < 5  # 5 x 0.2 s, on a busy machine
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
def test_loop_that_is_stuck_stops_pinging(start: Start, systemd: Systemd, loop: str) -> None:
    """So that systemd notices; and it pings again when it goes on."""
    told = start(0.4, "--loop", loop)
    systemd.expect("READY")
    with Client(told.address) as client:
        assert client.ask("block 1.5") == "blocked"
        systemd.queued()
        systemd.expect_silence(0.8)
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
    with Client(told.address) as client:
        pid = client.ask().split()[1]
        assert client.ask("block 60") == "blocked"
        systemd.queued()
        for _ in range(5):
            systemd.expect("WATCHDOG")
        told.program.wait_for(f"worker {pid} has said nothing for 3 s: does a handler block?")
        told.program.wait_for(f"worker {pid} ended by signal 6")
        assert client.file.readline() == b""
    assert ask(told.address).split()[1] != pid
    told.tell(signal.SIGTERM)
    systemd.expect("STOPPING")
    assert told.program.wait() == 0


SCRIPT = """
import logging, sys, app, asyncserver, asyncserver._watchdog as watchdog
logging.basicConfig(level="INFO")
watchdog._SILENCE = watchdog._LEAST_SILENCE = 1.5
asyncserver.run(asyncserver.serve(app.handler, path=sys.argv[1]), workers=2)
"""


def test_worker_that_is_stuck_is_told_of_each_time(folder: Path) -> None:
    """Where nobody watches it is left alone: a blocking handler may come to its end."""
    with Program(["-W", "error", "-c", SCRIPT, "u.sock"], folder) as program:
        program.wait_for("2 workers serve")
        with Client(str(folder / "u.sock")) as client:
            pid = client.ask().split()[1]
            for times in (1, 2):
                assert client.ask("block 2.5") == "blocked"
                assert client.answer().split()[1] == pid
                assert program.errors.count(f"worker {pid} has said nothing for 1.5 s") == times
                program.process.send_signal(signal.SIGUSR1)  # so that it has something to say
                deadline = time.monotonic() + PATIENCE
                while program.errors.count("ServerStats") < times:
                    assert time.monotonic() < deadline
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
        systemd.expect_silence(3.0)
        for pid in everybody:  # the supervisor first
            os.kill(pid, signal.SIGCONT)
        for _ in range(4):
            systemd.expect("WATCHDOG")
        assert int(ask(str(folder / "u.sock")).split()[1]) in workers
        assert "said nothing" not in program.errors
        program.process.terminate()
        assert program.wait() == 0


# -- a program whose sockets systemd has opened


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
            busy = [stack.enter_context(Client(address)) for _ in range(activate.workers)]
            first = {client.ask().split()[1] for client in busy}
            for client in busy:
                client.sock.sendall(b"te")
            waiting = [stack.enter_context(Client(address)) for _ in range(5)]
            for client in waiting:
                client.sock.sendall(b"tell\n")
            program.process.terminate()
            program.wait_for("no new work")
            for client in busy:
                assert client.ask("ll").split()[1] in first
            assert program.wait() == 0
        waiting += [stack.enter_context(Client(address)) for _ in range(5)]
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
        with activate(socks, "app:app", *options) as program, Client(socks[1].getsockname()) as control:
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


REFUSED = "systemd has opened no such socket for this process; it has opened 'web' (SOCK_STREAM ('127.0.0.1', "


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
