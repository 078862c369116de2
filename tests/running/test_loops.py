"""Loops that are neither asyncio's nor uvloop's: named by a function, without some methods, and those of others."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from tests.kit.certificates import client_context, write_files
from tests.kit.handlers import upper
from tests.kit.programs import Program
from tests.kit.sockets import connect
from tests.kit.waiting import PATIENCE

BARE = """
import asyncio

class Bare(asyncio.SelectorEventLoop):
    '''A loop of somebody else's, without what a server can do without.'''
    for name in ("add_signal_handler", "remove_signal_handler", "getaddrinfo", "get_task_factory", "set_task_factory"):
        locals()[name] = getattr(asyncio.AbstractEventLoop, name)

class WithoutReaders(asyncio.SelectorEventLoop):
    add_reader = asyncio.AbstractEventLoop.add_reader
    remove_reader = asyncio.AbstractEventLoop.remove_reader

class Forgetful(asyncio.SelectorEventLoop):
    '''As rloop 0.5.'''
    def remove_signal_handler(self, number):
        if not self.is_closed():
            raise AttributeError("'Forgetful' object has no attribute '_is_main_thread'")
        return super().remove_signal_handler(number)

def nothing():
    return None

def needs(kind):
    return asyncio.SelectorEventLoop()

def fails():
    raise OSError("no ring")

async def later():
    return asyncio.SelectorEventLoop()

number = 7
"""

APP = """
import asyncio, signal, sys
import asyncserver

async def handler(source):
    if isinstance(source, asyncserver.Datagram):
        return source.data.upper()
    async for data in source:
        if data == b"loop":
            data = type(asyncio.get_running_loop()).__name__.encode()
            await source.send(data)
            continue
        await source.send(data.upper())
"""

#: Functions that make loops which others have published; none is needed here, and each is tried where it is installed.
OTHERS = (
    "rloop:new_event_loop",
    "veloxloop:new_event_loop",
    "blazio:new_event_loop",
    "zloop:new_event_loop",
    "loopmini:new_event_loop",
    "uringcore:UringEventLoop",
)
INSTALLED = [one for one in OTHERS if importlib.util.find_spec(one.partition(":")[0])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Modules with loops, and with a handler."""
    (tmp_path / "bare.py").write_text(BARE)
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@contextmanager
def served(folder: Path, loop: str, *options: str) -> Iterator[tuple[Program, int]]:
    """Serve on a loop by the command line; yields the program and a port."""
    arguments = ("-m", "asyncserver", "app:handler", "--tcp", "127.0.0.1:0", "--loop", loop, *options)
    with Program(list(arguments), folder) as program:
        found = program.expect(r"(?:serving|serve) on tcp://127\.0\.0\.1:(\d+)")
        yield program, int(found[1])


def ask(port: int, question: bytes = b"hello") -> bytes:
    with connect(port) as client:
        client.sendall(question)
        return client.recv(99)


# -- by name


