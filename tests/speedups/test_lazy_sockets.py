"""A connection's socket object and its peer's address, which the extension makes only when somebody asks for them.

Whatever a program does, it must not be able to tell, and no descriptor may be closed twice or used after its close.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Self

import anyio
import pytest
from anyio.abc import SocketAttribute

import asyncserver
from asyncserver import Stream
from asyncserver.connections.accepted import Accepted
from asyncserver.net.addresses import task_name
from asyncserver.net.poller import Poller
from asyncserver.streams.sending import PostLimit
from tests.kit import certificates
from tests.kit.clients import Client
from tests.kit.transports import Transport
from tests.kit.waiting import until, within

compiled = pytest.mark.skipif(not asyncserver.accelerated, reason="needs the compiled extension")

#: What may end a stream from inside its handler.
ENDS: dict[str, Any] = {
    "aclose": lambda stream: stream.aclose(),
    "abort": lambda stream: asyncio.sleep(0, stream.abort()),
    "detach": lambda stream: asyncio.sleep(0, stream.detach().close()),
    "raw": lambda stream: asyncio.sleep(0, stream.extra(SocketAttribute.raw_socket).close()),
}


class Taken:
    """A descriptor of our own under a number that was a connection's."""

    def __init__(self, number: int) -> None:
        source = os.open("/dev/null", os.O_RDONLY)
        os.dup2(source, number)
        if source != number:
            os.close(source)
        self.number = number
        self.file = os.fstat(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.number)

    @property
    def is_ours(self) -> bool:
        """Whether nobody has closed it, or used it for something else."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self.number), self.file)
        return False


@compiled
async def test_no_socket_is_made_for_a_plain_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepted, used, ended by the peer: it has never had a socket object."""
    made: list[Accepted] = []
    make = Accepted._make_sock

    def count(self: Accepted) -> socket.socket:
        made.append(self)
        return make(self)

    async def handler(stream: Stream) -> None:
        async for data in stream:
            await stream.send(data)

    monkeypatch.setattr(Accepted, "_make_sock", count)
    async with asyncserver.serve(handler, "127.0.0.1", 0) as server:
        async with Client.connect(server.addresses[0]) as client:
            await client.send(b"abc")
            assert await client.receive_exactly(3) == b"abc"
            await client.send_eof()
            assert await client.receive_all() == b""
        await until(lambda: server.stats().completed == 1)
        assert made == []


async def test_socket_that_is_asked_for(transport: Transport) -> None:
    """It is one and the same, does not block, and sends and receives what the stream does."""
    async with transport.pair() as (stream, client):
        await stream.send(b"first")
        sock = stream.extra(SocketAttribute.raw_socket)
        assert sock is stream.extra(SocketAttribute.raw_socket)
        assert sock.gettimeout() == 0
        assert (sock.family, sock.type) == (client.sock.family, socket.SOCK_STREAM)
        assert sock.fileno() == stream._fd
        await stream.send(b"then")
        assert await client.receive_exactly(9) == b"firstthen"


async def test_socket_that_is_asked_for_after_the_end(transport: Transport) -> None:
    """A closed one."""
    async with transport.pair() as (stream, client):
        address = stream.peer_address
        await stream.aclose()
        sock = stream.extra(SocketAttribute.raw_socket)
        assert sock.fileno() == -1
        assert sock.family == client.sock.family
        assert stream.peer_address == address
        with pytest.raises(anyio.ClosedResourceError):
            stream.local_address  # noqa: B018 - a property
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(b"abc")


async def test_detached_before_anybody_has_asked(transport: Transport) -> None:
    """The socket is the program's, and stays open when the handler ends."""
    kept: list[socket.socket] = []

    async def handler(stream: Stream) -> None:
        kept.append(stream.detach())

    async with transport.serve(handler) as server, transport.connect(server) as client:
        await until(lambda: server.stats().completed == 1)
        (sock,) = kept
        assert sock.gettimeout() == 0
        sock.setblocking(True)
        await asyncio.to_thread(sock.sendall, b"abc")
        assert await client.receive_exactly(3) == b"abc"
        sock.close()


@pytest.mark.parametrize("end", ENDS)
async def test_number_that_is_another_ones_is_left_alone(end: str) -> None:
    """After a stream's end its descriptor's number may be anybody's: nothing that the stream is told touches it."""
    results: list[bool] = []

    async def handler(stream: Stream) -> None:
        assert await stream.receive() == b"x"
        number = stream._fd
        await ENDS[end](stream)
        with Taken(number) as taken:
            stream.abort()
            await stream.aclose()
            with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                await stream.send(b"not for this one")
            stream.extra(SocketAttribute.raw_socket).close()
            server._close_source(stream)  # type: ignore[attr-defined]
            results.append(taken.is_ours)

    async with asyncserver.serve(handler, "127.0.0.1", 0) as server, Client.connect(server.addresses[0]) as client:
        await client.send(b"x")
        await until(lambda: server.stats().completed == 1)
    assert results == [True]


