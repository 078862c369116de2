"""What happens to one TLS connection is told to no other of the same thread: OpenSSL's queue of errors.

With OpenSSL below 3.4 there is nothing to mend, and these tests pass by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anyio.abc import SocketAttribute

import asyncserver
import compat
from asyncserver import Server, Stream
from asyncserver.net.socket_info import unread
from asyncserver.tls.openssl import clear_errors
from compat.pool.executor import ThreadPool
from compat.pool.openssl import clear_errors as clear_in_compat
from compat.pool.openssl import quick_clearing
from tests.kit.clients import Client, TLSClient
from tests.kit.compat import serving
from tests.kit.transports import Transport
from tests.kit.waiting import until, within

CLIENTS = 10  # of each kind; 200 of each have been tried. The first one already shows what is broken,
CALLS = 20  # and where threads have to meet, one of the first five, seldom one of twenty


class InPieces(TLSClient):
    """A client whose records arrive in two pieces, so that the server has to wait in the middle of each."""

    async def ask_in_pieces(self, question: bytes, server: Server) -> bytes:
        """Send the second piece when the server has met the first."""
        self.tls.write(question)
        record = self._outgoing.read()
        await self.loop.sock_sendall(self.sock, record[:10])
        await until(lambda: self.is_read(server))
        await self.loop.sock_sendall(self.sock, record[10:])
        return await self.receive_exactly(len(question))

    def is_read(self, server: Server) -> bool:
        """Whether the server has taken from the kernel what was sent."""
        own = self.sock.getsockname()
        (stream,) = (one for one in server.connections if one.peer_address == own)
        return unread(stream.extra(SocketAttribute.raw_socket).fileno()) == 0


async def polite(stream: Stream) -> None:
    """Answer in capitals until the client takes leave; say so then."""
    async for data in stream:
        await stream.send(data.upper())
        if data == b"bye":
            return


async def leaves_before_its_answers(client: Client) -> None:
    """A write of the server finds the connection reset."""
    await client.ask(b"x")
    for _ in range(3):
        await client.send(b"y")
    client.close()


async def resets(client: Client) -> None:
    """A read of the server fails."""
    await client.ask(b"x")
    client.reset()


async def resets_after_its_farewell(client: Client) -> None:
    """The server's close_notify fails, or what comes before it."""
    await client.send(b"bye")
    client.reset()


@pytest.mark.parametrize("rude", [leaves_before_its_answers, resets, resets_after_its_farewell])
async def test_clients_that_break_off_disturb_nobody(tls: Transport, rude: Callable[[Client], Any]) -> None:
    """Neither the server's other clients, nor the program's own connections in the same loop."""
    async with tls.serve(polite) as server:
        host, port = server.addresses[0]
        reader, writer = await asyncio.open_connection(host, port, ssl=tls.client_context, server_hostname="localhost")
        innocent = InPieces((await Client.connect(server.addresses[0])).sock, tls.client_context)
        await innocent.handshake()
        for turn in range(CLIENTS):
            await rude(await tls.connect(server))
            await until(lambda: server.stats().active == 2)
            assert await innocent.ask_in_pieces(b"one", server) == b"ONE", turn
            writer.write(b"two")
            assert await within(reader.readexactly(3)) == b"TWO", turn
        innocent.close()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_handshakes_that_break_off_disturb_nobody(tls: Transport) -> None:
    """The whole of the client's first message is here, and there is nobody to answer."""
    async with tls.serve(polite) as server:
        innocent = InPieces((await Client.connect(server.addresses[0])).sock, tls.client_context)
        await innocent.handshake()
        for _ in range(CLIENTS):
            before = server.stats().refused
            rude = TLSClient((await Client.connect(server.addresses[0])).sock, tls.client_context)
            with pytest.raises(ssl.SSLWantReadError):
                rude.tls.do_handshake()
            await Client.send(rude, rude._outgoing.read())
            rude.close()
            while server.stats().refused == before:  # the test's timeout ends it
                await asyncio.sleep(0.001)
            assert await innocent.ask_in_pieces(b"one", server) == b"ONE"
        innocent.close()


