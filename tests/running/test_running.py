"""run(): the loop, the signals, several servers in one program."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import asyncserver
from asyncserver import Stream
from tests.kit.handlers import upper, upper_datagram
from tests.kit.programs import LOOPS, Program
from tests.kit.waiting import PATIENCE


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def ask(address: Any, kind: int = socket.SOCK_STREAM) -> bytes:
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(PATIENCE)
        client.connect(address)
        client.sendall(b"hello")
        return client.recv(99)


class Asking(threading.Thread):
    """Does something in a thread while run() has the main thread, then stops it with SIGINT."""

    def __init__(self, *actions: Any) -> None:
        super().__init__()
        self.actions = actions
        self.results: list[Any] = []

    def run(self) -> None:
        try:
            for action in self.actions:
                self.results.append(action())
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join(PATIENCE)


@pytest.mark.parametrize("loop", LOOPS)
def test_several_servers_run_in_one_program_until_sigint(
    listening: socket.socket, loop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """TCP and UDP side by side; SIGINT drains and run() returns."""
    caplog.set_level(logging.INFO, "asyncserver")
    udp = socket.socket(type=socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    tcp_address, udp_address = listening.getsockname(), udp.getsockname()
    handler_before = signal.getsignal(signal.SIGINT)
    with Asking(lambda: ask(tcp_address), lambda: ask(udp_address, socket.SOCK_DGRAM)) as asking:
        asyncserver.run(
            asyncserver.serve(upper, sock=listening), asyncserver.serve_datagrams(upper_datagram, sock=udp), loop=loop
        )
    assert asking.results == [b"HELLO", b"HELLO"]
    assert listening.fileno() == udp.fileno() == -1
    assert signal.getsignal(signal.SIGINT) == handler_before
    assert "serving on tcp://" in caplog.text
    assert "serving on udp://" in caplog.text
    assert "SIGINT: no new work" in caplog.text


@pytest.mark.parametrize("loop", LOOPS)
def test_loop_is_the_one_asked_for(listening: socket.socket, loop: Any) -> None:
    """By name."""
    seen: list[str] = []

    async def tell(stream: Stream) -> None:
        seen.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])
        await upper(stream)

    address = listening.getsockname()
    with Asking(lambda: ask(address)):
        asyncserver.run(asyncserver.serve(tell, sock=listening), loop=loop)
    assert seen == [loop]


@pytest.mark.parametrize("installed", [True, False])
def test_auto_takes_uvloop_where_it_is_installed(
    listening: socket.socket, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the standard library's loop where it is not."""
    if installed and "uvloop" not in LOOPS:
        pytest.skip("uvloop is not installed")
    if not installed:
        monkeypatch.setitem(sys.modules, "uvloop", None)  # what an import finds then is ModuleNotFoundError
    seen: list[str] = []

    async def tell(stream: Stream) -> None:
        seen.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])
        await upper(stream)

    address = listening.getsockname()
    with Asking(lambda: ask(address)):
        asyncserver.run(asyncserver.serve(tell, sock=listening))
    assert seen == ["uvloop" if installed else "asyncio"]


def test_uvloop_asked_for_and_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """No silent other loop; and the servers that were not started are no forgotten coroutines."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(ModuleNotFoundError, match="uvloop"):
        asyncserver.run(asyncserver.serve(upper, "127.0.0.1", 0), loop="uvloop")


@pytest.mark.parametrize(
    ("loop", "error", "message"),
    [
        ("trio", ValueError, "\"module:function\" or a function that returns a loop; got 'trio'"),
        (None, ValueError, "got None"),
    ],
)
def test_unknown_loop_says_which_there_are(loop: Any, error: type[Exception], message: str) -> None:
    """The error lists the choices; nothing else is complained about."""
    with pytest.raises(error, match=message):
        asyncserver.run(asyncserver.serve(upper, "127.0.0.1", 0), loop=loop)


@pytest.mark.parametrize("wrong", [upper, "serve", None])
def test_what_is_no_server_says_what_is(wrong: Any) -> None:
    """A handler instead of serve(handler), most likely."""
    with pytest.raises(TypeError, match=r"run\(\) expects what serve\(\) and serve_datagrams\(\) return; got "):
        asyncserver.run(wrong)
    with pytest.raises(TypeError, match=r"write run\(serve\(handler, host, port\)\)$" if callable(wrong) else "got "):
        asyncserver.run(asyncserver.serve(upper, "127.0.0.1", 0), wrong)


def test_nothing_to_run_says_what_to_write() -> None:
    """run() alone has nothing to do."""
    with pytest.raises(TypeError, match=r"run\(serve\(handler, host, port\)\); got none"):
        asyncserver.run()


def test_nothing_from_systemd_is_said_to_be_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside systemd a program for its sockets has none, and run() is where that shows."""
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    with pytest.raises(TypeError, match=r"systemd_sockets\(\) gives none where systemd has opened none"):
        asyncserver.run(*[asyncserver.serve(upper, sock=one) for one in asyncserver.systemd_sockets("web")])


