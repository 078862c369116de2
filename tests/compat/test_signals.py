"""Signals in storms and at awkward moments; processes that are forked; clocks that jump."""

from __future__ import annotations

import ast
import os
import re
import signal
import socket
import ssl
import time
from pathlib import Path

import pytest

from tests.kit.programs import ROOT, Program, wait_until_asleep

STORM = """
import signal, socketserver
seen = []
signal.signal(signal.SIGHUP, lambda *_: seen.append(1))

class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(100):
            self.request.sendall(data.upper())

with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
print("seen" if seen else "none", "ended", flush=True)
"""


def test_a_storm_of_signals_disturbs_nobody(tmp_path: Path) -> None:
    """100 x SIGHUP while a client asks: all is answered; then SIGTERM ends it in order."""
    (tmp_path / "storm.py").write_text(STORM)
    with Program(["-m", "compat", "storm.py"], tmp_path) as program:
        program.wait_for("\n")
        with socket.create_connection(("127.0.0.1", int(program.output)), timeout=20) as client:
            for _ in range(100):
                program.process.send_signal(signal.SIGHUP)
                client.sendall(b"abc")
                assert client.recv(10) == b"ABC"
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
        assert program.output.endswith("seen ended\n")
        assert program.errors == ""


@pytest.mark.timeout(180)
def test_sigterm_while_starting_has_one_of_two_outcomes(tmp_path: Path) -> None:
    """At any moment: killed as without us, or drained; never a hang, never a traceback of our own."""
    (tmp_path / "storm.py").write_text(STORM)
    outcomes: dict[int, int] = {}
    for step in range(16):
        with Program(["-m", "compat", "storm.py"], tmp_path) as program:
            time.sleep(step * 0.025)  # the moment that is tried
            program.process.send_signal(signal.SIGTERM)
            status = program.wait()
            outcomes[status] = outcomes.get(status, 0) + 1
            assert "Traceback" not in program.errors, program.errors
    print("exit statuses:", outcomes)
    assert set(outcomes) <= {0, -signal.SIGTERM}


# How a program ends.

BLOCKED = """
import socketserver, sys, threading, time

begun = threading.Event()

class Blocked(socketserver.BaseRequestHandler):
    def handle(self):
        begun.set()
        self.request.sendall(b"here")
        self.request.recv(1) if sys.argv[1] == "receiving" else time.sleep(1000)

server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Blocked)
print("port", server.server_address[1], flush=True)
threading.Thread(target=server.serve_forever).start()
begun.wait()  # Python 3.12 starts no threads once the main thread has ended
"""


@pytest.mark.parametrize(("waits", "status"), [("receiving", 0), ("sleeping", -signal.SIGTERM)])
def test_sigterm_after_mains_end_keeps_the_graceful_timeout(waits: str, status: int, tmp_path: Path) -> None:
    """A handler that blocks is woken after it, or, if it cannot be woken, killed with the program."""
    (tmp_path / "script.py").write_text(BLOCKED)
    arguments = ["-m", "compat", "--graceful-timeout", "0.2", "script.py", waits]
    with Program(arguments, tmp_path) as running, connected(running) as client:
        assert client.recv(4) == b"here"
        wait_until_asleep(running.process.pid)
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == status, running.errors


DAEMON = """
import os, socketserver, sys

class Slow(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"here")
        self.request.sendall(self.request.recv(10).upper())

if os.fork():
    os._exit(0)
os.setsid()
server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Slow)
print("pid", os.getpid(), flush=True)
print("port", server.server_address[1], flush=True)
with server:
    server.serve_forever()
print("drained", flush=True)
"""


def test_a_program_that_makes_itself_a_daemon_still_drains(tmp_path: Path) -> None:
    """SIGTERM lets its handler finish, and it ends by itself."""
    (tmp_path / "script.py").write_text(DAEMON)
    with Program(["-m", "compat", "script.py"], tmp_path) as running:
        with connected(running) as client:
            assert client.recv(4) == b"here"
            found = re.search(r"pid (\d+)", running.output)
            assert found
            os.kill(int(found[1]), signal.SIGTERM)
            client.sendall(b"answer")
            assert client.recv(10) == b"ANSWER"
        running.wait_for("drained")


FORKED = """
import os, signal, socketserver, sys, threading, time

class Waiting(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"%d\\n" % os.getpid())
        time.sleep(1000)

class Server(socketserver.ForkingTCPServer):
    def collect_children(self, *, blocking=False):
        before = set(self.active_children or ())
        super().collect_children(blocking=blocking)
        for pid in before - set(self.active_children or ()):
            print("reaped", pid, flush=True)

server = Server(("127.0.0.1", 0), Waiting)
print("port", server.server_address[1], flush=True)
server.serve_forever(0.05)
"""


def test_children_that_serve_nothing_are_killed_by_sigterm(tmp_path: Path) -> None:
    """The process of a request ends at once; the server goes on."""
    (tmp_path / "script.py").write_text(FORKED)
    with Program(["-m", "compat", "script.py"], tmp_path) as running:
        for _ in range(2):
            with connected(running) as client:
                pid = int(client.makefile().readline())
                os.kill(pid, signal.SIGTERM)
                assert client.recv(1) == b""
            running.wait_for(f"reaped {pid}")
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0, running.errors


FORKED_TLS = """
import socketserver, ssl, sys

class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(10):
            self.request.sendall(data)

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
server = socketserver.ForkingTCPServer(("127.0.0.1", 0), Echo)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.ssl_handshake_timeout = 2
print("port", server.server_address[1], flush=True)
server.serve_forever()
"""


def test_a_silent_tls_client_is_cut_off_although_children_have_copies_of_its_socket(
    tmp_path: Path, certfile: Path, client_context: ssl.SSLContext
) -> None:
    """A process forked meanwhile, for somebody else, must not keep the connection."""
    (tmp_path / "script.py").write_text(FORKED_TLS)
    with (
        Program(["-m", "compat", "script.py", str(certfile)], tmp_path) as running,
        connected(running) as silent,
        client_context.wrap_socket(connected(running), server_hostname="localhost") as client,
    ):
        client.sendall(b"abc")
        assert client.recv(10) == b"abc"
        assert silent.recv(1) == b""
        client.sendall(b"def")
        assert client.recv(10) == b"def"


def connected(running: Program) -> socket.socket:
    """A client of a program that prints its port."""
    running.wait_for("port ")
    found = re.search(r"port (\d+)\n", running.output)
    assert found
    return socket.create_connection(("127.0.0.1", int(found[1])), timeout=20)


# Clocks


def test_no_time_limit_depends_on_the_wall_clock() -> None:
    """It may jump; what is measured is monotonic."""
    for path in [*(ROOT / "compat").glob("*.py"), *(ROOT / "asyncserver").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            wall = isinstance(node, ast.Attribute) and ast.unparse(node) in {"time.time", "time.time_ns"}
            assert not wall, f"{path}:{getattr(node, 'lineno', 0)}"


POOLS = """
import multiprocessing, os, signal

def same(number):
    return number

if __name__ == "__main__":
    for _ in range(15):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(same, range(4)) == [0, 1, 2, 3]
    pid = os.fork()
    if pid == 0:
        os._exit(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
    print("children", os.waitpid(pid, 0)[1], flush=True)
"""


def test_sigterm_ends_children_at_once(tmp_path: Path) -> None:
    """Nobody waits for a pool's workers for ever: as without us, the system ends them."""
    (tmp_path / "script.py").write_text(POOLS)
    with Program(["-W", "ignore", "-m", "compat", "script.py"], tmp_path) as running:
        running.wait_for("children 0")
