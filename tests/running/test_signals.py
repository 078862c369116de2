"""Signals to a program of one process: before it serves, certificates read again, a terminal that is closed."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver.leaving.signals import STOP_SIGNALS
from asyncserver.workers import process as _worker
from tests.kit.certificates import authority, client_context
from tests.kit.handlers import upper
from tests.kit.programs import LOOPS, ROOT, Program
from tests.kit.waiting import PATIENCE

HEAD = """
import asyncio, logging, os, signal, socket, sys, time
import asyncserver

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")

async def upper(stream):
    async for data in stream:
        await stream.send(data.upper())
"""


def program(folder: Path, source: str, *arguments: str) -> Program:
    (folder / "program.py").write_text(HEAD + source)
    return Program(["-W", "error", "program.py", *arguments], folder)


def test_docs_tell_of_each_signal() -> None:
    """Their table has a row for each signal that is handled, by one process and by the supervisor of several."""
    text = (ROOT / "docs/running.md").read_text()
    table = re.search(r"\| signal \|.*\n\|---.*\n((?:\|.*\n)+)", text)
    assert table is not None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
    by_one = {
        name
        for names, one, _ in rows
        for name in re.findall("SIG[A-Z0-9]+", names)
        if not one.startswith("not handled")
    }
    by_supervisor = {name for names, _, _ in rows for name in re.findall("SIG[A-Z0-9]+", names)}
    assert by_one == {number.name for number in STOP_SIGNALS} | {"SIGHUP", "SIGKILL"}
    assert by_supervisor == {number.name for number in _worker.SIGNALS} | {"SIGKILL"}


# -- before it serves

STARTING = """
def getaddrinfo(*args, **kwargs):  # runs when the Unix socket has been bound
    assert os.path.exists("first.sock")
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    if sys.argv[2] == "1":
        deadline = time.monotonic() + 20
        while os.path.exists("first.sock") and time.monotonic() < deadline:  # in a thread: the loop goes on
            time.sleep(0.01)
    return real(*args, **kwargs)

real, socket.getaddrinfo = socket.getaddrinfo, getaddrinfo
asyncserver.run(
    asyncserver.serve(upper, path="first.sock"),
    asyncserver.serve(upper, "localhost", 0),
    loop="asyncio",
    workers=int(sys.argv[2]),
)
print("returned")
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("workers", [1, 2])
def test_signal_while_it_starts_leaves_nothing_behind(tmp_path: Path, number: str, workers: int) -> None:
    """What was bound is closed, its file removed, and run() returns as after any other stop."""
    with program(tmp_path, STARTING, number, str(workers)) as started:
        assert started.wait() == 0
        assert started.output == "returned\n"
        assert f"INFO {number}: " in started.errors
        assert "serving on" not in started.errors
        assert "Traceback" not in started.errors
    assert not (tmp_path / "first.sock").exists()


# -- a signal that comes twice

TWICE = """
import contextlib, pathlib

def stop():
    with contextlib.suppress(FileExistsError), open("at", "x") as file:  # the first of the workers
        print(time.monotonic(), file=file, flush=True)
        os.kill(os.getppid() if workers > 1 else os.getpid(), signal.SIGTERM)

@contextlib.asynccontextmanager
async def life(servers):
    asyncio.get_running_loop().call_soon(stop)
    yield

async def block():
    async with asyncserver.serve(upper, "127.0.0.1", 0) as server, asyncserver.closing_on_signals(server), life(()):
        await server.wait_closed()

loop, workers = sys.argv[1], int(sys.argv[2])
if workers:
    asyncserver.run(asyncserver.serve(upper, "127.0.0.1", 0), lifespan=life, loop=loop, workers=workers)
else:
    asyncio.run(block())
print(time.monotonic() - float(pathlib.Path("at").read_text()))
"""


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("workers", ["0", "1", "2"], ids=["block", "one", "workers"])
def test_signal_is_handled_as_long_as_it_may_come_twice(tmp_path: Path, loop: str, workers: str) -> None:
    """Behind a quick drain the second one, which `timeout` sends, would find the default, and kill the program."""
    with program(tmp_path, TWICE, loop, workers) as running:
        assert running.wait() == 0
        assert float(running.output) >= 0.1
        assert "Traceback" not in running.errors


# -- SIGHUP

