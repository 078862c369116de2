"""Drains and TLS records that carry no payload yet, or none at all: parts of records, and key updates."""

from __future__ import annotations

import asyncio
import shutil
import socketserver
import threading
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncserver
import compat
from asyncserver import DrainReport
from asyncserver.net.socket_info import unread
from tests.kit.clients import TLSClient
from tests.kit.handlers import UpperProtocol, upper
from tests.kit.transports import Transport
from tests.kit.waiting import PATIENCE, until, within


async def upper_callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data.upper())
    writer.close()
    await writer.wait_closed()


class Upper(socketserver.BaseRequestHandler):
    """Answers what it receives, in capitals."""

    def handle(self) -> None:
        while data := self.request.recv(1000):
            self.request.sendall(data.upper())


HANDLERS: dict[str, Callable[[], Any]] = {
    "stream": lambda: upper,
    "protocol": lambda: asyncserver.from_protocol(UpperProtocol),
    "callback": lambda: asyncserver.from_callback(upper_callback),
    "hosted": lambda: compat.hosted(Upper),
}
handlers = pytest.mark.parametrize("name", HANDLERS)


def taken(server: asyncserver.Server) -> bool:
    """Whether the only connection of a server has taken all that has come, and found no payload in it."""
    for connection in server.connections:
        where = connection._loan or connection
        found_none = where._came_at == connection.bytes_received or not connection.bytes_moved
        return not unread(where._sock.fileno()) and found_none
    return False


@pytest.mark.usefixtures("slow_clients", "short_pause")
@handlers
@pytest.mark.parametrize("asked", [b"", b"first"])
@pytest.mark.parametrize("together", [True, False], ids=["one segment", "two"])
async def test_rest_of_a_record_is_waited_for(tls: Transport, name: str, asked: bytes, *, together: bool) -> None:
    """OpenSSL has the beginning of a question when the drain begins: no payload, but a question that had come."""
    async with tls.serve(HANDLERS[name]()) as server, tls.connect(server) as client:
        assert isinstance(client, TLSClient)
        if asked and not together:
            assert await client.ask(asked) == asked.upper()
        before = b""
        if asked and together:
            client.tls.write(asked)
            before = client._outgoing.read()
        client.tls.write(b"question")
        record = client._outgoing.read()
        await client.loop.sock_sendall(client.sock, before + record[:12])
        if before:
            assert await client.receive_exactly(len(asked)) == asked.upper()
        await until(lambda: taken(server))
        closing = asyncio.create_task(server.close(PATIENCE))
        await until(lambda: not server.sockets)
        await client.loop.sock_sendall(client.sock, record[12:])
        assert await client.receive_exactly(8) == b"QUESTION"
        assert await client.receive() == b""
        client.close()
        assert await within(closing) == DrainReport(completed=1)


@pytest.mark.usefixtures("short_silence", "short_pause")
@handlers
async def test_part_of_a_record_is_not_waited_for_without_end(tls: Transport, name: str) -> None:
    """As long as for first words: nobody can tell it from a key update."""
    async with tls.serve(HANDLERS[name]()) as server, tls.connect(server) as client:
        assert isinstance(client, TLSClient)
        assert await client.ask(b"first") == b"FIRST"
        client.tls.write(b"question")
        await client.loop.sock_sendall(client.sock, client._outgoing.read()[:12])
        await until(lambda: taken(server))
        assert await within(server.close(2 * PATIENCE)) == DrainReport(completed=1)


@pytest.mark.usefixtures("short_silence")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
@pytest.mark.parametrize("before", [True, False], ids=["taken before", "unread"])
async def test_key_update_holds_no_hosted_handler(tls: Transport, *, before: bool) -> None:
    """No thread waits within OpenSSL, where a drain could not end it."""
    go_on, busy = threading.Event(), threading.Event()

    class Busy(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(1000):
                self.request.sendall(data.upper())
                busy.set()
                go_on.wait()

    if before:
        go_on.set()
    async with tls.serve(compat.hosted(Busy)) as server:
        host, port = server.addresses[0][:2]
        command = ("openssl", "s_client", "-connect", f"{host}:{port}", "-tls1_3")
        client = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"hello\n")
        await within(client.stdout.readuntil(b"HELLO\n"))
        client.stdin.write(b"k\n")
        (connection,) = server.connections
        await until(lambda: taken(server) if before else unread(connection._loan._sock.fileno()))
        closing = asyncio.create_task(server.close(2 * PATIENCE))
        await until(lambda: not server.sockets)
        go_on.set()
        assert await within(closing) == DrainReport(completed=1)
        client.stdin.close()
        await within(client.communicate())


async def test_hosted_handler_answers_all_that_openssl_had_decrypted(tls: Transport) -> None:
    """Whatever it receives at a time: what a record still holds counts as unread, too."""
    go_on = threading.Event()

    class Slow(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(1000):
                go_on.wait()
                self.request.sendall(data.upper())

    question = b"x" * 40_000
    async with tls.serve(compat.hosted(Slow)) as server, tls.connect(server) as client:
        await client.send(question)
        await until(lambda: server.stats().bytes_received == 1000)
        closing = asyncio.create_task(server.close(2 * PATIENCE))
        await until(lambda: not server.sockets)
        go_on.set()
        assert await client.receive_all() == question.upper()
        assert await within(closing) == DrainReport(completed=1)


@pytest.mark.usefixtures("short_pause")
async def test_tls_of_a_callback_ends_without_the_peers_close_notify(tmp_path: Path) -> None:
    """After `writer.start_tls()` asyncio would wait for it for 30 s: a client of a pool reads only when it asks."""

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"go ahead\n")
        await writer.start_tls(tcp.server_context)
        await upper_callback(reader, writer)

    tcp = Transport("tcp", tmp_path)
    async with tcp.serve(asyncserver.from_callback(callback)) as server, tcp.connect(server) as client:
        assert await client.ask(b"STARTTLS\n") == b"go ahead\n"
        secure = TLSClient(client.sock, tcp.client_context)
        await secure.handshake()
        assert await secure.ask(b"hello") == b"HELLO"
        assert await within(server.close(2 * PATIENCE)) == DrainReport(completed=1)
        assert await secure.receive_all() == b""
