"""`python -m asyncserver` and `--check` when something is wrong: a line that says what, and a status."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver.cli import main as cli
from tests.kit.certificates import write_files
from tests.kit.cli import command
from tests.kit.programs import Program
from tests.kit.sockets import free_port

# -- --check


def test_check_tells_what_would_be_served(folder: Path) -> None:
    """Handler, certificates, addresses, each in a line; nothing stays, and nothing is served."""
    write_files(folder)
    arguments = ["--tcp", "127.0.0.1:0", "--udp", "[::1]:0", "--unix", "x.sock", "--certfile", "both.pem", "--check"]
    for workers in ("1", "2"):
        with command(folder, "app:handler", *arguments, "--workers", workers) as program:
            assert program.wait() == 0
            assert program.errors == ""
        lines = [
            r"handler  app:handler",
            r"TLS      both\.pem: localhost; until \d{4}-\d\d-\d\d \d\d:\d\d UTC",
            r"stream   127\.0\.0\.1:\d+",
            r"stream   x\.sock",
            r"datagram \[::1\]:\d+",
            r"all of it can be served",
        ]
        assert re.fullmatch("\n".join(lines) + "\n", program.output)
        assert not (folder / "x.sock").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["app:handler", "--unix", "app.py"], 1, "exists and is not a socket"),
        (["broken:handler", "--tcp", ":0"], 1, "no_such_module_at_all"),
        (["app:missing", "--tcp", ":0", "--workers", "2"], 2, "module 'app' has no 'missing'"),
        (["app:handler", "--tcp", ":0", "--certfile", "no.pem"], 2, "--certfile no.pem: No such file or directory"),
        (["--certfile", "app.py", "--keyfile", "no.pem"], 2, "--keyfile no.pem: No such file or directory"),
        (["--certfile", "app.py", "--keyfile", "/"], 2, "--keyfile /: Is a directory"),
        (["app:handler", "--tcp", ":0", "--certfile", "app.py"], 2, "no usable certificate and key in app.py"),
    ],
)
def test_check_finds_what_is_wrong(folder: Path, arguments: list[str], status: int, message: str) -> None:
    """With the status that serving would have had."""
    with command(folder, *arguments, "--check") as program:
        assert program.wait() == status
        assert message in program.errors
        assert "can be served" not in program.output


@pytest.mark.parametrize("second", ["--tcp", "--metrics"])
def test_check_finds_the_same_address_twice(folder: Path, second: str) -> None:
    """What is to be served together is bound together, the metrics too."""
    place = f"127.0.0.1:{free_port()}"
    with command(folder, "app:handler", "--tcp", place, second, place, "--check") as program:
        assert program.wait() == 1
    assert f"{place}: it is taken" in program.errors
    assert "can be served" not in program.output


def test_check_binds_the_metrics_and_says_what_they_need(folder: Path) -> None:
    """Their address has a line of its own; without prometheus-client the last line says what cannot be served."""
    script = "import sys; sys.modules['prometheus_client'] = None; import asyncserver.cli.main as m; sys.exit(m.main())"
    arguments = ["app:handler", "--tcp", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--check"]
    with Program(["-W", "error", "-c", script, *arguments], folder) as program:
        assert program.wait() == 0
    assert re.search(r"^metrics  127\.0\.0\.1:\d+$", program.output, re.MULTILINE)
    assert "all of it can be served but /metrics: metrics need prometheus-client" in program.output
    assert "until then only /ready and /live answer" in program.errors


# -- what it says when something is wrong


WRONG: list[tuple[list[str], str]] = [
    (["handler"], "argument MODULE:HANDLER: expected MODULE:NAME, such as app:handler; got 'handler'"),
    (["app:"], "expected MODULE:NAME"),
    (["nowhere:handler", "--tcp", ":0"], "there is no module 'nowhere' in the current folder or installed"),
    (["nowhere.py:handler", "--tcp", ":0"], "installed; leave out .py: nowhere:handler"),
    (["no.where:handler", "--tcp", ":0"], "there is no module 'no.where'"),
    (["app:missing", "--tcp", ":0"], "module 'app' has no 'missing'"),
    (["app:Namespace.missing", "--tcp", ":0"], "module 'app' has no 'Namespace.missing'"),
    (["app:handler"], "say where to serve app:handler: --tcp HOST:PORT, --udp HOST:PORT or --unix PATH"),
    (["app:synchronous", "--tcp", ":0"], "expects a coroutine function, `async def handler(stream)`; got synchronous"),
    (["app:number", "--udp", ":0"], "expects a coroutine function, `async def handler(datagram)`; got 7"),
    (["app:handler", "--tcp", "localhost"], "expected HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or :8080"),
    (["app:handler", "--tcp", "localhost:http"], "expected HOST:PORT"),
    (["app:handler", "--tcp", "::1:80"], "write an IPv6 address in brackets, [::1]:80; got '::1:80'"),
    (["app:handler", "--tcp", ":70000"], "argument --tcp: expected a port from 0 to 65535; got ':70000'"),
    (["app:handler", "--tcp", ":0", "--udp", "nonsense"], "expected HOST:PORT"),
    (
        ["app:handler", "--tcp", ":0", "--udp", ":0", "--max-pending", "0"],
        "argument --max-pending: expected a whole number, at least 1; got '0'",
    ),
    (
        ["app:handler", "--unix", "x", "--unix-mode", "999"],
        "argument --unix-mode: expected permissions in octal, such as 660; got '999'",
    ),
    (
        ["app:handler", "--tcp", ":0", "--max-connections", "0"],
        "argument --max-connections: expected a whole number, at least 1; got '0'",
    ),
    (["app:handler", "--tcp", ":0", "--max-connections", "x"], "expected a whole number, at least 1; got 'x'"),
    (["app:handler", "--tcp", ":0", "--idle-timeout", "-1"], "expected a number of seconds, more than 0; got '-1'"),
    (["app:handler", "--tcp", ":0", "--keepalive", "1"], "keepalive must be at least 2 seconds, got 1"),
    (["app:handler", "--unix", "x", "--keepalive", "9"], "has no effect without --tcp"),
    (["app:handler", "--tcp", "vsock:1", "--keepalive", "9"], "has no effect without --tcp HOST:PORT"),
    (["app:handler", "--tcp", ":0", "--certfile", "missing.pem"], "--certfile missing.pem: No such file or directory"),
    (["app:handler", "--tcp", ":0", "--certfile", "app.py"], "no usable certificate and key in app.py"),
    (["app:handler", "--tcp", ":0", "--keyfile", "app.py"], "has no effect without --certfile"),
    (["app:handler", "--tcp", ":0", "--tls-groups", "X25519"], "has no effect without --certfile"),
    (
        ["app:handler", "--tcp", ":0", "--certfile", "a", "--certfile", "b", "--keyfile", "a"],
        "give as many --keyfile as --certfile, or none: got 1 for 2",
    ),
    (["legacy:Answer", "--udp", ":0", "--unix", "x"], "legacy:Answer handles datagrams: it can be served with --udp"),
    (["legacy:Datagrams", "--tcp", ":0"], "legacy:Datagrams handles datagrams"),
    (["legacy:Reverse", "--tcp", ":0", "--udp", ":0"], "legacy:Reverse handles streams: it can be served with --tcp"),
    (["legacy:Protocol", "--unix-datagram", "x"], "legacy:Protocol handles streams"),
    (["legacy:Protocol", "--tcp", ":0", "--threads", "2"], "--threads is for subclasses of socketserver."),
    (["--threads", "2"], "--threads is for subclasses of socketserver."),
    (["app:handler", "--tcp", ":0", "--on-error", "app:missing"], "module 'app' has no 'missing'"),
    (["--loop", "trio"], "argument --loop: expected auto, uvloop, asyncio or MODULE:FUNCTION; got 'trio'"),
    (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    (["--tpc", "app:handler"], "unrecognized arguments: --tpc; did you mean --tcp?"),
    (["--port=7000"], "unrecognized arguments: --port=7000; did you mean --tcp HOST:PORT?"),
    (["--max-conections=5"], "unrecognized arguments: --max-conections=5; did you mean --max-connections?"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_are_told_in_a_line(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Status 2, the usage, and one line that names the value and the way out: no traceback, no warning."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "app", raising=False)
    monkeypatch.delitem(sys.modules, "legacy", raising=False)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    usage, _, line = printed.err.rpartition("python -m asyncserver: error: ")
    assert usage.startswith("usage: python -m asyncserver ")
    assert message in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["app:synchronous", "--tcp", ":0"], 2, "expects a coroutine function"),
        (["app:handler", "--tcp", ":0", "--udp", "nonsense"], 2, "expected HOST:PORT"),
        (["app:handler", "--tcp", "no-such-host.invalid:80"], 1, "does not resolve"),
        (["app:handler", "--tcp", "203.0.113.7:0"], 1, "no interface of this machine has that address"),
        (["app:handler", "--unix", "app.py"], 1, "exists and is not a socket"),
        (["app:handler", "--unix", "missing/app.sock"], 1, "the folder does not exist"),
    ],
)
def test_error_ends_the_process_without_a_traceback(
    arguments: list[str], status: int, message: str, folder: Path
) -> None:
    """1 for an address that cannot be had, 2 for wrong arguments; stderr holds nothing but what helps."""
    with command(folder, *arguments) as program:
        assert program.wait() == status
        assert message in program.errors
        assert program.output == ""
    assert "Traceback" not in program.errors
    assert "Warning" not in program.errors
    assert program.errors.splitlines()[-1].startswith("python -m asyncserver: ")


def test_taken_port_is_told_and_the_other_servers_closed(folder: Path) -> None:
    """One of several addresses is taken: status 1, the line names it, and nothing else is said."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        places = ["--tcp", "127.0.0.1:0", "--tcp", f"127.0.0.1:{port}", "--udp", "127.0.0.1:0"]
        with command(folder, "app:handler", *places) as program:
            assert program.wait() == 1
    assert program.errors.startswith("python -m asyncserver: ")
    assert f"127.0.0.1:{port}: it is taken" in program.errors
    assert program.errors.count("\n") == 1