RELOADING = """
def context(name):
    return asyncserver.tls_context(name)

asyncserver.run(
    asyncserver.serve(upper, path="a.sock", ssl=context("a.pem")),
    asyncserver.serve(upper, path="b.sock", ssl=context("b.pem")),
    asyncserver.serve(upper, path="plain.sock"),
    loop=sys.argv[1],
)
"""


def certificate(path: Path, *names: str) -> None:
    authority().issue_cert("127.0.0.1", *names).private_key_and_cert_chain_pem.write_to_path(str(path))


def connect(path: Path) -> ssl.SSLSocket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(str(path))
    return client_context().wrap_socket(sock, server_hostname="127.0.0.1")


def names_of(client: ssl.SSLSocket) -> set[str]:
    certificate: Any = client.getpeercert()
    return {name for _, name in certificate["subjectAltName"]}


@pytest.mark.parametrize("loop", LOOPS)
def test_sighup_reads_the_certificates_again(tmp_path: Path, loop: str) -> None:
    """New connections get the new one, open ones stay; a server whose file is broken keeps what it had."""
    certificate(tmp_path / "a.pem", "old-a.example")
    certificate(tmp_path / "b.pem", "old-b.example")
    with program(tmp_path, RELOADING, loop) as started:
        started.wait_for("plain.sock")
        with connect(tmp_path / "a.sock") as before:
            certificate(tmp_path / "a.pem", "new-a.example")
            (tmp_path / "b.pem").write_text("half written")
            started.process.send_signal(signal.SIGHUP)
            started.wait_for("INFO SIGHUP: unix:a.sock has read its certificates again")
            started.wait_for("ERROR SIGHUP: unix:b.sock keeps its certificates: ")
            with connect(tmp_path / "a.sock") as client:
                assert "new-a.example" in names_of(client)
            with connect(tmp_path / "b.sock") as client:
                assert "old-b.example" in names_of(client)
            before.sendall(b"still here")
            assert before.recv(99) == b"STILL HERE"
        started.process.send_signal(signal.SIGTERM)
        assert started.wait() == 0
        assert "no usable certificate and key in b.pem" in started.errors
        assert "Traceback" not in started.errors


def test_sighup_without_certificates_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is said in the log, and the server goes on; afterwards signals do what they did before."""
    caplog.set_level(logging.INFO, "asyncserver")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sock = socket.create_server(("127.0.0.1", 0))
    address = sock.getsockname()

    async def signalled(stream: asyncserver.Stream) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        await upper(stream)
        os.kill(os.getpid(), signal.SIGTERM)

    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        asyncserver.run(asyncserver.serve(signalled, sock=sock))
        assert client.recv(99) == b"HELLO"
    assert "SIGHUP: no server has certificates to be read again" in caplog.text
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sighup_while_it_drains_is_passed_over(tmp_path: Path) -> None:
    """A server that closes has no use for new certificates."""
    certificate(tmp_path / "a.pem", "old-a.example")
    certificate(tmp_path / "b.pem", "old-b.example")
    with program(tmp_path, RELOADING, "asyncio") as started:
        started.wait_for("plain.sock")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(tmp_path / "plain.sock"))
            client.sendall(b"hello")
            assert client.recv(9) == b"HELLO"
            started.process.send_signal(signal.SIGTERM)
            started.process.send_signal(signal.SIGHUP)
            assert client.recv(9) == b""
        assert started.wait() == 0
        assert "certificates" not in started.errors.partition("SIGTERM")[2]
        assert "Traceback" not in started.errors


TERMINAL = """
import os, pty, sys

pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "program.py"])
said = b""
while sys.argv[1].encode() not in said:
    said += os.read(terminal, 4096)
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize(("workers", "ready"), [(1, "serving on unix:x.sock"), (2, "2 workers serve on unix:x.sock")])
def test_a_closed_terminal_drains(tmp_path: Path, workers: int, ready: str) -> None:
    """SIGHUP then comes from the kernel: nobody could press Ctrl-C any more, so the program ends as if one had."""
    source = (
        f"asyncserver.run(asyncserver.serve(upper, path='x.sock'), workers={workers})\nopen('returned', 'w').close()\n"
    )
    (tmp_path / "program.py").write_text(HEAD + source)
    with Program(["-c", TERMINAL, ready], tmp_path) as terminal:
        assert terminal.wait() == 0, terminal.errors
        assert terminal.output.strip() in {"0", "120"}  # 120: what it logged then, it could not write
    assert (tmp_path / "returned").exists()
    assert not (tmp_path / "x.sock").exists()
