"""Worker processes: real ones, started from the command line and from code, under load, killed and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import trustme

import asyncserver
from asyncserver.binding import Binding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent
LOOPS = ["asyncio"]
with contextlib.suppress(ModuleNotFoundError):
    import uvloop  # noqa: F401

    LOOPS += [] if "ASYNCSERVER_TESTS_WITHOUT_UVLOOP" in os.environ else ["uvloop"]

# A request is `SIZE SECONDS\n`, its answer `VERSION PID SIZE\n` and so many bytes, the second half so much later.
APP = """
import asyncio, os, time

async def handler(source):
    head = b"VERSION %d " % os.getpid()
    if hasattr(source, "data"):
        return head + source.data
    while request := await source.receive_until(b"\\n", 100):
        if request == b"die":
            os._exit(3)
        if request == b"block":
            await source.send(head + b"0\\n")
            time.sleep(1000)
        size, seconds = request.split()
        await source.send(head + size + b"\\n" + bytes(int(size) // 2))
        await asyncio.sleep(float(seconds))
        await source.send(bytes(int(size) - int(size) // 2))
"""


class Program:
    """A server program; its log is read as it comes."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.folder = folder
        self.write_app(1)
        environment = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.log: list[str] = []
        self._seen = 0
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def write_app(self, version: int | str) -> None:
        """Write the handler's module anew, and at once."""
        (self.folder / "new").write_text(APP.replace("VERSION", str(version)))
        (self.folder / "new").rename(self.folder / "app.py")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self.log.append(line)
                self._more.notify_all()
        with self._more:
            self.log.append("end of log")
            self._more.notify_all()

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the log after the one that was last waited for."""
        with self._more:
            while True:
                assert self._more.wait_for(lambda: len(self.log) > self._seen, timeout=20), (
                    f"no {pattern!r}: {self.log}"
                )
                line = self.log[self._seen]
                self._seen += 1
                if found := re.search(pattern, line):
                    return found
                assert line != "end of log", f"no {pattern!r} before the end: {self.log}"

    def expect_in_all(self, count: int, words: str) -> None:
        """Wait until so many lines, from the first on, contain the words."""
        with self._more:
            enough = self._more.wait_for(lambda: sum(words in line for line in self.log) >= count, timeout=20)
            assert enough, f"not {count} x {words!r}: {self.log}"

    def serving(self) -> list[int]:
        """Wait until all workers serve; returns the ports."""
        found = self.expect(r"2 workers serve on (.*)")
        return [int(port) for port in re.findall(r"', (\d+)\)", found[1])]

    def tell(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal, and wait for the end; returns the status."""
        self.tell(number)
        return self.process.wait(20)

    def close(self) -> None:
        """Whatever has happened, leave nothing behind: the session is the program's own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()


Start = Any


@pytest.fixture(params=LOOPS)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Start the command line with two workers, TCP and UDP, and more options."""
    programs = []

    def start(*options: str, handler: str = "app:handler", script: str | None = None) -> Program:
        arguments = ["-m", "asyncserver", handler, "--workers", "2", "--loop", request.param]
        arguments += ["--log-level", "debug", *(options or ("--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0"))]
        if script is not None:
            (tmp_path / "program.py").write_text(script)
            arguments = ["program.py", request.param]
        programs.append(Program(tmp_path, arguments))
        return programs[-1]

    yield start
    for program in programs:
        program.close()


class Client:
    """A connection that asks, one request after the other."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def send(self, size: int = 10, seconds: float = 0) -> None:
        self.sock.sendall(b"%d %s\n" % (size, str(seconds).encode()))

    def head(self) -> tuple[int, int, int]:
        """Receive an answer's beginning: the version and process that answers, and the size."""
        line = self.file.readline()
        if not line:
            raise ConnectionResetError("closed before a byte of the answer")
        version, pid, size = line.split()
        return int(version), int(pid), int(size)

    def rest(self, size: int) -> None:
        try:
            assert self.file.read(size) == bytes(size)
        except ConnectionError as exc:
            raise AssertionError("the answer was cut off") from exc

    def ask(self, size: int = 10, seconds: float = 0) -> tuple[int, int]:
        """Ask, and check that the whole answer comes; returns version and process."""
        self.send(size, seconds)
        version, pid, told = self.head()
        assert told == size
        self.rest(size)
        return version, pid


def ask(port: int, size: int = 10) -> tuple[int, int]:
    """Ask over a connection of its own."""
    with Client(port) as client:
        return client.ask(size)


def ask_udp(port: int, question: bytes) -> tuple[int, int, bytes]:
    """Ask over a socket of its own, so that the kernel chooses a worker anew."""
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(question, ("127.0.0.1", port))
        version, pid, answer = client.recv(1000).split(b" ", 2)
        return int(version), int(pid), answer


def both_workers(port: int) -> list[Client]:
    """Connect until both workers have answered; returns a connection to each."""
    clients: dict[int, Client] = {}
    for _ in range(200):
        client = Client(port)
        pid = client.ask()[1]
        if pid in clients:
            client.close()
        clients.setdefault(pid, client)
        if len(clients) == 2:
            return list(clients.values())
    pytest.fail("200 connections, and all at one worker")


class Load:
    """Threads that ask until told to stop. What goes wrong in one is kept, and ends it."""

    def __init__(self, *jobs: Callable[[Counter[str]], None]) -> None:
        self.count: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self._more = threading.Condition()
        self._stop = False
        self._threads = [threading.Thread(target=self._run, args=(job,)) for job in jobs]

    def _run(self, job: Callable[[Counter[str]], None]) -> None:
        while not self._stop:
            count: Counter[str] = Counter()
            try:
                job(count)
            except Exception as exc:
                self.errors.append(exc)
            with self._more:
                self.count += count
                self._more.notify_all()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join()

    def wait_for(self, name: str, further: int) -> None:
        """Wait until so much more of it has been done."""
        with self._more:
            goal = self.count[name] + further
            assert self._more.wait_for(lambda: self.count[name] >= goal or self.errors, 30), self.count


def ended(pid: int) -> Callable[[float], bool]:
    """Watch a process that is not our child; the function returned waits for its end."""
    descriptor = os.pidfd_open(pid)

    def wait(seconds: float) -> bool:
        try:
            return bool(select.select([descriptor], [], [], seconds)[0])
        finally:
            os.close(descriptor)

    return wait


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
        client.sendall(b"0 0\n")
        assert int(client.recv(99).split()[1]) in connections
    program.tell(signal.SIGUSR1)
    assert program.expect(rf"on .*{tcp}.*accepted=(\d+)")[1] == "100"
    assert program.expect(r"u.sock.*accepted=(\d+)")[1] == "1"
    assert program.expect(rf"on .*{udp}.*datagrams_received=(\d+)")[1] == "100"
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
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        load.wait_for("new", 1)
        assert time.monotonic() - killed < 1.0
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
        with Client(tcp) as client:
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
        Client(tcp)


@pytest.mark.parametrize("whom", ["supervisor", "everybody"])
def test_stop_under_load_answers_all_that_was_received(start: Start, whom: str) -> None:
    """SIGTERM, to the supervisor or (as Ctrl-C and systemd do) to all: whole answers, then status 0."""
    program = start()
    tcp, _ = program.serving()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Client(tcp)) for _ in range(10)]
        clients = [stack.enter_context(Client(tcp)) for _ in range(100)]
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
    assert not any("again" in line for line in program.log)
    program.expect("accepted=110, active=0, .*completed=110")


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
        clients = [stack.enter_context(Client(tcp)) for _ in range(400)]
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
        program.tell(signal.SIGTERM)
        program.expect("waiting for what runs")
        started = time.monotonic()
        assert program.end() == 0
        assert time.monotonic() - started < 5
    program.expect("cancelled=2")


def test_third_signal_ends_even_a_blocked_worker(start: Start) -> None:
    """A handler that blocks its loop hears of nothing; the supervisor does not wait for it for ever."""
    program = start()
    tcp, _ = program.serving()
    with Client(tcp) as client:
        client.sock.sendall(b"block\n")
        client.head()
        for word in ("waiting", "again"):
            program.tell(signal.SIGTERM)
            program.expect(word)
        assert program.end() == 0
        program.expect("has not ended in time: killed")


def test_ten_rolling_restarts_under_load_lose_nothing(start: Start) -> None:
    """SIGHUP: every new connection is served, every answer whole, every datagram answered, the code is new."""
    program = start()
    tcp, udp = program.serving()

    def short(count: Counter[str]) -> None:
        ask(tcp, 20_000)
        count["connections"] += 1
        count["tcp"] += 1

    def long(count: Counter[str]) -> None:
        with Client(tcp) as client:
            count["connections"] += 1
            for _ in range(50):
                try:
                    client.ask(20_000, 0.001)
                except ConnectionError:  # between two messages the server may leave; within one it must not
                    count["left"] += 1
                    return
                count["tcp"] += 1

    def datagrams(count: Counter[str]) -> None:
        assert ask_udp(udp, b"question")[2] == b"question"
        count["udp"] += 1

    with Load(*[short] * 4, *[long] * 2, *[datagrams] * 2) as load:
        for version in range(2, 12):
            program.write_app(version)
            program.tell(signal.SIGHUP)
            program.serving()
            assert ask_udp(udp, b"")[0] in {version - 1, version}  # the old one may still have the last word
            load.wait_for("tcp", 300)
            load.wait_for("udp", 50)
            program.expect_in_all(2 * (version - 1), "with status 0 while it drained")
            assert ask(tcp)[0] == version
    assert not load.errors
    assert load.count["tcp"] > 3000
    assert program.end() == 0
    assert program.expect(r"accepted=(\d+)")[1] == str(load.count["connections"] + 10)
    found = program.expect(r"datagrams_received=(\d+).*datagrams_dropped=(\d+)")
    assert int(found[1]) == load.count["udp"] + 10
    assert found[2] == "0"


def test_worker_told_to_end_is_replaced_first(start: Start) -> None:
    """SIGTERM to one worker is a wish to be replaced: its successor serves before it drains."""
    program = start()
    tcp, _ = program.serving()
    one, other = both_workers(tcp)
    with one, other:
        pid = one.ask()[1]
        gone = ended(pid)
        os.kill(pid, signal.SIGTERM)
        program.serving()
        assert one.file.read(1) == b""
        assert gone(10)
        assert other.ask()
        one_of_now, other_of_now = both_workers(tcp)
        with one_of_now, other_of_now:
            assert pid not in {one_of_now.ask()[1], other_of_now.ask()[1]}
    assert program.end() == 0


def test_reload_of_a_broken_handler_leaves_the_old_workers(start: Start) -> None:
    """New workers that cannot start change nothing; once repaired, SIGHUP brings the new code."""
    program = start()
    tcp, udp = program.serving()
    (program.folder / "app.py").write_text("this is not Python")
    program.tell(signal.SIGHUP)
    for _ in range(2):
        program.expect("with status 1 before it served: the one that serves stays")
    one, other = both_workers(tcp)
    with one, other:
        assert ask_udp(udp, b"")[0] == one.ask()[0] == other.ask()[0] == 1
        program.write_app(2)
        program.tell(signal.SIGHUP)
        program.serving()
        assert one.file.read(1) == other.file.read(1) == b""
    assert ask(tcp)[0] == 2
    assert program.end() == 0


def test_program_that_cannot_start_ends_with_its_reason(start: Start) -> None:
    """Workers that never served are not started again and again."""
    program = start(handler="app:nosuch")
    assert program.process.wait(20) == 1
    program.expect("ValueError: module 'app' has no 'nosuch'")
    program.expect("ended with status 1 before all workers served")


def certificate(authority: trustme.CA, folder: Path) -> bytes:
    """Issue a new one; returns it as a client sees it."""
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(folder / "chain.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())


CODE = """
import logging, sys, app, asyncserver
logging.basicConfig(level="DEBUG")
calls = []
async def handler(stream):
    calls.append(stream)
    await app.handler(stream)
context = asyncserver.tls_context("chain.pem", "key.pem")
asyncserver.run(asyncserver.serve(handler, "127.0.0.1", 0, ssl=context), workers=2, loop=sys.argv[1])
assert not calls
print("the end", file=sys.stderr)
"""


@pytest.mark.parametrize("script", [None, CODE], ids=["command line", "run"])
def test_new_workers_have_new_certificates(start: Start, tmp_path: Path, script: str | None) -> None:
    """SIGHUP reads TLS's files again, also where workers are forked from a program's own state."""
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def seen(port: int) -> bytes | None:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(b"0 0\n")
            assert client.recv(99).split()[0] == b"1"
            return client.getpeercert(binary_form=True)

    first = certificate(authority, tmp_path)
    program = start("--tcp", "127.0.0.1:0", "--certfile", "chain.pem", "--keyfile", "key.pem", script=script)
    (tcp,) = program.serving()
    assert {seen(tcp) for _ in range(10)} == {first}
    second = certificate(authority, tmp_path)
    program.tell(signal.SIGHUP)
    program.expect_in_all(2, "while it drained")
    assert {seen(tcp) for _ in range(10)} == {second}
    assert program.end(signal.SIGINT) == 0
    if script:
        program.expect("the end")


async def handler(stream: asyncserver.Stream) -> None:
    """Is never called."""


@pytest.mark.parametrize(("workers", "error"), [(0, ValueError), (-1, ValueError), ("2", TypeError), (True, TypeError)])
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
