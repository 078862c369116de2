"""Accepting: batches, descriptors that run out, errors of accept(2), and connections that are broken before."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver.connections.accepted import Accepted
from asyncserver.listening.binding import BoundSocket
from asyncserver.listening.listener import _BACKOFF, Listener
from tests.kit.checks import is_balanced, is_idle
from tests.kit.clients import Client
from tests.kit.handlers import upper
from tests.kit.programs import LOOPS, run_script
from tests.kit.transports import Transport
from tests.kit.waiting import until

EXHAUSTION = """
import asyncio, json, logging, os, resource, socket, sys
import asyncserver.listening.listener

CLIENTS = 30
asyncserver.listening.listener._BACKOFF = 1000.0  # whoever had to wait for the timer would not be answered in time
warnings = []

class Collect(logging.Handler):
    def emit(self, record):
        warnings.append(record.getMessage())

logging.getLogger("asyncserver").addHandler(Collect(logging.WARNING))

async def upper(stream):
    async for data in stream:
        await stream.send(data.upper())

async def main():
    loop = asyncio.get_running_loop()
    async with asyncserver.serve(upper, "127.0.0.1", 0) as server:
        clients = [socket.socket() for _ in range(CLIENTS)]
        for client in clients:
            client.setblocking(False)
        spare = len(os.listdir("/proc/self/fd")) - 1 + 5  # room for five connections
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        for client in clients:
            await loop.sock_connect(client, server.addresses[0])
        while not server.stats().accept_errors:
            await asyncio.sleep(0)
        answers = []
        for client in clients:
            await loop.sock_sendall(client, b"hello")
            async with asyncio.timeout(20):
                answers.append(await loop.sock_recv(client, 10))
            client.close()  # makes room for the next
        while server.stats().active:
            await asyncio.sleep(0)
        stats = server.stats()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps({
        "answers": sum(answer == b"HELLO" for answer in answers), "warnings": warnings,
        "accepted": stats.accepted, "completed": stats.completed, "accept_errors": stats.accept_errors,
    }))

