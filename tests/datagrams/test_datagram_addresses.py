"""Datagrams: from which address an answer comes, and peers that cannot take it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncserver
from asyncserver import Datagram
from tests.kit.checks import errors_in, is_balanced_for_datagrams, is_idle
from tests.kit.datagrams import Place
from tests.kit.handlers import upper_datagram
from tests.kit.waiting import PATIENCE, until

RMEM_MAX = int(Path("/proc/sys/net/core/rmem_max").read_text())


@pytest.mark.parametrize(
    ("host", "targets"),
    [
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2", "127.1.2.3"]),
        ("::", ["::1"]),
        (None, ["127.0.0.2", "::1"]),
    ],
)
async def test_reply_comes_from_the_address_the_datagram_came_to(
    host: str | None, targets: list[str], tmp_path: Path
) -> None:
    """On a wildcard bind with several local addresses a connected client gets its answer."""
    seen: list[Any] = []

    async def handler(datagram: Datagram) -> bytes:
        seen.append(datagram.local_address)
        await datagram.reply(b"reply")
        return b"return"

    async with asyncserver.serve_datagrams(handler, host, 0) as server:
        port = server.addresses[0][1]
        for target in targets:
            place = Place("ipv6" if ":" in target else "ipv4", tmp_path)
            client = place.client(server)
            client.sock.connect((target, port))  # from now on the kernel drops what comes from elsewhere
            client.sock.send(b"?")
            assert [await client.receive(), await client.receive()] == [b"reply", b"return"]
            assert seen[-1][:2] == (target, port)
            place.close()


async def test_sender_without_an_address_cannot_be_answered(unix: Place, caplog: pytest.LogCaptureFixture) -> None:
    """An unnamed Unix socket gets no answer; reply() says so, a returned answer is given up, neither is logged."""
    outcomes: list[str] = []

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"caught":
            with pytest.raises(anyio.BrokenResourceError, match="cannot be answered"):
                await datagram.reply(b"answer")
        elif datagram.data == b"uncaught":
            await datagram.reply(b"answer")
        outcomes.append(datagram.data.decode())
        return b"answer"

    async with unix.serve(handler) as server:
        nameless = unix.client(server, named=False)
        for word in (b"caught", b"uncaught", b"returned"):
            nameless.send(word)
        assert await unix.client(server).ask(b"named") == b"answer"
        assert outcomes == ["caught", "returned", "named"]
        now = server.stats()
        assert (now.completed, now.failed, now.datagrams_answered, now.datagrams_sent) == (4, 0, 1, 1)
        assert is_balanced_for_datagrams(server)
    assert not errors_in(caplog)


async def test_full_queue_of_a_unix_peer_is_waited_for(unix: Place) -> None:
    """A Unix peer that is slow to read gets every answer, returned or replied, in the end."""
    count = 40

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"many":
            for number in range(count):
                await datagram.reply(b"%d" % number)
        return b"last"

    async with unix.serve(handler) as server:
        client = unix.client(server)
        client.send(b"many")
        await until(lambda: server.stats().datagrams_sent > 5)
        for _ in range(3):
            client.send(b"one")  # its answer is returned: the queue is full for that too
        answers = [await client.receive() for _ in range(count + 4)]
        await until(lambda: is_idle(server))
        assert server.stats().datagrams_sent == count + 4
        assert is_balanced_for_datagrams(server)
    assert sorted(answers) == sorted([b"%d" % number for number in range(count)] + [b"last"] * 4)


async def test_unix_peer_that_leaves_a_full_queue_behind_is_no_error(
    unix: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that waits for room when its receiver goes is given up without a log line."""
    async with unix.serve(upper_datagram) as server:
        client = unix.client(server)
        for _ in range(30):
            with contextlib.suppress(BlockingIOError):
                client.send(b"x")
            await asyncio.sleep(0)
        await until(lambda: server.stats().active > 0 or server.stats().completed > server.stats().datagrams_sent)
        client.sock.close()
        await until(lambda: is_idle(server))
        async with asyncio.timeout(PATIENCE / 2):
            report = await server.close(PATIENCE)
        assert report.cancelled == report.aborted == 0
        assert is_balanced_for_datagrams(server)
    assert not errors_in(caplog)


