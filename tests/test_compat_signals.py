"""Signals in storms and at awkward moments, and clocks that jump."""

from __future__ import annotations

import ast
import signal
import socket
import time
from typing import TYPE_CHECKING

from tests.serverkit import ROOT, Program

if TYPE_CHECKING:
    from pathlib import Path

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


def test_no_time_limit_depends_on_the_wall_clock() -> None:
    """It may jump; what is measured is monotonic."""
    for path in [*(ROOT / "compat").glob("*.py"), *(ROOT / "asyncserver").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            wall = isinstance(node, ast.Attribute) and ast.unparse(node) in {"time.time", "time.time_ns"}
            assert not wall, f"{path}:{getattr(node, 'lineno', 0)}"
