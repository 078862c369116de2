"""`python -m asyncserver`, in processes of its own: as a person types it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from asyncserver.cli import main as cli
from asyncserver.cli.options import make_parser, read
from tests.kit.cli import command, internet_address
from tests.kit.programs import ROOT, Program
from tests.kit.sockets import ask_once, free_port
from tests.kit.waiting import PATIENCE

# -- what it does


def test_main_job_is_an_upper_casing_echo_on_tcp_and_udp(folder: Path) -> None:
    """Without arguments, but for the port, which others may have: 127.0.0.1:8080 stands in for a free one."""
    port = free_port()
    script = f"import sys, asyncserver.cli.main as m; m._DEFAULT_ADDRESS = '127.0.0.1:{port}'; sys.exit(m.main([]))"
    with Program(["-W", "error", "-c", script], folder) as program:
        program.wait_for("serving on udp:")
        assert ask_once(("127.0.0.1", port)) == b"HELLO"
        assert ask_once(("127.0.0.1", port), socket.SOCK_DGRAM) == b"HELLO"
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == 0
        assert f"echo on 127.0.0.1:{port}, TCP and UDP. Ctrl-C ends it." in program.output
        assert f"nc 127.0.0.1 {port}" in program.output
        assert "Traceback" not in program.errors


def test_the_main_jobs_address() -> None:
    """What the README and the Makefile tell."""
    assert cli._DEFAULT_ADDRESS == "127.0.0.1:8080"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_serve_passes_arguments() -> None:
    """`make serve ARGS="--tcp :9000"`, where the main job's port is taken."""
    told = subprocess.run(
        ["make", "--dry-run", "serve", "ARGS=--tcp :9000"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout.rstrip().endswith("python -m asyncserver --tcp :9000")


def test_tests_do_not_inherit_what_started_them() -> None:
    """In make a make says more, and what runs in the background (`make test &`) hears no SIGINT."""
    assert not {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"} & os.environ.keys()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_line_that_tells_how_to_try_it_works(folder: Path) -> None:
    """The Python one-liner that is printed asks the server, and prints its answer."""
    port = free_port()
    script = f"import sys, asyncserver.cli.main as m; m._DEFAULT_ADDRESS = '127.0.0.1:{port}'; sys.exit(m.main([]))"
    with Program(["-W", "error", "-c", script], folder) as program:
        program.wait_for("print(s.recv(99))'\n")
        (line,) = [line for line in program.output.splitlines() if "python3 -c" in line]
        one_liner = line.partition("python3 -c '")[2].removesuffix("'")
        with Program(["-c", one_liner], folder) as client:
            assert client.wait() == 0, client.errors
            assert client.output == "b'HELLO'\n"


@pytest.mark.parametrize("name", ["app:handler", "app:Namespace.inner"])
def test_handler_is_loaded_from_the_current_folder(folder: Path, name: str) -> None:
    """On several addresses of every kind; SIGTERM ends it with status 0."""
    path = folder / "app.sock"
    places = ["--tcp", "127.0.0.1:0", "--tcp", "localhost:0", "--udp", "127.0.0.1:0"]
    with command(folder, name, *places, "--unix", str(path), "--unix-mode", "600") as program:
        assert ask_once(internet_address(program, "udp"), socket.SOCK_DGRAM) == b"olleh"
        ports = re.findall(r"serving on tcp://.*127\.0\.0\.1:(\d+)", program.errors)
        assert [ask_once(("127.0.0.1", int(port))) for port in ports] == [b"olleh"] * 2
        assert ask_once(str(path)) == b"olleh"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
        assert "Traceback" not in program.errors
    assert not path.exists()


def test_adapter_is_taken_as_a_handler(folder: Path) -> None:
    """What from_protocol() returns."""
    with command(folder, "app:protocol", "--tcp", "127.0.0.1:0") as program:
        address = internet_address(program)
        assert ask_once(address) == b"olleh"


def test_empty_host_is_every_interface(folder: Path) -> None:
    """:PORT listens on IPv4 and IPv6, [::1]:PORT on that alone."""
    with command(folder, "app:handler", "--tcp", ":0", "--udp", "[::1]:0") as program:
        _, port = internet_address(program)
        assert ask_once(("127.0.0.1", port)) == b"olleh"
        with socket.create_connection(("::1", port), PATIENCE) as client:
            client.sendall(b"six")
            assert client.recv(9) == b"xis"
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.connect(internet_address(program, "udp"))
            client.send(b"six")
            assert client.recv(9) == b"xis"


def test_limits_reach_the_server(folder: Path) -> None:
    """--max-connections-per-host and --idle-timeout do what they say."""
    limits = ["--max-connections-per-host", "1", "--idle-timeout", "1", "--max-connections", "5"]
    limits += ["--drain-timeout", "1", "--max-pending", "5", "--loop", "asyncio", "--log-level", "debug"]
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0", *limits) as program:
        address = internet_address(program)
        with socket.create_connection(address, PATIENCE) as first:
            first.sendall(b"one")
            assert first.recv(9) == b"eno"
            with socket.create_connection(address, PATIENCE) as second:
                assert second.recv(9) == b""
            assert first.recv(9) == b""  # idle
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == 0


def test_help_is_worth_reading(folder: Path) -> None:
    """-h tells every option, with examples and what the exit status means, within a terminal's width."""
    with command(folder, "-h", COLUMNS="100") as program:
        assert program.wait() == 0
        text = program.output
    for option in ("--tcp", "--udp", "--unix", "--certfile", "--max-connections", "--idle-timeout", "--loop"):
        assert option in text
    assert "examples:" in text
    assert re.search(r"exit status:\n  0  .*\n  1  .*\n  2  ", text)
    assert "async def handler(stream)" in text
    assert max(map(len, text.splitlines())) <= 120
    for line in text.splitlines():
        if line.startswith("  python -m asyncserver "):  # an example is a command line that parses
            options = read(make_parser("7"), line.split()[3:], {})
            assert options.tcp or options.udp or options.unix


def test_script_is_called_as_it_was_typed(folder: Path) -> None:
    """The script that pip installs: its usage, examples and errors do not speak of `python -m`."""
    script = "import sys; from asyncserver.cli.main import program; sys.argv[0] = '/usr/bin/asyncserver'; program()"
    with Program(["-c", script, "--help"], folder) as helping:
        assert helping.wait() == 0
    assert helping.output.startswith("usage: asyncserver [MODULE:HANDLER]")
    assert "\n  asyncserver app:handler --tcp" in helping.output and "python -m" not in helping.output
    with Program(["-c", script, "app:handler", "--unix", "app.py"], folder) as failing:
        assert failing.wait() == 1
    assert failing.errors.startswith("asyncserver: ")
    with Program(["-c", script, "app:handler", "--tcp", "127.0.0.1:0"], folder) as serving:
        assert ask_once(internet_address(serving)) == b"olleh"
        assert serving.end() == 0


# -- sockets that others have bound


def test_inherited_descriptors(folder: Path) -> None:
    """fd:N as an address: a listening TCP socket, and a bound UDP one."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        numbers = tcp.fileno(), udp.fileno()
        arguments = ["app:handler", "--tcp", f"fd:{numbers[0]}", "--udp", f"fd:{numbers[1]}"]
        with Program(["-m", "asyncserver", *arguments], folder, numbers) as program:
            assert ask_once(tcp.getsockname()) == b"olleh"
            assert ask_once(udp.getsockname(), socket.SOCK_DGRAM) == b"olleh"
            program.process.send_signal(signal.SIGTERM)
            assert program.wait() == 0


# -- the environment


def test_environment_is_heard(folder: Path) -> None:
    """A whole command line in variables; what is typed wins."""
    variables = {
        "ASYNCSERVER_HANDLER": "app:handler",
        "ASYNCSERVER_TCP": "127.0.0.1:0",
        "ASYNCSERVER_UNIX": "a.sock 'b c.sock'",
        "ASYNCSERVER_UNIX_MODE": "777",
    }
    with command(folder, "--unix-mode", "600", **variables) as program:
        assert ask_once(internet_address(program)) == b"olleh"
        program.wait_for("serving on unix:b c.sock")
        assert ask_once(str(folder / "b c.sock")) == b"olleh"
        assert stat.S_IMODE((folder / "a.sock").stat().st_mode) == 0o600


@pytest.mark.parametrize("workers", ["1", "2"])
def test_variable_of_no_option_is_told(folder: Path, workers: str) -> None:
    """Once, with what was meant, most likely; it keeps nobody from serving."""
    with command(folder, "app:handler", "--unix", "x.sock", "--workers", workers, ASYNCSERVER_WORKER="3") as program:
        program.wait_for("serving on unix:x.sock" if workers == "1" else "workers serve on")
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
    told = "environment variable of no option: ASYNCSERVER_WORKER; did you mean ASYNCSERVER_WORKERS?"
    assert program.errors.count(told) == 1


# -- logs


def test_json_logs(folder: Path) -> None:
    """--log-json: every line on standard error is an object; a failure has its peer, server and traceback in it."""
    with command(folder, "legacy:fail", "--unix", "x.sock", "--log-json", "--log-connections") as program:
        program.wait_for("serving on unix:x.sock")
        with socket.socket(socket.AF_UNIX) as client:  # which the handler closes without hearing it
            client.settimeout(PATIENCE)
            client.connect(str(folder / "x.sock"))
            assert client.recv(9) == b""
        program.wait_for("connection failed")
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
    records = [json.loads(line) for line in program.errors.splitlines()]
    assert {record["server"] for record in records if "server" in record} == {"unix:x.sock"}
    (failure,) = [record for record in records if record["level"] == "ERROR"]
    assert (failure["logger"], failure["peer"], failure["outcome"]) == ("asyncserver", "unix", "failed")
    assert failure["exception"].endswith("ValueError: on purpose")
    (line,) = [record for record in records if record["logger"] == "asyncserver.connection"]
    assert (line["level"], line["peer"], line["outcome"]) == ("INFO", "unix", "failed")
    assert line["message"].startswith("unix: connection failed after ")


def test_lines_about_connections_are_off_by_default(folder: Path) -> None:
    """Servers of thousands of short connections would drown in them."""
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0") as program:
        assert ask_once(internet_address(program)) == b"olleh"
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
    assert "connection completed" not in program.errors
