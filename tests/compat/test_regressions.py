"""What once went wrong in compat, each with the program that showed it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import socketserver
import threading
from pathlib import Path
from typing import Any

import pytest

import compat
from compat import ThreadPool
from tests.kit.checks import is_idle
from tests.kit.programs import Program, run_script
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until

LOOPBACK = ("127.0.0.1", 0)


def ignore(*_: object) -> None:
    """A handler that has nothing to say."""


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no further thread be started."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


@pytest.mark.usefixtures("no_threads")
def test_closing_without_threads_closes_the_listener_and_the_requests(capsys: pytest.CaptureFixture[str]) -> None:
    """server_close() does not stumble over requests that no thread can be had for: each is told and closed."""
    server: Any = compat.ThreadingTCPServer(LOOPBACK, ignore)
    with socket.create_connection(server.server_address, timeout=20) as client:
        request, address = server.get_request()
        server._compat_threads().add(server.process_request_thread, request, address)  # as in the midst of a batch
        server.server_close()
        assert client.recv(1) == b""
    assert server.fileno() == -1
    assert "can't start new thread" in capsys.readouterr().err


def test_a_pool_that_is_shut_down_without_threads_fails_its_futures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is left who could fulfil them, and shutdown() itself raises nothing."""
    pool = ThreadPool(name="test")
    monkeypatch.setattr(pool, "wake", lambda: None)  # the moment in which another producer tries in vain
    future = pool.submit(int, "7")
    monkeypatch.undo()
    monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread")))
    pool.shutdown()
    with pytest.raises(RuntimeError, match="no thread"):
        future.result(0)


WITHOUT_DESCRIPTORS = """
import gc, logging, os, resource, socket, socketserver, sys, threading, warnings
import compat
from compat.pool.openssl import quick_clearing

quick_clearing()  # brings ctypes, which may keep a descriptor

class Told(logging.Handler):
    def emit(self, record):
        told.append(record.getMessage())
        if len(told) == 1:
            waiting.set()

told, waiting = [], threading.Event()
logging.getLogger("compat").addHandler(Told())
server = compat.ThreadingTCPServer(("127.0.0.1", 0), lambda request, *_: request.sendall(b"hello"))
client = socket.create_connection(server.server_address, timeout=20)
before = sorted(os.listdir("/proc/self/fd"))
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) - 1 + int(sys.argv[1]), hard))

def help():
    waiting.wait(10)
    if sys.argv[2] == "room":
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        print(client.recv(5).decode())
    server.shutdown()

helping = threading.Thread(target=help)
helping.start()
server.serve_forever()
helping.join()
client.close()
server.server_close()
gc.collect()
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(len(told), told[0].partition(" on ")[0], "Too many open files" in told[0])
print(len(os.listdir("/proc/self/fd")) - len(before) + 2)
"""


@pytest.mark.parametrize("free", ["0", "2"], ids=["none", "only for the loop"])
def test_serving_can_be_started_without_descriptors(free: str, tmp_path: Path) -> None:
    """It waits for some, says so once, leaks none; who is in the backlog is served then."""
    status, output, errors = run_script(WITHOUT_DESCRIPTORS, tmp_path, free, "room")
    assert (status, errors) == (0, "")
    greeting, told, left = output.splitlines()
    assert greeting == "hello"
    assert told.startswith("1 ThreadingTCPServer True")
    print(f"descriptors left over: {left}")
    assert left == "0"


def test_serving_that_waits_for_descriptors_can_be_shut_down(tmp_path: Path) -> None:
    """shutdown() ends the wait."""
    status, output, errors = run_script(WITHOUT_DESCRIPTORS, tmp_path, "0", "none")
    assert (status, errors) == (0, "")
    assert output.startswith("1 ThreadingTCPServer True")


def test_other_errors_of_starting_come_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what time may heal is waited for."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no")

    server = compat.TCPServer(LOOPBACK, ignore)
    with server, monkeypatch.context() as patch:
        patch.setattr(socket, "socketpair", refuse)
        with pytest.raises(PermissionError):
            server.serve_forever()


HOME = """
import multiprocessing, os, socketserver

def name():
    print(socketserver.__name__, flush=True)

if __name__ == "__main__":
    os.environ.clear()
    context = multiprocessing.get_context("{method}")
    child = context.Process(target=name)
    child.start()
    child.join()
    raise SystemExit(child.exitcode)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("how", ["script", "module"])
def test_children_find_the_program_in_a_cleared_environment(method: str, how: str, tmp_path: Path) -> None:
    """What they have to know is put there when multiprocessing starts them."""
    (tmp_path / "home.py").write_text(HOME.replace("{method}", method))
    program = ["home.py"] if how == "script" else ["-m", "home"]
    with Program(["-m", "compat", *program], tmp_path) as running:
        assert running.wait() == 0, running.errors
        assert running.output == "compat\n"


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_the_loader_is_the_one_that_found_the_program(packed: bool, tmp_path: Path) -> None:
    """Programs in a zip file read their data with `__loader__.get_data`."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text(
        "import os\nprint(type(__loader__).__name__)\n"
        "print(__loader__.get_data(os.path.join(os.path.dirname(__file__), 'data.txt')).decode())\n"
    )
    (tmp_path / "app" / "data.txt").write_text("the data")
    name = os.path.basename(shutil.make_archive(str(tmp_path / "app"), "zip", tmp_path / "app")) if packed else "app"
    told = []
    for start in ([], ["-m", "compat"]):
        with Program([*start, name], tmp_path) as running:
            assert running.wait() == 0, running.errors
            told.append(running.output)
    assert told[1] == told[0]
    assert "the data" in told[0]


