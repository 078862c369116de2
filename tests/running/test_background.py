"""`background`: servers in a thread beside the program: their start, their drain, errors of handlers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import compat
from asyncserver import (
    BindError,
    Datagram,
    Serving,
    Stream,
    background,
    from_callback,
    from_protocol,
    serve,
    serve_datagrams,
)
from tests.kit.handlers import RaiseOrEcho, upper, upper_datagram
from tests.kit.programs import LOOPS
from tests.kit.sockets import ask, ask_once, connect, free_port
from tests.kit.waiting import PATIENCE

HERE = ("127.0.0.1", 0)


async def fail(stream: Stream) -> None:
    raise ValueError(await stream.receive())


async def answer_at_the_end(stream: Stream) -> None:
    """Take a question, and answer when the drain has begun."""
    await stream.receive()
    await stream.send(b"taken")
    await stream.closing.wait()
    await stream.send(b"at last")


def threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name == "asyncserver-background"}


@pytest.mark.parametrize("loop", LOOPS)
def test_block_has_a_server_that_serves(loop: str) -> None:
    """It is bound as the block begins, in a loop of the kind that was asked for; after it nothing is left."""
    with background(serve(upper, *HERE), loop=loop) as server, connect(server.addresses[0]) as client:
        assert type(server.loop).__module__.startswith(loop)
        assert ask(client, b"hello") == b"HELLO"
        assert server.stats().active == 1
        (stream,) = server.connections
        assert stream.peer_address == client.getsockname()
        assert server.sockets[0].getsockname() == server.addresses[0]
    assert server.closed and server.loop.is_closed() and not threads()
    stats = server.stats()
    assert (stats.accepted, stats.completed, stats.bytes_sent) == (1, 1, 5)


def test_several_servings_give_a_tuple(tmp_path: Path) -> None:
    """One thread serves all of them."""
    path = str(tmp_path / "sock")
    servings = serve(upper, *HERE), serve_datagrams(upper_datagram, *HERE), serve(upper, path=path)
    with background(*servings) as (tcp, udp, unix):
        assert len(threads()) == 1 and tcp.loop is udp.loop is unix.loop
        assert ask_once(tcp.addresses[0]) == b"HELLO"
        assert ask_once(udp.addresses[0], socket.SOCK_DGRAM) == b"HELLO"
        assert ask_once(path) == b"HELLO"
    assert not Path(path).exists()


def test_blocks_can_be_nested() -> None:
    """Each has a thread and a loop."""
    with background(serve(upper, *HERE)) as outer:
        with background(serve(upper, *HERE)) as inner:
            assert inner.loop is not outer.loop
            assert ask_once(inner.addresses[0]) == b"HELLO"
        assert ask_once(outer.addresses[0]) == b"HELLO"


async def test_block_in_a_running_loop() -> None:
    """A notebook's cell runs in a loop; the servers have another."""
    with background(serve(upper, *HERE)) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(b"hello")
        assert await reader.read(99) == b"HELLO"
        writer.close()
        await writer.wait_closed()


def test_error_of_the_start_is_raised_where_the_block_begins() -> None:
    """What had started by then is closed."""
    with socket.create_server(HERE) as taken:
        address = ("127.0.0.1", free_port())
        servings = serve(upper, *address), serve(upper, *taken.getsockname())
        with pytest.raises(BindError, match="it is taken"), background(*servings):
            pytest.fail("the block has begun")
        socket.create_server(address).close()
    assert not threads()


def test_end_of_the_block_drains() -> None:
    """A handler that owes an answer gives it."""
    with background(serve(answer_at_the_end, *HERE)) as server:
        client = connect(server.addresses[0])
        client.sendall(b"question")
        assert client.recv(99) == b"taken"
    with client:
        assert client.recv(99) == b"at last"


@pytest.mark.parametrize("error", [ZeroDivisionError("the block's own"), KeyboardInterrupt()], ids=repr)
def test_exception_of_the_block_is_kept(error: BaseException) -> None:
    """The drain comes first."""
    with pytest.raises(type(error)) as raised, background(serve(answer_at_the_end, *HERE)) as server:
        client = connect(server.addresses[0])
        client.sendall(b"question")
        assert client.recv(99) == b"taken"
        raise error
    assert raised.value is error
    with client:
        assert client.recv(99) == b"at last"


def test_second_interruption_ends_the_drain() -> None:
    """Ctrl-C while it drains."""

    async def hang(stream: Stream) -> None:
        await stream.send(b"here")
        await stream.closing.wait()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        await asyncio.sleep(2 * PATIENCE)

    with pytest.raises(KeyboardInterrupt), background(serve(hang, *HERE)) as server:
        client = connect(server.addresses[0])
        assert client.recv(99) == b"here"
    client.close()
    assert server.closed and not threads()