@compiled
async def test_stream_that_nobody_has_closed() -> None:
    """Its descriptor is closed with it, and a warning tells of it, as of a socket."""
    poller = Poller(asyncio.get_running_loop())
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()):
        stream = Stream(poller, asyncio.Event(), PostLimit(1, print))
        assert stream._accept(listening, (listening.family, listening.type, listening.proto))
        number = stream._fd
        os.fstat(number)
        with pytest.warns(ResourceWarning, match=f"unclosed <socket.socket fd={number},"):
            del stream
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
    poller.close()


@pytest.mark.parametrize("found", ["unused", "in a cycle"])
async def test_subclass_with_a_del(found: str) -> None:
    """Its descriptor is closed with it as well, though its `__del__` calls no other."""

    class Deleted(Stream):
        def __del__(self) -> None:
            pass

    poller = Poller(asyncio.get_running_loop())
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()):
        stream = Deleted(poller, asyncio.Event(), PostLimit(1, print))
        assert stream._accept(listening, (listening.family, listening.type, listening.proto))
        number = stream._fd
        if found == "in a cycle":
            stream.__dict__["cycle"] = stream
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del stream
            gc.collect()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
    poller.close()


async def test_spare_connection_has_no_descriptor() -> None:
    """One that found nobody waiting is good for the next."""
    poller = Poller(asyncio.get_running_loop())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        kind = (listening.family, listening.type, listening.proto)
        stream = Stream(poller, asyncio.Event(), PostLimit(1, print))
        assert not stream._accept(listening, kind)
        with socket.create_connection(listening.getsockname()) as client:
            assert stream._accept(listening, kind)
            assert stream.peer_address == client.getsockname()
            await stream.aclose()
    poller.close()


# -- addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_address_of_an_internet_peer(host: str) -> None:
    """As the socket itself gives it, and in the task's name."""
    seen: list[Any] = []

    async def handler(stream: Stream) -> None:
        task = asyncio.current_task()
        assert task is not None
        seen.append((stream.peer_address, task.get_name()))

    async with asyncserver.serve(handler, host, 0) as server, Client.connect(server.addresses[0]) as client:
        await until(lambda: len(seen) == 1)
        address = client.sock.getsockname()
        assert seen == [(address, task_name(address))]


@pytest.mark.parametrize("name", ["", "a name", "\0abstract", "n" * 100], ids=["none", "path", "abstract", "long"])
async def test_address_of_a_unix_peer(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, its path, or the bytes of an abstract one."""
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []

    async def handler(stream: Stream) -> None:
        seen.append(stream.peer_address)

    async with asyncserver.serve(handler, path=tmp_path / "s") as server:
        with socket.socket(socket.AF_UNIX) as client:
            if name:
                client.bind(f"{name}{os.getpid()}" if name[0] == "\0" else name)
            client.connect("s")
            await until(lambda: len(seen) == 1)
            assert seen == [client.getsockname()]
        await until(lambda: server.stats().completed == 1)


# -- after a handshake that failed


async def test_nothing_is_received_in_the_clear_after_a_failed_handshake() -> None:
    """What comes behind it is not taken for the program's bytes."""
    errors: list[BaseException] = []

    async def handler(stream: Stream) -> None:
        for step in (stream.start_tls(certificates.server_context()), stream.receive(), stream.receive_exactly(1)):
            with pytest.raises(anyio.BrokenResourceError) as info:
                await step
            errors.append(info.value)

    async with asyncserver.serve(handler, "127.0.0.1", 0) as server, Client.connect(server.addresses[0]) as client:
        await client.send(b"this is no handshake, and this is a secret\r\n" * 99)
        await until(lambda: server.stats().completed == 1)
    assert len(errors) == 3


# -- leaks

LIVES = 1000


@pytest.mark.parametrize("asked", [False, True], ids=["plain", "asked"])
async def test_nothing_is_left_of_many_connections(asked: bool) -> None:
    """No descriptor and no object that the collector would have to find, as it does not run."""

    async def handler(stream: Stream) -> None:
        if asked:
            stream.extra(SocketAttribute.raw_socket)
            await stream.receive()
            stream.post(b"x")
        else:
            await stream.send(await stream.receive())
        async for _ in stream:
            pass

    def live(address: Any, count: int) -> None:
        for _ in range(count):
            with socket.create_connection(address) as client:
                client.sendall(b"x")
                assert client.recv(2) == b"x"

    async with asyncserver.serve(handler, "127.0.0.1", 0) as server:
        address = server.addresses[0]
        await within(asyncio.to_thread(live, address, LIVES // 2), 300)  # what is made once is made now
        await until(lambda: not server._busy())
        gc.collect()
        gc.disable()
        try:
            before = Counter(type(one) for one in gc.get_objects())
            files = len(os.listdir("/proc/self/fd"))
            await within(asyncio.to_thread(live, address, LIVES), 300)
            await until(lambda: not server._busy())
            assert len(os.listdir("/proc/self/fd")) == files
            after = Counter(type(one) for one in gc.get_objects())
            assert not {kind: after[kind] - before[kind] for kind in after if after[kind] - before[kind] > LIVES / 10}
        finally:
            gc.enable()
    assert server.stats().completed == LIVES * 3 // 2