# handle_request


@pytest.mark.parametrize("timeout", [None, 0.05])
def test_handle_request_keeps_to_max_threads(timeout: float | None) -> None:
    """At the bound it takes no further request, and calls handle_timeout when its own time is up."""
    gate, timed_out, running = threading.Event(), threading.Event(), threading.Semaphore(0)

    def handler(request: Any, *_: object) -> None:
        running.release()
        gate.wait(20)
        request.sendall(b"done")

    server: Any = compat.ThreadingTCPServer(LOOPBACK, handler)
    server.max_threads, server.timeout, server.handle_timeout = 1, timeout, timed_out.set
    with server, socket.create_connection(server.server_address, timeout=20) as first:
        server.handle_request()
        assert running.acquire(timeout=20)
        with socket.create_connection(server.server_address, timeout=20) as second:
            if timeout is not None:
                server.handle_request()
                assert timed_out.is_set()
                assert len(server._compat_pool) == 1
            threading.Timer(0.05, gate.set).start()
            server.timeout = None
            server.handle_request()
            assert gate.is_set()
            assert [client.recv(9) for client in (first, second)] == [b"done", b"done"]
    assert server.times_full >= 1


# The listener is shared.


def test_a_handler_can_wait_at_the_listener_through_a_duplicate() -> None:
    """While serving the listener itself does not block; a duplicate with a timeout of its own waits all the same."""
    raised: list[type[BaseException]] = []

    def handler(_: object, __: object, server: Any) -> None:
        with server.socket.dup() as listener:
            listener.settimeout(0.01)
            for one in (server.socket, listener):
                try:
                    one.accept()
                except OSError as error:
                    raised.append(type(error))
        server.shutdown()

    server: Any = compat.ThreadingTCPServer(LOOPBACK, handler)
    with server, socket.create_connection(server.server_address, timeout=20):
        server.serve_forever()
    assert raised == [BlockingIOError, TimeoutError]


# Whose timeout it is.


class Asking(socketserver.StreamRequestHandler):
    """Asks another server, or waits for its client in one way or another."""

    def handle(self) -> None:
        what = self.rfile.readline().strip().decode()
        if what == "upstream":
            ours, theirs = socket.socketpair()
            with ours, theirs:
                ours.settimeout(0.01)
                ours.recv(1)
        elif what == "sendall":
            while True:
                self.request.sendall(bytes(1 << 20))
        elif what == "readline":
            self.rfile.readline()
        else:
            getattr(self.request, what)(1)


@pytest.mark.parametrize("transport", ["tcp", "tls"], indirect=True)
@pytest.mark.parametrize(
    ("what", "ended"),
    [("upstream", "failed"), ("recv", "timed_out"), ("readline", "timed_out"), ("sendall", "timed_out")],
)
async def test_only_the_timeouts_of_the_request_are_idleness(transport: Transport, what: str, ended: str) -> None:
    """With idle_timeout; what the handler's other connections do is the handler's error."""
    errors: list[BaseException] = []

    def note(error: BaseException, _: object) -> None:
        errors.append(error)

    # Long, where another timeout is what ends the handler, before this one may.
    idle_timeout = PATIENCE if ended == "failed" else 0.3
    async with transport.serve(compat.hosted(Asking), idle_timeout=idle_timeout, on_error=note) as server:
        client = await transport.connect(server)
        await client.send(what.encode() + b"\n")
        await until(lambda: is_idle(server))
        client.close()
    assert getattr(server.stats(), ended) == 1
    assert [type(error) for error in errors] == ([TimeoutError] if ended == "failed" else [])


async def test_a_client_that_takes_nothing_is_given_up_after_the_idle_timeout(
    tcp: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler has ended, and what it has sent is not waited for ten seconds more."""
    monkeypatch.setattr("compat.hosting.lingering._STALLED", 10 * PATIENCE)
    async with tcp.serve(compat.hosted(Asking), idle_timeout=0.2) as server, tcp.connect(server) as client:
        await client.send(b"sendall\n")
        await until(lambda: server.stats().timed_out)


class Patient(Asking):
    """Sets its own limit, as the standard library lets a class do."""

    timeout = 0.2


class Setting(Asking):
    """Sets its own limit when it runs."""

    def setup(self) -> None:
        super().setup()
        self.request.settimeout(0.3)


@pytest.mark.parametrize("transport", ["tcp", "tls"], indirect=True)
@pytest.mark.parametrize(
    ("handler", "what", "ended"),
    [(Patient, "readline", "timed_out"), (Setting, "readline", "timed_out"), (Patient, "upstream", "failed")],
)
async def test_own_timeout_of_a_handler_is_idleness_without_idle_timeout_too(
    transport: Transport, handler: type[Asking], what: str, ended: str
) -> None:
    """A client that says nothing is counted, and no error; what the handler's other connections do still is."""
    async with transport.serve(compat.hosted(handler)) as server, transport.connect(server) as client:
        await client.send(what.encode() + b"\n")
        await until(lambda: is_idle(server))
    assert getattr(server.stats(), ended) == 1