def test_uvloop_asked_for_and_missing_is_told(folder: Path) -> None:
    """Status 1 and a line; no complaint about servers that were not started."""
    script = "import sys; sys.modules['uvloop'] = None; import asyncserver.cli.main as m; sys.exit(m.main())"
    arguments = ["app:handler", "--tcp", "127.0.0.1:0", "--loop", "uvloop"]
    with Program(["-W", "error", "-c", script, *arguments], folder) as program:
        assert program.wait() == 1
    assert "uvloop" in program.errors
    assert program.errors.count("\n") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_greeting_before_the_port_is_had(folder: Path, workers: str) -> None:
    """The main job on a port that is taken says that, and nothing about how to try it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        script = f"import sys, asyncserver.cli.main as m; m._DEFAULT_ADDRESS = '{address}'; sys.exit(m.main())"
        with Program(["-W", "error", "-c", script, "--workers", workers], folder) as program:
            assert program.wait() == 1
    assert program.output == ""
    assert f"{address}: it is taken" in program.errors


def test_error_inside_the_handlers_module_keeps_its_traceback(folder: Path) -> None:
    """A module that fails to import is the user's own bug: there the traceback is what helps."""
    with command(folder, "broken:handler", "--tcp", ":0") as program:
        assert program.wait() == 1
    assert "no_such_module_at_all" in program.errors
    assert "broken.py" in program.errors


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    "call", ["asyncserver.run({0})", "asyncserver.run({0}, workers=2)", "import asyncio; asyncio.run({0})"]
)
def test_module_that_serves_when_imported_says_where_that_belongs(folder: Path, call: str, workers: str) -> None:
    """Whoever tries a program of the README with the command line: it would serve its own address, and no other."""
    serving = call.format("asyncserver.serve(handler, path='own.sock')")
    (folder / "program.py").write_text(f"from app import *\n{serving}\n")
    with command(folder, "program:handler", "--unix", "x.sock", "--workers", workers) as program:
        assert program.wait() == 1
    assert "the command line imports program for its handler" in program.errors
    assert 'put it under `if __name__ == "__main__":`' in program.errors
    assert "program.py" in program.errors
    assert "never awaited" not in program.errors
    assert not (folder / "own.sock").exists()


def test_main_returns_the_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process that calls it, main() runs until the servers are closed; an address that is taken gives 1."""
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["--tcp", f"127.0.0.1:{taken.getsockname()[1]}"]) == 1
    assert "it is taken" in capsys.readouterr().err


async def test_upper_serves_both_kinds() -> None:
    """The handler of the main job is an ordinary one."""
    handler: Callable[..., Any] = cli.upper
    asyncserver.serve(handler, "127.0.0.1", 0).close()
    asyncserver.serve_datagrams(handler, "127.0.0.1", 0).close()