@pytest.mark.parametrize(
    ("loop", "error", "message"),
    [
        ("nowhere:loop", ModuleNotFoundError, "No module named 'nowhere'"),
        ("asyncio:nothing", ValueError, "loop='asyncio:nothing': module 'asyncio' has no 'nothing'"),
        (
            "bare:number",
            TypeError,
            "loop='bare:number' must be a function without arguments that returns a loop; got 7",
        ),
        ("bare:nothing", TypeError, "that returns a loop; it returned None"),
        ("bare:", ValueError, "\"module:function\" or a function that returns a loop; got 'bare:'"),
        (lambda: 7, TypeError, "<lambda> must be a function without arguments that returns a loop; it returned 7"),
        ("bare:needs", TypeError, "that returns a loop; it takes (kind): give them by functools.partial"),
        ("bare:later", TypeError, "that returns a loop; it is `async def`, and returns a coroutine"),
        (
            "bare:WithoutReaders",
            RuntimeError,
            "loop='bare:WithoutReaders': WithoutReaders has no add_reader(), remove_reader(), which servers need",
        ),
    ],
)
def test_what_makes_no_loop(
    folder: Path, loop: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence, and nothing is served."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "bare", raising=False)
    with pytest.raises(error) as caught:
        asyncserver.run(asyncserver.serve(upper, "127.0.0.1", 0), loop=loop)
    assert message in str(caught.value)


def test_a_function_makes_the_loop(folder: Path) -> None:
    """run() takes the function too, and calls it without arguments."""
    made: list[asyncio.AbstractEventLoop] = []

    def make() -> asyncio.AbstractEventLoop:
        made.append(asyncio.SelectorEventLoop())
        return made[0]

    async def handler(stream: asyncserver.Stream) -> None:
        assert asyncio.get_running_loop() is made[0]

    serving = asyncserver.serve(handler, path=str(folder / "a.sock"))
    interrupt = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        asyncserver.run(serving, loop=lambda: _ending(make()))
    assert made[0].is_closed()
    assert signal.getsignal(signal.SIGINT) is interrupt


def _ending(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    def leave() -> None:
        raise SystemExit(3)

    loop.call_later(0.05, leave)
    return loop


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("loop", "message"),
    [
        ("nowhere:loop", "there is no module 'nowhere'"),
        ("bare:missing", "module 'bare' has no 'missing'"),
        ("bare:WithoutReaders", "WithoutReaders has no add_reader(), remove_reader(), which servers need"),
        ("bare:fails", "no ring"),
        ("bare:nothing", "loop=nothing must be a function without arguments that returns a loop; it returned None"),
    ],
)
def test_the_command_line_says_so(folder: Path, loop: str, message: str, workers: str) -> None:
    """Workers load it themselves, so that after SIGHUP new ones have new code."""
    arguments = ["-m", "asyncserver", "app:handler", "--tcp", "127.0.0.1:0", "--loop", loop]
    with Program([*arguments, "--workers", workers], folder) as program:
        assert program.wait() in {1, 2}
        assert message in program.errors
        assert "never awaited" not in program.errors
        assert workers == "2" or "Traceback" not in program.errors
    with Program([*arguments, "--check"], folder) as program:
        assert program.wait() == 2
        assert message in program.errors


# -- without some methods


@pytest.mark.parametrize("loop", ["bare:Bare", "bare:Forgetful"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_signals_and_names_without_the_loops_help(folder: Path, loop: str, workers: str) -> None:
    """SIGTERM drains, the second one ends at once, and SIGHUP is heard."""
    with served(folder, loop, "--workers", workers, "--udp", "localhost:0") as (program, port):
        assert ask(port, b"loop") == loop.partition(":")[2].encode()
        with connect(port) as held:
            held.sendall(b"hello")
            assert held.recv(99) == b"HELLO"
            program.tell(signal.SIGHUP)
            program.wait_for("SIGHUP")
            if workers == "1":
                assert ask(port) == b"HELLO"
        assert program.end() == 0, program.errors
        assert "Traceback" not in program.errors


def test_an_idle_loop_hears_of_a_signal(folder: Path) -> None:
    """It waits for nothing else, so a handler of Python's alone would wait with it; what was before is put back."""
    (folder / "main.py").write_text(
        "import logging, signal, bare, asyncserver, app\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]\n"
        "asyncserver.run(asyncserver.serve(app.handler, path='a.sock'), loop=bare.Bare)\n"
        "assert before == [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]\n"
        "assert signal.set_wakeup_fd(-1) == -1\n"
        "print('put back')\n"
    )
    with Program(["main.py"], folder) as program:
        program.wait_for("a.sock")
        assert program.end() == 0, program.errors
        assert "put back" in program.output


# -- those of others


@pytest.mark.skipif(not INSTALLED, reason="none of the other loops is installed")
@pytest.mark.parametrize("loop", INSTALLED)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_loops_of_others(folder: Path, loop: str, workers: str) -> None:
    """TLS, a name, SIGHUP; a drain by SIGTERM. Sockets for datagrams and of Unix are bound, and not used."""
    write_files(folder)
    options = ["--certfile", "both.pem", "--udp", "localhost:0", "--unix", "a.sock", "--workers", workers]
    with served(folder, loop, *options) as (program, port):
        context: ssl.SSLContext = client_context()
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(b"hello")
            assert client.recv(99) == b"HELLO"
        program.tell(signal.SIGHUP)
        program.wait_for("SIGHUP")
        assert program.end() == 0, program.errors
        assert "Traceback" not in program.errors
