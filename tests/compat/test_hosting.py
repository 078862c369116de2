"""Handler classes written for socketserver, served by asyncserver."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import importlib
import logging
import socket
import socketserver
import ssl
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import asyncserver
import compat
from tests.kit.certificates import client_context, plain_context
from tests.kit.clients import Client
from tests.kit.compat import Upper, UpperDatagram
from tests.kit.programs import LOOPS
from tests.kit.waiting import PATIENCE, until


async def ask(address: Any, question: bytes) -> bytes:
    """Send a line and return the answer."""
    async with Client.connect(address) as client:
        await client.send(question)
        return await client.receive()


async def ended(server: asyncserver.Server) -> asyncserver.ServerStats:
    """Close a server and return its last counters."""
    await server.close()
    await server.wait_closed()
    return server.stats()


async def test_handler_class_answers_over_tcp_and_unix(tmp_path: Path) -> None:
    """A StreamRequestHandler runs unchanged on both kinds of stream socket."""
    handler = compat.hosted(Upper)
    path = str(tmp_path / "upper.sock")
    async with asyncserver.serve(handler, "127.0.0.1", 0) as tcp, asyncserver.serve(handler, path=path) as unix:
        assert await ask(tcp.addresses[0], b"hello\n") == b"HELLO\n"
        assert await ask(path, b"hello\n") == b"HELLO\n"
        assert (await ended(tcp)).completed == 1
        assert (await ended(unix)).completed == 1


async def test_request_is_a_blocking_tls_socket() -> None:
    """Under TLS the handler's request is an SSLSocket that blocks, and the client sees a proper end."""
    seen: list[tuple[bool, float | None]] = []

    class Once(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            seen.append((isinstance(self.request, ssl.SSLSocket), self.request.gettimeout()))
            self.request.sendall(self.request.recv(99).upper())

    async with (
        asyncserver.serve(compat.hosted(Once), "127.0.0.1", 0, ssl=plain_context()) as server,
        Client.connect(server.addresses[0], client_context()) as client,
    ):
        await client.send(b"hello")
        assert await client.receive_all() == b"HELLO"
    assert seen == [(True, None)]


async def test_datagram_handler_answers_and_is_counted() -> None:
    """A DatagramRequestHandler answers through the server's socket; received = answered + silent."""

    class Choosy(UpperDatagram):
        def finish(self) -> None:
            if self.packet != b"silent":
                super().finish()

    loop = asyncio.get_running_loop()
    async with asyncserver.serve_datagrams(compat.hosted(Choosy), "127.0.0.1", 0) as server:
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.connect(server.addresses[0])
            client.send(b"silent")
            client.send(b"hello")
            assert await loop.run_in_executor(None, client.recv, 99) == b"HELLO"
        stats = await ended(server)
    assert (stats.datagrams_received, stats.datagrams_answered, stats.datagrams_silent) == (2, 1, 1)
    assert stats.datagrams_sent == 1


async def test_server_attribute_has_what_handlers_use() -> None:
    """self.server tells the address, the socket, the class, and the attributes of the object given."""
    told: list[Any] = []

    class Asking(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            server: Any = self.server
            told.extend([server.server_address, server.socket.getsockname(), server.RequestHandlerClass])
            told.append(server.database)
            with pytest.raises(AttributeError, match=r"hosted\(\.\.\., server=object\)"):
                _ = server.nothing

    handler = compat.hosted(Asking, server=SimpleNamespace(database="db"))
    async with asyncserver.serve(handler, "127.0.0.1", 0) as server:
        async with Client.connect(server.addresses[0]) as client:
            assert await client.receive_all() == b""
        assert told == [server.addresses[0], server.addresses[0], Asking, "db"]


async def test_shutdown_from_a_handler_closes_the_server() -> None:
    """self.server.shutdown() returns at once and ends the server, whose handler still answers."""

    class Last(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.server.shutdown()
            self.request.sendall(b"bye\n")

    async with asyncserver.serve(compat.hosted(Last), "127.0.0.1", 0) as server:
        assert await ask(server.addresses[0], b"") == b"bye\n"
        await asyncio.wait_for(server.wait_closed(), 10)


async def test_error_is_reported_once_and_the_connection_closed(caplog: pytest.LogCaptureFixture) -> None:
    """What a handler raises reaches the log and on_error, as any asyncserver handler's error."""

    class Failing(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            raise ValueError("no")

    reported: list[BaseException] = []
    handler = compat.hosted(Failing)
    async with asyncserver.serve(handler, "127.0.0.1", 0, on_error=lambda exc, _: reported.append(exc)) as server:
        async with Client.connect(server.addresses[0]) as client:
            assert await client.receive_all() == b""
        assert (await ended(server)).failed == 1
    assert [str(exc) for exc in reported] == ["no"]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


async def test_silent_client_is_timed_out(caplog: pytest.LogCaptureFixture) -> None:
    """idle_timeout ends a handler that waits in recv, without an error in the log."""

    class Waiting(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)

    async with asyncserver.serve(compat.hosted(Waiting), "127.0.0.1", 0, idle_timeout=0.1) as server:
        async with Client.connect(server.addresses[0]) as client:
            assert await client.receive_all() == b""
        assert (await ended(server)).timed_out == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_blocked_handler_is_woken_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that waits in recv when the server drains is cancelled: its socket is shut down, its thread ends."""
    monkeypatch.setattr("asyncserver.servers.server.Server._cancel_grace", PATIENCE)
    began, over = threading.Event(), threading.Event()

    class Waiting(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            began.set()
            assert self.request.recv(1) == b""

        def finish(self) -> None:
            over.set()

    async with (
        asyncserver.serve(compat.hosted(Waiting), "127.0.0.1", 0) as server,
        Client.connect(server.addresses[0]),
    ):
        await asyncio.to_thread(began.wait, 10)
        assert await server.close(0.05) == asyncserver.DrainReport(completed=0, cancelled=1, aborted=0)
        assert over.is_set()


async def test_handlers_that_wait_for_a_thread_are_closed_at_the_deadline() -> None:
    """With max_threads busy a connection waits for a thread; at the deadline it is closed, not leaked."""
    began, release = threading.Event(), threading.Event()

    class Waiting(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            began.set()
            release.wait(10)

    async with (
        asyncserver.serve(compat.hosted(Waiting, max_threads=1), "127.0.0.1", 0) as server,
        Client.connect(server.addresses[0]),
    ):
        await asyncio.to_thread(began.wait, 10)
        async with Client.connect(server.addresses[0]) as client:
            while server.stats().active < 2:
                await asyncio.sleep(0)
            closing = asyncio.create_task(server.close(0))
            assert await client.receive_all() == b""
            release.set()
            assert (await closing).cancelled == 2


async def test_200_handlers_meet_at_a_barrier() -> None:
    """Each live handler has a thread of its own: 200 that wait for one another all get there."""
    barrier = threading.Barrier(200)

    class Meeting(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            barrier.wait(20)
            self.request.sendall(b"met\n")

    async with asyncserver.serve(compat.hosted(Meeting), "127.0.0.1", 0) as server:
        answers = await asyncio.gather(*(ask(server.addresses[0], b"") for _ in range(200)))
    assert answers == [b"met\n"] * 200


async def test_reset_is_no_error_and_exit_ends_the_handler_only(caplog: pytest.LogCaptureFixture) -> None:
    """A peer that resets, and a handler that raises SystemExit, leave nothing in the log."""

    class Sending(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if self.request.recv(1) == b"x":
                raise SystemExit
            while True:
                self.request.sendall(bytes(65536))

    async with asyncserver.serve(compat.hosted(Sending), "127.0.0.1", 0) as server:
        async with Client.connect(server.addresses[0]) as client:
            await client.send(b"x")
            assert await client.receive_all() == b""
        async with Client.connect(server.addresses[0]) as client:
            await client.send(b"y")
            await client.receive(1)
            client.reset()
        assert (await ended(server)).completed == 2
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("error", [TimeoutError("database"), ConnectionRefusedError("database")], ids=repr)
async def test_trouble_with_others_than_the_peer_is_an_error(error: OSError) -> None:
    """A handler's own connections fail in the same ways as the one that it serves."""

    class Asking(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            raise error

    reported: list[BaseException] = []
    handler = compat.hosted(Asking)
    async with asyncserver.serve(handler, "127.0.0.1", 0, on_error=lambda exc, _: reported.append(exc)) as server:
        assert await ask(server.addresses[0], b"abc\n") == b""
        assert (await ended(server)).failed == 1
    assert [repr(exc) for exc in reported] == [repr(error)]  # a copy of a TimeoutError on Python 3.11


async def test_without_a_thread_the_connection_is_closed() -> None:
    """As nobody else would do it."""
    handler = compat.hosted(Upper)
    handler.pool.shutdown()
    async with asyncserver.serve(handler, "127.0.0.1", 0) as server:
        assert await ask(server.addresses[0], b"abc\n") == b""
        assert (await ended(server)).failed == 1


async def test_server_attribute_can_be_copied() -> None:
    """Handlers that are pickled or copied carry it along; it has no attributes at first."""
    copies: list[object] = []

    class Copying(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            copies.append(copy.copy(self.server).server_address)

    async with asyncserver.serve(compat.hosted(Copying), "127.0.0.1", 0) as server:
        assert await ask(server.addresses[0], b"") == b""
        assert copies == [server.addresses[0]]


def test_wrong_class_gets_advice() -> None:
    """hosted() says what it expects; serve() says to use it."""
    with pytest.raises(TypeError, match="subclass of BaseRequestHandler"):
        compat.hosted(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"hosted\(\) got Protocol, .*wrap it: asyncserver\.from_protocol\(Protocol\)"):
        compat.hosted(asyncio.Protocol)
    with pytest.raises(TypeError, match=r"compat\.hosted\(.*Upper\)"):
        asyncserver.serve(Upper, "127.0.0.1", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("module", LOOPS)
def test_thread_that_fails_in_the_last_round_of_its_loop(module: str, caplog: pytest.LogCaptureFixture) -> None:
    """It was given up at the drain's deadline: no task is left to take its error, and none is missed."""
    begun, gate = threading.Event(), threading.Event()

    class Fails(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            begun.set()
            gate.wait(20)
            raise ValueError("too late")

    async def serve() -> None:
        handler = compat.hosted(Fails)
        async with asyncserver.serve(handler, "127.0.0.1", 0) as server:
            with socket.create_connection(server.addresses[0]):
                await until(begun.is_set)
                assert await server.close(0) == asyncserver.DrainReport(aborted=1)
        gate.set()
        handler.pool.shutdown()  # the error is on its way to the loop, which ends in its next round

    loop = importlib.import_module(module).new_event_loop()
    with contextlib.closing(loop):
        loop.run_until_complete(serve())
    gc.collect()
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]
