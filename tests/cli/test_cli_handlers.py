"""`python -m asyncserver` with classes written for others: hosted, bounded, in workers."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest

from tests.kit.cli import command, internet_address
from tests.kit.sockets import ask_once
from tests.kit.waiting import PATIENCE


@pytest.mark.parametrize("name", ["Protocol", "Buffered", "Either", "Reverse"])
def test_class_for_streams_is_hosted(folder: Path, name: str) -> None:
    """A handler class of socketserver's, or a protocol: as it is, by its name alone."""
    with command(folder, f"legacy:{name}", "--unix", "x.sock", "--tcp", "127.0.0.1:0") as program:
        address = internet_address(program)
        program.wait_for("serving on unix:x.sock")
        assert b"olleh" in ask_once(address, question=b"hello\n")
        assert b"olleh" in ask_once(str(folder / "x.sock"), question=b"hello\n")
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
        assert "Traceback" not in program.errors


@pytest.mark.parametrize("name", ["Datagrams", "Either", "Answer"])
def test_class_for_datagrams_is_hosted(folder: Path, name: str) -> None:
    """The same with --udp and --unix-datagram."""
    with command(folder, f"legacy:{name}", "--udp", "127.0.0.1:0", "--unix-datagram", "x.sock") as program:
        assert ask_once(internet_address(program, "udp"), socket.SOCK_DGRAM) == b"olleh"
        program.wait_for("serving on unix-datagram:x.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.bind(str(folder / "client.sock"))
            client.connect(str(folder / "x.sock"))
            client.send(b"hello")
            assert client.recv(99) == b"olleh"
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
        assert "Traceback" not in program.errors


@pytest.mark.parametrize(("threads", "most"), [(["--threads", "1"], b"olleh 1\n"), ([], b"olleh 2\n")])
def test_threads_bound_hosted_handlers(folder: Path, threads: list[str], most: bytes) -> None:
    """With one thread the second client waits until the first has left."""
    with command(folder, "legacy:Reverse", "--tcp", "127.0.0.1:0", *threads) as program:
        address = internet_address(program)
        with socket.create_connection(address, PATIENCE) as first:
            first.sendall(b"hello\n")
            assert first.recv(99) == b"olleh 1\n"
            with socket.create_connection(address, PATIENCE) as second:
                second.sendall(b"hello\n")
                if threads:
                    first.close()
                assert second.recv(99) == most


def test_hosted_handlers_in_workers(folder: Path) -> None:
    """Each worker has threads of its own."""
    with command(folder, "legacy:Reverse", "--tcp", "127.0.0.1:0", "--workers", "2") as program:
        program.wait_for("2 workers serve on tcp://127.0.0.1:")
        (port,) = re.findall(r"workers serve on tcp://127\.0\.0\.1:(\d+)\n", program.errors)
        assert b"olleh" in ask_once(("127.0.0.1", int(port)), question=b"hello\n")
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0


def test_on_error_is_called(folder: Path) -> None:
    """--on-error names a function that gets what a handler raised, and the stream."""
    with command(folder, "legacy:fail", "--tcp", "127.0.0.1:0", "--on-error", "legacy:report") as program:
        assert ask_once(internet_address(program)) == b""
        program.wait_for("reported on purpose Stream")


CHANGING = """
async def handler(stream):
    await stream.receive()
    await stream.send(b"{answer}")
    raise ValueError("{answer}")

def report(exception, source):
    print("reported", exception, flush=True)
"""


def test_new_workers_have_new_code(folder: Path) -> None:
    """After SIGHUP, for whatever the command line names: the supervisor has imported none of it."""
    (folder / "changing.py").write_text(CHANGING.format(answer="old"))
    arguments = ["changing:handler", "--on-error", "changing:report", "--unix", "x.sock", "--workers", "2"]
    arguments += ["--log-level", "debug"]
    with command(folder, *arguments, PYTHONDONTWRITEBYTECODE="1") as program:
        program.wait_for("2 workers serve on ")
        assert ask_once(str(folder / "x.sock")) == b"old"
        program.wait_for("reported old")
        (folder / "changing.py").write_text(CHANGING.format(answer="new"))
        program.process.send_signal(signal.SIGHUP)
        program.wait_for(" ended with status 0 while it drained", times=2)
        assert ask_once(str(folder / "x.sock")) == b"new"
        program.wait_for("reported new")
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