import importlib
with asyncio.Runner(loop_factory=importlib.import_module(sys.argv[1]).new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_exhausted_descriptors_delay_but_lose_nobody(loop: str, tmp_path: Path) -> None:
    """With too few descriptors: one warning, a counter, everyone served, each as soon as another has left."""
    status, output, errors = run_script(EXHAUSTION, tmp_path, loop)
    assert status == 0, errors
    assert errors == ""
    told = json.loads(output)
    assert told["answers"] == told["accepted"] == told["completed"] == 30
    assert told["accept_errors"] >= 1
    (warning,) = told["warnings"]
    assert "out of descriptors or memory" in warning
    assert "Too many open files" in warning
    assert "127.0.0.1" in warning


async def test_connection_that_is_broken_before_it_is_accepted(
    tcp: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that connects, sends, and resets before anybody accepts costs nothing."""
    async with tcp.serve(upper) as server:
        for _ in range(5):
            with socket.create_connection(server.addresses[0]) as gone:
                gone.sendall(b"hello")
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        async with tcp.connect(server) as client:
            assert await client.ask(b"here") == b"HERE"
        await until(lambda: is_idle(server))
        assert server.stats().failed == 0
        assert is_balanced(server)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_burst_of_connections_is_accepted_whole(tcp: Transport) -> None:
    """More at once than a batch: all are served."""
    async with tcp.serve(upper) as server:
        clients = [socket.create_connection(server.addresses[0]) for _ in range(100)]
        assert server.stats().accepted == 0
        await until(lambda: server.stats().accepted == 100)
        for client in clients:
            client.close()
        await until(lambda: server.stats().completed == 100)


async def test_batch_leaves_room_for_others(tcp: Transport) -> None:
    """One wake-up accepts a bounded number: what else is ready in the loop gets its turn in between."""
    async with tcp.serve(upper) as server:
        clients = [socket.create_connection(server.addresses[0]) for _ in range(200)]
        seen = [0]
        while seen[-1] < 200:
            await asyncio.sleep(0)
            seen.append(server.stats().accepted)
        for client in clients:
            client.close()
    assert 1 < max(after - before for before, after in itertools.pairwise(seen)) <= 64


class FailingSocket:
    """A listening socket whose accept fails as told; a kernel under pressure, as far as the listener can see."""

    family, type, proto = socket.AF_INET, socket.SOCK_STREAM, 0

    def __init__(self, errors: list[OSError]) -> None:
        self.errors = errors
        self.real, self.other = socket.socketpair()  # something that the loop can watch

    def fileno(self) -> int:
        return self.real.fileno()

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    def setsockopt(self, *option: Any) -> None:
        raise OSError(errno.ENOPROTOOPT, "for the test")

    def _accept(self) -> Any:
        raise self.errors.pop(0) if self.errors else BlockingIOError

    def close(self) -> None:
        self.real.close()
        self.other.close()


@pytest.fixture
def failing() -> Iterator[FailingSocket]:
    sock = FailingSocket([])
    yield sock
    sock.close()


def listener_on(sock: Any, failed: list[int], loop: Any = None) -> Listener[Accepted]:
    def accepted(connection: Accepted) -> None:
        raise AssertionError("nothing can be accepted")

    return Listener(loop or asyncio.get_running_loop(), BoundSocket(sock), Accepted, accepted, lambda: failed.append(1))


class TimedLoop:
    """The running loop, and the timers that a listener sets in it."""

    def __init__(self) -> None:
        self.real = asyncio.get_running_loop()
        self.timers: list[tuple[float, asyncio.TimerHandle]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        handle = self.real.call_later(delay, callback)
        self.timers.append((delay, handle))
        return handle


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR])
async def test_error_of_one_connection_does_not_stop_accepting(
    failing: FailingSocket, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """accept(2) reports errors of the connection itself: counted, not told, and the next one is tried at once."""
    failed: list[int] = []
    failing.errors = [OSError(number, "for the test")] * 3
    listener = listener_on(failing, failed)
    listener.resume()
    failing.other.send(b"readable")
    await until(lambda: not failing.errors)
    assert len(failed) == 3
    assert not caplog.records
    listener.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EIO])
async def test_exhaustion_backs_off_with_one_warning(
    failing: FailingSocket, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again by a timer, and told once, however often it fails; unknown errors are treated alike."""
    failed: list[int] = []
    failing.errors = [OSError(number, "for the test")] * 4
    loop = TimedLoop()
    listener = listener_on(failing, failed, loop)
    listener.resume()
    failing.other.send(b"readable")
    await until(lambda: not failing.errors)
    assert [delay for delay, _ in loop.timers] == [_BACKOFF] * 4  # no busy loop
    assert len(failed) == 4
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    expected = "unexpected error" if number == errno.EIO else "out of descriptors or memory"
    assert expected in record.getMessage()
    listener.close()


async def test_retry_tries_at_once(
    failing: FailingSocket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that closes ends the pause; without a pause retry() means nothing."""
    caplog.set_level(logging.CRITICAL, "asyncserver")
    monkeypatch.setattr("asyncserver.listening.listener._BACKOFF", 1000)  # nobody would wait for the timer
    failed: list[int] = []
    failing.errors = [OSError(errno.EMFILE, "for the test")]
    listener = listener_on(failing, failed)
    listener.retry()  # not waiting: nothing begins
    failing.other.send(b"readable")
    for _ in range(5):
        await asyncio.sleep(0)
    assert not failed
    listener.resume()
    await until(lambda: len(failed) == 1)
    failing.errors = [OSError(errno.EMFILE, "for the test")]
    listener.retry()
    await until(lambda: len(failed) == 2)
    listener.close()


async def test_resume_does_not_end_the_pause_of_exhaustion(
    failing: FailingSocket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who lifts another limit must not turn the back-off into a busy loop; pause() ends it for good."""
    caplog.set_level(logging.CRITICAL, "asyncserver")
    monkeypatch.setattr("asyncserver.listening.listener._BACKOFF", 1000)
    failed: list[int] = []
    failing.errors = [OSError(errno.EMFILE, "for the test")] * 3
    listener = listener_on(failing, failed)
    listener.resume()
    failing.other.send(b"readable")
    await until(lambda: len(failed) == 1)
    for _ in range(10):
        listener.resume()
        await asyncio.sleep(0)
    assert len(failed) == 1
    timer = listener._retry
    assert timer
    listener.pause()
    assert timer.cancelled()
    listener.close()


async def test_listener_closed_while_exhausted_ends(tcp: Transport, failing: FailingSocket) -> None:
    """Closing accepts what can be accepted; when that fails there is nothing more to do, and no timer is left."""
    failed: list[int] = []
    failing.errors = [OSError(errno.EMFILE, "for the test")] * 2
    loop = TimedLoop()
    listener = listener_on(failing, failed, loop)
    listener.resume()
    listener.close()
    assert failing.real.fileno() == -1
    assert len(failed) == 1
    assert all(timer.cancelled() for _, timer in loop.timers)


async def test_accepted_sockets_do_not_block_and_are_not_inherited(tcp: Transport) -> None:
    """Descriptors of connections stay out of child processes."""
    from anyio.abc import SocketAttribute

    seen: list[tuple[bool, bool]] = []

    async def handler(stream: asyncserver.Stream) -> None:
        sock = stream.extra(SocketAttribute.raw_socket)
        seen.append((sock.getblocking(), sock.get_inheritable()))

    async with tcp.serve(handler) as server, tcp.connect(server) as client:
        assert not server.sockets[0].get_inheritable()
        assert await client.rest() == b""
    assert seen == [(False, False)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_who_connects_in_the_moment_of_the_close_is_refused_and_not_reset(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last look into the queue nobody gets a connection that the close would break: he may go elsewhere."""
    loop = asyncio.get_running_loop()
    client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    client.setblocking(False)
    original = Listener._accept

    def accept(listener: Listener[Any], most: int) -> int:
        done = original(listener, most)
        client.connect_ex(listener.sock.getsockname())
        return done

    serving = asyncserver.serve(upper, host, 0)
    with client:
        async with serving as server:
            monkeypatch.setattr(Listener, "_accept", accept)
            address = server.sockets[0].getsockname()
        with pytest.raises(ConnectionRefusedError):  # after a second, when TCP asks again
            await loop.sock_connect(client, address)


async def test_close_of_one_leaves_a_shared_socket_to_the_other() -> None:
    """A socket that was given goes on to accept for whoever else has it."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with asyncserver.serve(upper, sock=sock.dup()):
            pass
        serving = asyncserver.serve(upper, sock=sock.dup())
        async with serving as server, Client.connect(server.addresses[0]) as client:
            assert await client.ask(b"hello") == b"HELLO"