def break_a_connection(context: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """Meet a system error on a TLS socket, and keep it to oneself."""
    with tls_pair(context, trusting) as (_, server):
        socket.socket.shutdown(server, socket.SHUT_WR)
        with contextlib.suppress(OSError):
            server.send(b"x")


@contextlib.contextmanager
def tls_pair(context: ssl.SSLContext, trusting: ssl.SSLContext) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """Both ends of a connection."""
    ends = socket.socketpair()
    server = context.wrap_socket(ends[0], server_side=True, do_handshake_on_connect=False)
    client = trusting.wrap_socket(ends[1], server_hostname="localhost", do_handshake_on_connect=False)
    with server, client:
        thread = threading.Thread(target=server.do_handshake)
        thread.start()
        client.do_handshake()
        thread.join()
        yield client, server


@pytest.fixture
def quiet(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """A TLS socket of the program's own: a read has to say that there is nothing yet."""
    with tls_pair(server_context, client_context) as (_, server):  # to the client come tickets, which empty the queue
        server.setblocking(False)
        yield server


@pytest.mark.parametrize("clear", [clear_errors, clear_in_compat, quick_clearing()])
def test_the_queue_is_emptied(
    clear: Callable[[], object], server_context: ssl.SSLContext, client_context: ssl.SSLContext, quiet: ssl.SSLSocket
) -> None:
    """Each way to do it."""
    break_a_connection(server_context, client_context)
    clear()
    with pytest.raises(ssl.SSLWantReadError):
        quiet.recv(1)


def test_there_is_a_way_without_openssls_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be found where OpenSSL is linked in statically, nor be called where ctypes cannot be loaded."""
    with monkeypatch.context() as patch:
        patch.delattr("_ssl.__file__")
        assert quick_clearing() is clear_in_compat
    for error in ImportError, OSError, MemoryError:
        monkeypatch.setattr("ctypes.PyDLL", raising(error))
        assert quick_clearing() is clear_in_compat


def raising(error: type[Exception]) -> Callable[[object], None]:
    """Stand in for a function that cannot do what it should."""

    def fail(_: object) -> None:
        raise error

    return fail


def test_a_call_leaves_nothing_to_the_next_in_its_thread(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, quiet: ssl.SSLSocket
) -> None:
    """Handlers may use TLS as they like, and keep what happens to themselves."""
    with ThreadPool(max_threads=1) as pool:
        pool.submit(break_a_connection, server_context, client_context).result()
        with pytest.raises(ssl.SSLWantReadError):
            pool.submit(quiet.recv, 1).result()


class Patient(compat.StreamRequestHandler):
    """Has a timeout, so that Python asks OpenSSL without waiting in it."""

    timeout = 20

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(100):
                self.request.sendall(data.upper())


def leave_rudely(address: Any, trusting: ssl.SSLContext) -> None:
    """Have a write of the server's find the connection reset."""
    with trusting.wrap_socket(socket.create_connection(address, 20), server_hostname="localhost") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"X"
        client.sendall(b"y")


def ask_politely(address: Any, trusting: ssl.SSLContext) -> bytes:
    """Ask when the handler waits for the question already."""
    with trusting.wrap_socket(socket.create_connection(address, 20), server_hostname="localhost") as client:
        client.sendall(b"one")
        answer = client.recv(3)
        client.sendall(b"two")
        return answer + client.recv(3)


@pytest.mark.parametrize("kind", [compat.ThreadingTCPServer, compat.TCPServer])
@pytest.mark.parametrize("wraps", ["listener", "request"])
def test_handlers_in_the_same_thread_disturb_nobody(
    kind: Any, wraps: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """That of a pool, or the serving one, wherever the handshake is made."""

    class Server(kind):  # type: ignore[misc]
        def get_request(self) -> Any:
            request, address = super().get_request()
            return server_context.wrap_socket(request, server_side=True), address

    server = (Server if wraps == "request" else kind)(("127.0.0.1", 0), Patient)
    if wraps == "listener":
        server.socket = server_context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        for turn in range(CALLS):
            leave_rudely(server.server_address, client_context)
            assert ask_politely(server.server_address, client_context) == b"ONETWO", turn


class Breaks(compat.BaseRequestHandler):
    """Meets a system error on its connection, and keeps it to itself."""

    def handle(self) -> None:
        socket.socket.shutdown(self.request, socket.SHUT_WR)
        with contextlib.suppress(OSError):
            self.request.send(b"x")


def test_serving_thread_is_left_clean(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, quiet: ssl.SSLSocket
) -> None:
    """A program that calls `handle_request()` may use TLS of its own in between."""
    with compat.TCPServer(("127.0.0.1", 0), Breaks) as server:
        server.socket = server_context.wrap_socket(server.socket, server_side=True)
        address: Any = server.server_address

        def be_a_client() -> None:
            with client_context.wrap_socket(socket.create_connection(address, 20), server_hostname="localhost"):
                pass

        thread = threading.Thread(target=be_a_client)
        thread.start()
        server.handle_request()
        thread.join()
    with pytest.raises(ssl.SSLWantReadError):
        quiet.recv(1)


async def test_hosted_handlers_disturb_nobody(tls: Transport) -> None:
    """The same, hosted."""
    async with asyncserver.serve(compat.hosted(Patient), "127.0.0.1", 0, ssl=tls.server_context) as server:
        address = server.addresses[0]
        for turn in range(CALLS):
            await asyncio.to_thread(leave_rudely, address, tls.client_context)
            assert await asyncio.to_thread(ask_politely, address, tls.client_context) == b"ONETWO", turn
