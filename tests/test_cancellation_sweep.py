"""Cancellation at every scheduling point: nothing is left, the server still serves, and its counters balance."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import asyncserver
from tests.serverkit import is_balanced, is_balanced_for_datagrams
from tests.support import Client, TLSClient, Transport, eventually, open_socket, within
from tests.sweep import Cut, sweep

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from asyncserver import Server, Stream


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds that some cuts have to wait for."""
    monkeypatch.setattr("asyncserver.server._CANCEL_GRACE", 0.05)
    monkeypatch.setattr("asyncserver.stream._CLOSE_TIMEOUT", 0.05)
    monkeypatch.setattr("asyncserver.adapters._SHUTDOWN_TIMEOUT", 0.05)


@pytest.fixture(autouse=True)
def _no_errors(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    told = [record for record in caplog.get_records("call") if record.name == "asyncserver"]
    assert not [record.getMessage() for record in told if record.levelno >= logging.WARNING]


async def upper(stream: Stream) -> None:
    async for data in stream:
        await stream.send(data.upper())


def cut_handlers(server: Server, cut: Cut) -> None:
    """Cut what the server runs for its next connection: header, handshake, handler."""
    run: Callable[[Any], Any] = server._run
    others = iter([lambda connection: cut.here(run(connection))])
    server._run = lambda connection: next(others, run)(connection)


async def still_serves(wire: Transport, server: Server) -> None:
    """One more client, and then the accounts."""
    client = await within(wire.connect(server))
    assert await client.ask(b"hello") == b"HELLO"
    client.close()
    await eventually(lambda: server.stats().active == 0 and not server._finishing)
    assert is_balanced(server)
    assert not server._poller._connections  # type: ignore[attr-defined]


async def talk(wire: Transport, server: Server, act: Callable[[Client], Awaitable[object]]) -> None:
    """Be a client whose server may go at any time."""
    with contextlib.suppress(OSError, EOFError):
        client = Client(await open_socket(server.addresses[0]))
        try:
            if wire.tls:
                client = TLSClient(client.sock, wire.client_context)
                await client.handshake()
            await eventually(lambda: server.stats().accepted)  # it waits for us
            await act(client)
            await client.receive_all()
        finally:
            client.close()


def _handler(cut: Cut, first: Callable[[Stream], Awaitable[object]]) -> Callable[[Stream], Any]:
    """The first connection gets the handler that is cut, the others capitals."""
    handlers = iter([first])

    async def handler(stream: Stream) -> None:
        act = next(handlers, None)
        await (upper(stream) if act is None else cut.here(act(stream)))  # type: ignore[arg-type]

    return handler


async def test_serve(transport: Transport) -> None:
    """The program's own task, from binding to the end of the drain."""

    async def scenario(cut: Cut) -> None:
        async def program() -> None:
            async with transport.serve(upper) as server:
                client = await transport.connect(server)
                try:
                    assert await client.ask(b"hello") == b"HELLO"
                finally:
                    client.close()

        await cut.run(program())

    assert await sweep(scenario) >= 6


async def test_awaited_serve(tmp_path: Path) -> None:
    """`await serve(...)`, cancelled while it starts, while it serves or while it ends."""
    path = tmp_path / "s"

    async def scenario(cut: Cut) -> None:
        async def program() -> None:
            await asyncserver.serve(upper, path=path)

        task = asyncio.create_task(cut.here(program()))
        await eventually(lambda: path.exists() or task.done())
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert not path.exists()

    assert await sweep(scenario) >= 6


async def test_receiving(transport: Transport) -> None:
    """A handler that receives in every way, and its handshake."""

    async def receive(stream: Stream) -> None:
        assert await stream.receive(3) == b"abc"
        assert await stream.receive_until(b";", 100) == b"def"
        assert await stream.receive_exactly(6) == b"ghijkl"
        assert await stream.receive() == b"m"
        with pytest.raises(anyio.IncompleteRead):
            await stream.receive_exactly(2)

    async def ask(client: Client) -> None:
        for part in (b"abc", b"de", b"f;gh", b"ijkl", b"m", b"n"):
            await client.send(part)
            for _ in range(3):
                await asyncio.sleep(0)
        await client.send_eof()

    async def scenario(cut: Cut) -> None:
        async def handler(stream: Stream) -> None:
            await (receive if server.stats().accepted == 1 else upper)(stream)

        async with transport.serve(handler) as server:
            cut_handlers(server, cut)
            await talk(transport, server, ask)
            await still_serves(transport, server)

    assert await sweep(scenario) >= 3


async def test_sending_much(transport: Transport) -> None:
    """A handler that sends more than the kernel takes at once, and closes by itself."""

    async def send(stream: Stream) -> None:
        await stream.send(bytes({"tcp": 12 << 20, "unix": 1 << 20, "tls": 3 << 20}[transport.name]))
        await stream.send_eof()
        await stream.aclose()

    async def scenario(cut: Cut) -> None:
        async with transport.serve(_handler(cut, send)) as server:
            await talk(transport, server, lambda client: client.receive(1))
            await still_serves(transport, server)

    assert await sweep(scenario) >= 3


async def test_start_tls(tcp: Transport) -> None:
    """A handler that goes over to TLS in the middle."""

    async def secure(stream: Stream) -> None:
        assert await stream.receive_exactly(8) == b"starttls"
        await stream.send(b"go")
        await stream.start_tls(tcp.server_context)
        await upper(stream)

    async def scenario(cut: Cut) -> None:
        async with tcp.serve(_handler(cut, secure)) as server:
            with contextlib.suppress(OSError):
                sock = await open_socket(server.addresses[0])
                plain, client = Client(sock), TLSClient(sock, tcp.client_context)
                await plain.send(b"starttls")
                if await plain.receive_exactly(2) == b"go":
                    await client.handshake()
                    await client.send(b"hello")
                    await client.send_eof()
                    await client.receive_all()
            sock.close()
            await still_serves(tcp, server)

    assert await sweep(scenario) >= 6


@pytest.mark.parametrize("unread", [False, True])
async def test_aclose(transport: Transport, unread: bool) -> None:
    """A handler that closes, with bytes in the kernel that nobody has read, or without."""

    begun = asyncio.Event()

    async def close(stream: Stream) -> None:
        begun.set()
        await stream.receive_exactly(1)
        await stream.send(b"answer")
        await stream.aclose()

    async def ask(client: Client) -> None:
        await within(begun.wait())
        await client.send(b"x" * (50_000 if unread else 1))

    async def scenario(cut: Cut) -> None:
        async with transport.serve(_handler(cut, close)) as server:
            begun.clear()
            await talk(transport, server, ask)
            await still_serves(transport, server)

    assert await sweep(scenario) >= 3


async def test_what_the_server_closes(transport: Transport) -> None:
    """The server's own task that ends a connection after its handler, when the peer does not."""

    async def one_byte(stream: Stream) -> None:
        if await stream.receive(1) == b"x":
            await stream.send(b"answer")
        else:
            await upper(stream)

    async def scenario(cut: Cut) -> None:
        async with transport.serve(one_byte) as server:
            finish = server._finish
            cuts = iter([cut.here])

            def cut_finish(source: Any) -> Any:
                coroutine = finish(source)
                here = next(cuts, None)
                return coroutine if coroutine is None or here is None else here(coroutine)

            server._finish = cut_finish  # type: ignore[method-assign]
            await talk(transport, server, lambda client: client.send(b"x" * 50_000))
            await eventually(lambda: server.stats().active == 0 and not server._finishing)
            assert is_balanced(server)

    assert await sweep(scenario) >= 1


# -- headers, protocols


async def test_proxy_header(tcp: Transport) -> None:
    """A header that comes in pieces, before a handler."""
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 2000\r\n"

    async def ask(client: Client) -> None:
        for part in (header[:5], header[5:20], header[20:] + b"he", b"llo"):
            await client.send(part)
            for _ in range(3):
                await asyncio.sleep(0)
        await client.send_eof()

    async def scenario(cut: Cut) -> None:
        async with tcp.serve(upper, proxy_protocol=True, max_connections_per_host=1) as server:
            cut_handlers(server, cut)
            await talk(tcp, server, ask)
            await eventually(lambda: server.stats().active == 0 and not server._finishing)
            client = await tcp.connect(server)
            await client.send(header)
            assert await client.ask(b"hello") == b"HELLO"
            client.close()
            await eventually(lambda: server.stats().active == 0 and not server._finishing)
            assert is_balanced(server)
            assert not server._per_host  # type: ignore[attr-defined]
            assert not server._unnamed  # type: ignore[attr-defined]

    assert await sweep(scenario) >= 9


class Upper(asyncio.Protocol):
    """An existing protocol."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data.upper())


async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(100):
            writer.write(data.upper())
            await writer.drain()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "make", [lambda: asyncserver.from_protocol(Upper), lambda: asyncserver.from_callback(callback)]
)
async def test_protocols(transport: Transport, make: Callable[[], Any]) -> None:
    """What the server runs around an existing protocol, from the first byte to the end of the transport."""

    async def ask(client: Client) -> None:
        assert await client.receive_exactly(0) == b""
        await client.send(b"hello")
        await client.receive_exactly(5)
        await client.send_eof()

    async def scenario(cut: Cut) -> None:
        async with transport.serve(make()) as server:
            cut_handlers(server, cut)
            await talk(transport, server, ask)
            await still_serves(transport, server)

    assert await sweep(scenario) >= 3


# -- closing


async def _clients(wire: Transport, server: Server, count: int) -> list[Client]:
    """One between two messages; then one in the middle of one, and one silent."""
    clients = [await wire.connect(server) for _ in range(count)]
    assert await clients[0].ask(b"hello\n") == b"HELLO\n"
    if count == 1:
        return clients
    await clients[1].send(b"half")
    await eventually(lambda: server.stats().bytes_received == 10)
    return clients


async def upper_lines(stream: Stream) -> None:
    while True:
        await stream.send((await stream.receive_until(b"\n", 100)).upper() + b"\n")


def _closing(server: list[Server]) -> Callable[[Stream], Any]:
    """A handler that closes its server and goes on for a moment, which is what `_clean` waits for."""

    async def handler(stream: Stream) -> None:
        try:
            await upper_lines(stream)
        finally:
            await server[0].close()
            for _ in range(5):
                await asyncio.sleep(0)

    return handler


@pytest.mark.parametrize("who", ["the caller", "_drain", "_clean"])
async def test_close(transport: Transport, who: str) -> None:
    """close(), and the tasks of the server's own that it starts (as the end of the program cancels them)."""

    async def scenario(cut: Cut) -> None:
        async with contextlib.AsyncExitStack() as stack:
            servers: list[Server] = []
            handler = _closing(servers) if who == "_clean" else upper_lines
            server = await stack.enter_async_context(transport.serve(handler))
            servers.append(server)
            clients = await _clients(transport, server, 1 if who == "_clean" else 3)
            if who == "the caller":
                closing = asyncio.create_task(cut.run(server.close(0.05)))
            else:
                method = getattr(server, who)
                setattr(server, who, lambda *arguments: cut.here(method(*arguments)))
                closing = asyncio.create_task(server.close(5 if who == "_clean" else 0.05))
            await asyncio.wait([closing])
            assert closing.cancelled() or not closing.exception()
            await within(server.wait_closed())
            for client in clients:
                with contextlib.suppress(OSError):
                    await client.receive_all()
                client.close()
            await eventually(lambda: server.stats().active == 0 and not server._finishing)
            assert is_balanced(server)
            with contextlib.suppress(asyncio.CancelledError):
                await stack.aclose()

    assert await sweep(scenario) >= 3


# -- datagrams


async def test_datagram_reply_under_a_full_buffer(tmp_path: Path) -> None:
    """A reply that waits for room in the sender's queue."""

    async def answer(datagram: asyncserver.Datagram) -> None:
        await datagram.reply(datagram.data.upper())

    async def scenario(cut: Cut) -> None:
        async def handler(datagram: asyncserver.Datagram) -> None:
            await (cut.here(answer(datagram)) if datagram.data == b"first" else answer(datagram))

        async with asyncserver.serve_datagrams(handler, path=tmp_path / "s") as server:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
                client.bind(str(tmp_path / "c"))
                client.setblocking(False)
                queued = _fill(tmp_path / "c")
                client.sendto(b"first", str(tmp_path / "s"))
                await eventually(lambda: server.stats().datagrams_received == 1)
                await asyncio.sleep(0.01)  # the reply is tried again on a timer
                for _ in range(queued):
                    assert client.recv(100) == b"full"
                await eventually(lambda: server.stats().active == 0)
                client.sendto(b"second", str(tmp_path / "s"))
                await eventually(lambda: server.stats().completed + server.stats().cancelled == 2)
                answers = [client.recv(100) for _ in range(server.stats().datagrams_answered)]
                assert answers[-1] == b"SECOND"
                assert is_balanced_for_datagrams(server)
        (tmp_path / "c").unlink()

    assert await sweep(scenario) >= 3


def _fill(path: Path) -> int:
    count = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(BlockingIOError):
        sock.setblocking(False)
        while True:
            sock.sendto(b"full", str(path))
            count += 1
    return count


async def test_serve_datagrams(tmp_path: Path) -> None:
    """The program's own task, from binding to the end of the drain."""

    async def answer(datagram: asyncserver.Datagram) -> bytes:
        await asyncio.sleep(0)
        return datagram.data.upper()

    async def scenario(cut: Cut) -> None:
        async def program() -> None:
            async with asyncserver.serve_datagrams(answer, "127.0.0.1", 0) as server:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.setblocking(False)
                    client.connect(server.addresses[0])
                    client.send(b"hello")
                    loop = asyncio.get_running_loop()
                    assert await loop.sock_recv(client, 100) == b"HELLO"

        await cut.run(program())

    assert await sweep(scenario) >= 3