def test_handler_that_goes_on_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """The drain has an end, and the log says what it has cancelled."""

    async def hang(stream: Stream) -> None:
        await stream.send(b"here")
        await asyncio.sleep(2 * PATIENCE)

    with background(serve(hang, *HERE), drain_timeout=0.01) as server, connect(server.addresses[0]) as client:
        assert client.recv(99) == b"here"
    assert server.stats().cancelled == 1
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert server.label in warning and "cancelled: 1" in warning


def test_handler_that_blocks_the_loop_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program goes on, and is told where the thread is."""
    monkeypatch.setattr("asyncserver.program.thread._GRACE", 0.05)
    monkeypatch.setattr("asyncserver.program.thread._LAST_GRACE", 0.05)
    release = threading.Event()

    async def block(stream: Stream) -> None:
        release.wait(PATIENCE)

    with (
        pytest.raises(TimeoutError, match=r"left behind.*in .*wait\(\)"),
        background(serve(block, *HERE), drain_timeout=0) as server,
        connect(server.addresses[0]),
    ):
        while not server.stats().active:
            release.wait(0.01)
    release.set()
    for thread in threads():
        thread.join(PATIENCE)
    assert server.closed


# -- errors of handlers


def raising_callback() -> Any:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise ValueError(await reader.read(99))

    return from_callback(handle)


class RaisingRequest(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        raise ValueError(self.request.recv(99))


async def fail_datagram(datagram: Datagram) -> None:
    raise ValueError(datagram.data)


@pytest.mark.parametrize(
    ("serving", "kind"),
    [
        (lambda: serve(fail, *HERE), socket.SOCK_STREAM),
        (lambda: serve(raising_callback(), *HERE), socket.SOCK_STREAM),
        (lambda: serve(from_protocol(RaiseOrEcho), *HERE), socket.SOCK_STREAM),
        (lambda: serve(compat.hosted(RaisingRequest), *HERE), socket.SOCK_STREAM),
        (lambda: serve_datagrams(fail_datagram, *HERE), socket.SOCK_DGRAM),
    ],
    ids=["stream", "callback", "protocol", "hosted", "datagram"],
)
def test_errors_of_handlers_are_raised_if_asked(serving: Callable[[], Serving], kind: socket.SocketKind) -> None:
    """Each says whose it was."""
    with (
        pytest.raises(ExceptionGroup, match="an error of handlers") as raised,
        background(serving(), raise_errors=True) as server,
        connect(server.addresses[0], kind) as client,
    ):
        client.sendall(b"raise")
        while not server.stats().failed:
            threading.Event().wait(0.005)
    (error,) = raised.value.exceptions
    assert type(error) is ValueError
    assert re.fullmatch(rf"in the handler of 127\.0\.0\.1:\d+ on {server.label}", error.__notes__[-1])


def test_errors_are_notes_where_the_block_has_failed() -> None:
    """They may be why it has."""
    with pytest.raises(ZeroDivisionError) as raised, background(serve(fail, *HERE), raise_errors=True) as server:
        assert ask_once(server.addresses[0], question=b"hello") == b""
        raise ZeroDivisionError
    (note,) = raised.value.__notes__
    assert note.startswith("background(): ValueError(b'hello') in the handler of 127.0.0.1:")


def test_errors_that_are_none_of_the_handlers() -> None:
    """Nobody has asked for them; a peer that breaks off is none."""
    with background(serve(fail, *HERE)) as server:
        assert ask_once(server.addresses[0]) == b""

    async def expect_much(stream: Stream) -> None:
        await stream.receive_exactly(1000)

    with background(serve(expect_much, *HERE), raise_errors=True) as server:
        connect(server.addresses[0]).close()
        with connect(server.addresses[0]) as client:
            client.sendall(b"little")
    assert server.stats().failed == 0


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_handler_that_ends_the_program(error: BaseException) -> None:
    """It ends the servers, and is raised where the block ends."""

    async def leave(stream: Stream) -> None:
        await asyncio.sleep(0)  # what a task's first step raises, asyncio logs too
        await stream.receive()
        raise error

    with (
        pytest.raises(type(error)) as raised,
        background(serve(leave, *HERE)) as server,
        connect(server.addresses[0]) as client,
    ):
        client.sendall(b"go")
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(99) == b""
    assert raised.value is error
    assert not threads()
