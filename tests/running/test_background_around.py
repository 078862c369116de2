"""`background` and what is around it: other threads, context variables, a lifespan, mistakes, programs."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import socketserver
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from asyncserver import (
    Server,
    Stream,
    background,
    from_protocol,
    serve,
    serve_datagrams,
)
from tests.kit.handlers import UpperProtocol, upper, upper_datagram
from tests.kit.programs import run_script
from tests.kit.sockets import ask, ask_once, connect
from tests.kit.waiting import PATIENCE

HERE = ("127.0.0.1", 0)
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name == "asyncserver-background"}


# -- calls from other threads


def calls_of(server: Server) -> dict[str, Callable[[], object]]:
    def run(make: Callable[[], Any]) -> Callable[[], object]:
        return lambda: asyncio.run(make())

    return {
        "pause": server.pause,
        "resume": server.resume,
        "reload_tls": server.reload_tls,
        "broadcast": lambda: server.broadcast(b"x"),
        "close": run(server.close),
        "wait_closed": run(server.wait_closed),
        "sendto": run(lambda: server.sendto(b"x", HERE)),
    }


def test_calls_that_belong_to_the_loop_are_refused() -> None:
    """Each says what to write in this thread."""
    with background(serve(upper, *HERE), serve_datagrams(upper_datagram, *HERE)) as (tcp, udp):
        calls = {**calls_of(udp), **{name: call for name, call in calls_of(tcp).items() if name != "sendto"}}
        for name, call in calls.items():
            with pytest.raises(RuntimeError, match=rf"server\.{name}\(\) belongs to .* write .*{name}"):
                call()
        assert not tcp.closed and tcp.taking and udp.taking


def test_what_the_refusals_advise_works() -> None:
    """A program controls its servers from outside of their thread."""
    with background(serve(upper, *HERE)) as server, connect(server.addresses[0]) as client:
        assert ask(client, b"hello") == b"HELLO"
        server.loop.call_soon_threadsafe(server.broadcast, b"to all")
        assert client.recv(99) == b"to all"
        report = asyncio.run_coroutine_threadsafe(server.close(), server.loop).result(PATIENCE)
        assert report.completed == 1
        assert client.recv(99) == b""


def test_readings_are_whole_while_connections_come_and_go() -> None:
    """`connections` and `stats()` can be taken in any thread at any time."""
    with background(serve(upper, *HERE)) as server:
        ended = threading.Event()

        def crowd() -> None:
            for _ in range(50):
                assert ask_once(server.addresses[0]) == b"HELLO"
            ended.set()

        thread = threading.Thread(target=crowd)
        thread.start()
        while not ended.is_set() and thread.is_alive():
            assert len(server.connections) <= 50  # handlers may end later than their clients
            assert server.stats().accepted <= 50
        thread.join(PATIENCE)
    assert ended.is_set() and server.stats().completed == 50


# -- what is around the servers


def test_handlers_see_the_context_of_the_block() -> None:
    """The block does not see what they set."""

    async def tell(stream: Stream) -> None:
        await stream.send(variable.get().encode())
        variable.set("the handler's")

    def check() -> None:
        variable.set("the test's")
        with background(serve(tell, *HERE)) as server:
            assert ask_once(server.addresses[0]) == b"the test's"
        assert variable.get() == "the test's"

    contextvars.copy_context().run(check)


def test_lifespan_is_entered_before_and_left_after() -> None:
    """As under run()."""
    events = []

    @contextlib.asynccontextmanager
    async def life(servers: tuple[Server, ...]) -> AsyncIterator[None]:
        events.append(f"enter, {len(servers)} servers")
        variable.set("the lifespan's")
        yield
        events.append("leave")

    async def tell(stream: Stream) -> None:
        await stream.send(variable.get().encode())
        await stream.closing.wait()
        events.append("handler ends")

    with background(serve(tell, *HERE), lifespan=life) as server, connect(server.addresses[0]) as client:
        assert client.recv(99) == b"the lifespan's"
        events.append("block ends")
    assert events == ["enter, 1 servers", "block ends", "handler ends", "leave"]


@pytest.mark.parametrize("where", ["enter", "leave"])
def test_lifespan_that_fails(where: str) -> None:
    """What it raises comes out where it was raised: as the block begins, or at its end."""
    begun = []

    @contextlib.asynccontextmanager
    async def life() -> AsyncIterator[None]:
        if where == "enter":
            raise LookupError(where)
        yield
        raise LookupError(where)

    with pytest.raises(LookupError, match=where), background(serve(upper, *HERE), lifespan=life):
        begun.append(True)
    assert len(begun) == (where == "leave")
    assert not threads()


def test_interruption_of_the_start() -> None:
    """Ctrl-C while the lifespan is being entered: it is cancelled, and nothing is left."""
    cancelled = []

    @contextlib.asynccontextmanager
    async def life() -> AsyncIterator[None]:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        try:
            await asyncio.sleep(2 * PATIENCE)
        finally:
            cancelled.append(True)
        yield

    with pytest.raises(KeyboardInterrupt), background(serve(upper, *HERE), lifespan=life):
        pytest.fail("the block has begun")
    assert cancelled
    for thread in threads():
        thread.join(PATIENCE)


def test_without_a_thread_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system has no more threads: the servings do not warn that they never served."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"), background(serve(upper, *HERE)):
        pytest.fail("the block has begun")


def test_failure_of_the_end_is_a_note_where_the_block_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    """The block's own exception is kept."""

    @contextlib.asynccontextmanager
    async def life() -> AsyncIterator[None]:
        yield
        raise LookupError("at the end")

    with pytest.raises(ZeroDivisionError) as raised, background(serve(upper, *HERE), lifespan=life):
        raise ZeroDivisionError
    assert raised.value.__notes__ == ["background(): LookupError('at the end')"]
    assert "beside what has ended its block: LookupError('at the end')" in caplog.text


