"""asyncio's datagram protocols, unchanged: they answer, hear of errors, and fail alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import pytest

import asyncserver
from tests.kit.checks import errors_in, is_balanced_for_datagrams
from tests.kit.datagrams import Place
from tests.kit.waiting import PATIENCE, until


class Echo(asyncio.DatagramProtocol):
    """An ordinary datagram protocol."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append("made")
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if data == b"raise":
            raise ValueError("the protocol's own mistake")
        if data == b"close":
            self.transport.close()
        elif data == b"many":
            for number in range(40):
                self.transport.sendto(b"%d" % number, addr)
        elif data != b"silent":
            self.transport.sendto(data.upper(), addr)

    def error_received(self, exc: Exception) -> None:
        self.events.append(f"error {type(exc).__name__}")

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(f"lost {exc}")


async def test_datagram_protocol_runs_unchanged(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Also over Unix sockets and on uvloop; counted, drained, and its errors contained."""
    protocol = Echo()
    async with place.serve(asyncserver.from_protocol(lambda: protocol)) as server:
        client = place.client(server)
        assert await client.ask(b"hello") == b"HELLO"
        client.send(b"raise")
        client.send(b"silent")
        assert await client.ask(b"again") == b"AGAIN"
        assert protocol.transport.get_extra_info("sockname") == server.addresses[0]
        assert protocol.transport.get_extra_info("socket") is server.sockets[0]
        assert protocol.transport.get_extra_info("nothing", 7) == 7
        assert protocol.transport.get_protocol() is protocol
        assert not protocol.transport.is_closing()
        with pytest.raises(ValueError, match="sendto"):
            protocol.transport.sendto(b"to whom?")
        now = server.stats()
        assert (now.datagrams_answered, now.datagrams_silent, now.failed) == (2, 1, 1)
        assert is_balanced_for_datagrams(server)
        client.send(b"last")  # lies in the kernel
        await server.close()
        assert await client.receive() == b"LAST"
    assert protocol.events == ["made", "lost None"]
    assert protocol.transport.is_closing()
    assert len(errors_in(caplog)) == 1


async def test_datagram_protocol_writes_to_a_full_peer(unix: Place) -> None:
    """sendto() never blocks: what has no room waits, in order, and the protocol is told to pause."""
    protocol = Echo()
    async with unix.serve(asyncserver.from_protocol(lambda: protocol)) as server:
        client = unix.client(server)
        protocol.transport.set_write_buffer_limits(high=0)
        client.send(b"many")
        await until(lambda: "pause" in protocol.events)
        assert protocol.transport.get_write_buffer_size() > 0
        assert [await client.receive() for _ in range(40)] == [b"%d" % number for number in range(40)]
        await until(lambda: "resume" in protocol.events)
        assert protocol.transport.get_write_buffer_size() == 0
    assert protocol.events == ["made", "pause", "resume", "lost None"]


async def test_datagram_protocol_hears_of_errors(unix: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A peer that cannot be answered is told by error_received, as asyncio does, and is no error of the protocol's."""
    protocol = Echo()
    async with unix.serve(asyncserver.from_protocol(lambda: protocol)) as server:
        gone = unix.client(server)
        gone.send(b"hello, and good-bye")
        gone.sock.close()
        assert await unix.client(server).ask(b"named") == b"NAMED"
        assert server.stats().failed == 0
    assert protocol.events == ["made", "error ConnectionRefusedError", "lost None"]
    assert not errors_in(caplog)


async def test_datagram_protocol_may_close_the_server(place: Place) -> None:
    """transport.close() ends the endpoint, and with it the server, as it would under asyncio."""
    protocol = Echo()
    async with place.serve(asyncserver.from_protocol(lambda: protocol)) as server:
        place.client(server).send(b"close")
        async with asyncio.timeout(PATIENCE):
            await server.wait_closed()
    assert protocol.events == ["made", "lost None"]


async def test_datagram_protocol_that_fails_at_the_end_does_not_keep_the_server_open(
    udp: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in connection_lost is logged; the sockets are closed and wait_closed() returns."""

    class Broken(Echo):
        def connection_lost(self, exc: Exception | None) -> None:
            raise ValueError("in connection_lost")

    with contextlib.suppress(ValueError):
        async with udp.serve(asyncserver.from_protocol(Broken)) as server:
            (sock,) = server.sockets
            assert await udp.client(server).ask(b"hello") == b"HELLO"
    async with asyncio.timeout(5):
        await server.wait_closed()
    assert sock.fileno() == -1
    assert "in connection_lost" in caplog.text


async def test_factory_that_fails_leaves_no_socket_open(udp: Place) -> None:
    """The error reaches whoever starts the server, and nothing stays open."""

    def factory() -> asyncio.DatagramProtocol:
        raise LookupError("no protocol today")

    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(LookupError, match="no protocol today") as caught:  # whose traceback keeps what it saw alive
        async with udp.serve(asyncserver.from_protocol(factory)):
            pass
    assert len(os.listdir("/proc/self/fd")) == len(before), caught


async def test_callback_for_datagrams_is_refused_with_advice() -> None:
    """(reader, writer) makes no sense for datagrams, and the error says what does."""

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    with pytest.raises(TypeError, match="from_protocol"):
        async with asyncserver.serve_datagrams(asyncserver.from_callback(callback), "127.0.0.1", 0):
            pass