@pytest.mark.parametrize("position", [0, 1, 2])
def test_server_that_cannot_start_closes_the_others(listening: socket.socket, position: int) -> None:
    """Those before it are drained and closed, those after it are not begun, and the error is raised, no more."""
    others = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    servings = [asyncserver.serve(upper, sock=sock) for sock in others]
    servings.insert(position, asyncserver.serve(upper, "127.0.0.1", listening.getsockname()[1]))
    with pytest.raises(asyncserver.BindError, match="taken"):
        asyncserver.run(*servings)
    assert [sock.fileno() == -1 for sock in others] == [number < position for number in range(2)]
    for sock in others:
        sock.close()


class Closing:
    """A handler that answers once and closes its server."""

    def __asyncserver_handler__(self, server: asyncserver.Server) -> Closing:
        self.server = server
        return self

    async def __call__(self, stream: Stream) -> None:
        await stream.send((await stream.receive()).upper())
        await self.server.close()


def test_it_returns_when_every_server_has_been_closed() -> None:
    """Servers that close themselves end the program; one alone does not end the others."""
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [sock.getsockname() for sock in socks]
    results: list[bytes] = []
    asking = threading.Thread(target=lambda: results.extend(map(ask, addresses)))
    asking.start()
    asyncserver.run(*(asyncserver.serve(Closing(), sock=sock) for sock in socks))
    asking.join(PATIENCE)
    assert results == [b"HELLO"] * 2


def test_outside_the_main_thread_it_serves_without_signals() -> None:
    """There Python delivers no signals; the server runs all the same."""
    sock = socket.create_server(("127.0.0.1", 0))
    address = sock.getsockname()
    running = threading.Thread(target=asyncserver.run, args=(asyncserver.serve(Closing(), sock=sock),))
    running.start()
    assert ask(address) == b"HELLO"
    running.join(PATIENCE)
    assert not running.is_alive()


async def test_inside_a_running_loop_it_says_so() -> None:
    """run() makes a loop of its own; where one runs already it refuses, and nothing is left unawaited."""
    with pytest.raises(RuntimeError, match="makes a loop of its own, and here one runs already"):
        asyncserver.run(asyncserver.serve(upper, "127.0.0.1", 0))


PROGRAM = """
import asyncio, logging, socket, sys
import asyncserver

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")

async def handler(stream):
    word = await stream.receive()
    print("received", word.decode(), flush=True)
    try:
        if word == b"finish":
            await stream.closing.wait()
            await asyncio.sleep(0.1)
            await stream.send(b"finished")
        else:
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise

sock = socket.create_server(("127.0.0.1", 0))
print("port", sock.getsockname()[1], flush=True)
asyncserver.run(asyncserver.serve(handler, sock=sock, drain_timeout=60), loop=sys.argv[1])
print("returned", flush=True)
"""


def started(program: Program) -> tuple[str, int]:
    program.wait_for("serving on")
    program.wait_for("port ")
    return "127.0.0.1", int(program.output.split()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", LOOPS)
def test_signal_drains(loop: str, number: signal.Signals, tmp_path: Path) -> None:
    """Who is being served is answered, then run() returns and the program goes on."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with Program(["-W", "error", "program.py", loop], tmp_path) as program:
        address = started(program)
        with socket.create_connection(address, PATIENCE) as client:
            client.sendall(b"finish")
            program.wait_for("received finish")
            program.process.send_signal(number)
            assert client.recv(99) == b"finished"
        assert program.wait() == 0
        assert program.output.endswith("received finish\nreturned\n")
        assert f"INFO {number.name}: no new work" in program.errors
        assert "ERROR" not in program.errors
        assert "Traceback" not in program.errors
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(address):
        pytest.fail("somebody still listens")


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)],
)
@pytest.mark.parametrize("loop", LOOPS)
def test_second_signal_forces(loop: str, first: signal.Signals, second: signal.Signals, tmp_path: Path) -> None:
    """A handler that does not end is cancelled by the second signal, long before the drain's deadline."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with Program(["-W", "error", "program.py", loop], tmp_path) as program:
        address = started(program)
        with socket.create_connection(address, PATIENCE) as client:
            client.sendall(b"hang")
            program.wait_for("received hang")
            program.process.send_signal(first)
            program.wait_for(f"{first.name}: no new work")
            program.process.send_signal(second)
            assert client.recv(99) == b""
        assert program.wait() == 0
        assert program.output.endswith("received hang\ncancelled\nreturned\n")
        assert f"WARNING {second.name} again: cancelling what still runs" in program.errors
        assert "Traceback" not in program.errors