def test_lifespan_that_hangs_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the block has an end."""
    monkeypatch.setattr("asyncserver.program.thread._GRACE", 0.05)
    cancelled = []

    @contextlib.asynccontextmanager
    async def life() -> AsyncIterator[None]:
        yield
        try:
            await asyncio.sleep(2 * PATIENCE)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with background(serve(upper, *HERE), lifespan=life, drain_timeout=0):
        pass
    assert cancelled and not threads()


def test_anyio_is_not_told_that_trio_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """anyio.run(backend="trio") sets a context variable, which the thread inherits."""
    library: contextvars.ContextVar[str | None] = contextvars.ContextVar("library", default=None)
    monkeypatch.setitem(sys.modules, "sniffio", types.SimpleNamespace(current_async_library_cvar=library))

    async def tell(stream: Stream) -> None:
        await stream.send(repr(library.get()).encode())

    def check() -> None:
        library.set("trio")
        with background(serve(tell, *HERE)) as server:
            assert ask_once(server.addresses[0]) == b"None"

    contextvars.copy_context().run(check)


# -- mistakes


def test_wrong_arguments_are_refused_at_once() -> None:
    """Nothing is left that would warn of a server that never served."""
    with pytest.raises(TypeError, match=r"background\(\) needs a server"):
        background()  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"background\(\) expects what serve\(\) .* got <function upper"):
        background(serve(upper, *HERE), upper)  # type: ignore[call-overload]
    with (
        socketserver.TCPServer(HERE, socketserver.BaseRequestHandler) as server,
        pytest.raises(TypeError, match=r"write background\(serve\(compat\.hosted\(BaseRequestHandler\), "),
    ):
        background(server)  # type: ignore[call-overload]
    for wrong in ({"loop": "nonsense"}, {"drain_timeout": -1}, {"lifespan": 5}):
        with pytest.raises((TypeError, ValueError), match=r"loop must be|drain_timeout must be|lifespan"):
            background(serve(upper, *HERE), **wrong)


def test_block_is_for_one_use() -> None:
    """Its servings are, too."""
    serving = serve(from_protocol(UpperProtocol), *HERE)
    once = background(serving)
    with once:
        pass
    with pytest.raises(RuntimeError, match="has been used already"), once:
        pass
    with pytest.raises(RuntimeError, match="has been used already"), background(serving):
        pass


# -- programs

UNTIDY = """
import asyncserver, contextlib

async def upper(stream):
    async for data in stream:
        await stream.send(data.upper())

@contextlib.asynccontextmanager
async def life():
    yield
    print("left", flush=True)

block = asyncserver.background(asyncserver.serve(upper, path="sock"), lifespan=life)
server = block.__enter__()
"""


def test_program_that_ends_inside_drains(tmp_path: Path) -> None:
    """A notebook that is closed: the servers and what is around them end in order."""
    assert run_script(UNTIDY, tmp_path) == (0, "left\n", "")
    assert not (tmp_path / "sock").exists()


def test_child_of_a_fork_leaves_the_servers_alone(tmp_path: Path) -> None:
    """It has neither the thread nor the loop."""
    script = """
import os, signal, socket, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork() beside threads
with block:
    if (child := os.fork()) == 0:
        print("child", flush=True)
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("sock")
        client.sendall(b"hello")
        assert client.recv(99) == b"HELLO"
"""
    source = UNTIDY.replace("server = block.__enter__()\n", script)
    status, output, errors = run_script(source, tmp_path)
    assert (status, output) == (0, "child\nleft\n"), errors