class Stubborn:
    """A server's socket that fails so many times before it does what it should: a full one, or a broken network.

    With `endless` it fails in the same way until its errors are cleared.
    """

    def __init__(self, sock: socket.socket, method: str, *errors: OSError, endless: bool = False) -> None:
        self._sock = sock
        self._method = method
        self._endless = endless
        self.errors = list(errors)
        self.failed = 0

    def __getattr__(self, name: str) -> Any:
        if name == self._method and self.errors:
            self.failed += 1
            if self._endless:
                raise type(self.errors[0])
            raise self.errors.pop(0)
        return getattr(self._sock, name)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
async def test_full_udp_socket_is_waited_for(udp: Place, number: int) -> None:
    """An answer that finds no room, returned or replied, is sent as soon as there is some, to everybody."""

    async def handler(datagram: Datagram) -> bytes | None:
        if datagram.data.startswith(b"reply"):
            await datagram.reply(datagram.data.upper())
            return None
        return datagram.data.upper()

    async with udp.serve(handler) as server:
        (endpoint,) = server._endpoints  # type: ignore[attr-defined]
        full = Stubborn(endpoint.sock, "sendto", *(OSError(number, "full") for _ in range(7)))
        endpoint.sock = full
        client = udp.client(server)
        words = [b"reply 1", b"return 1", b"reply 2", b"return 2"]
        for word in words:
            client.send(word)
        assert {await client.receive() for _ in words} == {word.upper() for word in words}
        assert not full.errors
        await until(lambda: is_idle(server))
        assert server.stats().datagrams_answered == server.stats().datagrams_sent == 4
        assert is_balanced_for_datagrams(server)


async def test_answers_that_find_no_room_count_as_pending(udp: Place) -> None:
    """At max_pending of them nothing more is read, and the loop does not spin over what is there."""
    async with udp.serve(upper_datagram, max_pending=2) as server:
        (endpoint,) = server._endpoints  # type: ignore[attr-defined]
        full = endpoint.sock = Stubborn(endpoint.sock, "sendto", BlockingIOError(), endless=True)
        client = udp.client(server)
        for number in range(5):
            client.send(b"d%d" % number)
        await until(lambda: not endpoint._watching)
        assert server.stats().datagrams_received == 2
        full.errors.clear()
        assert {await client.receive() for _ in range(5)} == {b"D%d" % number for number in range(5)}
        await until(lambda: server.stats().datagrams_answered == 5)
        assert is_balanced_for_datagrams(server)


async def test_full_udp_socket_does_not_outlast_the_drain(
    udp: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer for which there is never room is given up at the deadline, without the grace of handlers."""
    monkeypatch.setattr("asyncserver.servers.server.Server._cancel_grace", 10 * PATIENCE)
    async with udp.serve(upper_datagram) as server:
        (endpoint,) = server._endpoints  # type: ignore[attr-defined]
        full = Stubborn(endpoint.sock, "sendto", BlockingIOError(), endless=True)
        endpoint.sock = full
        udp.client(server).send(b"?")
        await until(lambda: full.failed)
        async with asyncio.timeout(PATIENCE):
            await server.close(0.1)
            await server.wait_closed()
        full.errors.clear()
    assert server.stats().active == 0
    assert is_balanced_for_datagrams(server)
    assert not errors_in(caplog)


async def test_error_of_receiving_does_not_stop_the_server(udp: Place, caplog: pytest.LogCaptureFixture) -> None:
    """What the network reports for something sent before concerns no datagram that comes now."""
    errors = [OSError(errno.ECONNREFUSED, "icmp")]
    async with udp.serve(upper_datagram) as server:
        (endpoint,) = server._endpoints  # type: ignore[attr-defined]
        receive = endpoint._receive

        def fail_once() -> Datagram:
            if errors:
                raise errors.pop()
            datagram: Datagram = receive()
            return datagram

        endpoint._receive = fail_once
        assert await udp.client(server).ask(b"hello") == b"HELLO"
        assert not errors
    assert not errors_in(caplog)


async def test_small_receive_buffer_is_told(udp: Place, caplog: pytest.LogCaptureFixture) -> None:
    """When the kernel grants less than bursts need, the log says what to raise; otherwise it is silent."""
    caplog.set_level(logging.INFO, "asyncserver")
    async with udp.serve(upper_datagram) as server:
        granted = server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    assert granted == min(RMEM_MAX, 1 << 20)
    assert ("raise net.core.rmem_max" in caplog.text) == (granted < 1 << 20)
