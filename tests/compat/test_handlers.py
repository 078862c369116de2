"""Handlers that do strange things with their socket, and TLS clients that do: stdlib, compat, hosted alike."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trustme

import asyncserver
import compat
from tests.kit.certificates import client_context, plain_context
from tests.kit.checks import errors_in, is_idle
from tests.kit.clients import TLSClient, open_socket
from tests.kit.compat import LOOPBACK, serving
from tests.kit.transports import Transport
from tests.kit.waiting import until, within

KINDS = ["TCPServer", "ThreadingTCPServer", "UnixStreamServer", "ThreadingUnixStreamServer"]


def closes(request: socket.socket) -> None:
    """Close the socket that the server would close."""
    request.sendall(b"bye")
    request.close()


def shuts_down(request: socket.socket) -> None:
    """End the sending side, as the server would."""
    request.sendall(b"bye")
    request.shutdown(socket.SHUT_WR)


def detaches(request: socket.socket) -> None:
    """Take the descriptor away, and answer through it when the handler has ended."""
    mine = socket.socket(request.family, request.type, fileno=request.detach())

    def answer() -> None:
        with mine:
            mine.sendall(b"bye")

    threading.Timer(0.02, answer).start()


def wraps_in_tls(request: socket.socket) -> None:
    """Speak TLS on it: the socket object that the server knows is an empty shell from then on."""
    with plain_context().wrap_socket(request, server_side=True) as secure:
        secure.sendall(b"bye")


def sets_a_timeout(request: socket.socket) -> None:
    """Wait for a silent client only so long."""
    request.settimeout(0.02)
    with contextlib.suppress(TimeoutError):
        request.recv(1)
    request.sendall(b"bye")


MANNERS: list[Callable[[socket.socket], None]] = [closes, shuts_down, detaches, wraps_in_tls, sets_a_timeout]


def handler_class(act: Callable[[socket.socket], None], raises: bool) -> type[socketserver.BaseRequestHandler]:
    """A handler that does that, and ends, or fails."""

    class Strange(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            act(self.request)
            if raises:
                raise ValueError("strange")

    return Strange


def answer_of(address: Any, act: Callable[[socket.socket], None]) -> bytes:
    """All that a client gets."""
    client: socket.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    client.settimeout(20)
    client.connect(address)
    if act is wraps_in_tls:
        client = client_context().wrap_socket(client, server_hostname="localhost")
    answer = b""
    with client, contextlib.suppress(BrokenPipeError):  # how OpenSSL 3.6 reports an end without close_notify here
        while data := client.recv(100):
            answer += data
    return answer


@pytest.mark.parametrize("raises", [False, True], ids=["ends", "fails"])
@pytest.mark.parametrize("act", MANNERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_may_do_as_it_likes_with_its_socket(  # noqa: PLR0917 - fixtures
    ss: Any, kind: str, act: Any, raises: bool, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its client gets the same answer, its error is told once, and the next client is served as well."""
    place = str(tmp_path / "server.sock") if "Unix" in kind else LOOPBACK
    with serving(getattr(ss, kind)(place, handler_class(act, raises))) as server:
        assert [answer_of(server.server_address, act) for _ in range(3)] == [b"bye"] * 3
    assert capsys.readouterr().err.count("ValueError: strange") == 3 * raises


@pytest.mark.parametrize("raises", [False, True], ids=["ends", "fails"])
@pytest.mark.parametrize("act", MANNERS)
async def test_a_hosted_handler_may_do_so_too(act: Any, raises: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Under asyncserver; its error is counted and logged once."""
    handler = compat.hosted(handler_class(act, raises))
    async with asyncserver.serve(handler, "127.0.0.1", 0) as server:
        for _ in range(3):
            assert await asyncio.to_thread(answer_of, server.addresses[0], act) == b"bye"
        await until(lambda: is_idle(server))
        stats = server.stats()
    assert (stats.failed, stats.completed) == ((3, 0) if raises else (0, 3))
    assert len(errors_in(caplog)) == 3 * raises


async def test_a_hosted_handler_that_never_returns_is_given_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can wake it: the server closes all the same, and reports it."""
    monkeypatch.setattr("asyncserver.servers.server.Server._cancel_grace", 0.1)
    began, release = threading.Event(), threading.Event()

    class Hanging(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            began.set()
            release.wait(20)

    async with asyncserver.serve(compat.hosted(Hanging), "127.0.0.1", 0) as server:
        client = await open_socket(server.addresses[0])
        await asyncio.to_thread(began.wait, 20)
        since = asyncio.get_running_loop().time()
        report = await server.close(0.05)
        took = asyncio.get_running_loop().time() - since
        release.set()
        client.close()
    print(f"{report} after {took:.2f} s")
    assert report == asyncserver.DrainReport(completed=0, cancelled=0, aborted=1)
    assert took < 5


# TLS


class Reads(socketserver.BaseRequestHandler):
    """Reads to the end, and tells whether it was one."""

    whole: list[bytes] = []  # noqa: RUF012 - a new class for each test

    def handle(self) -> None:
        data = bytearray()
        while chunk := self.request.recv(100):
            data += chunk
        self.whole.append(bytes(data))


def reads() -> type[Reads]:
    """A handler class with a list of its own."""
    return type("Reads", (Reads,), {"whole": []})


async def outcome(tls: Transport, context: ssl.SSLContext | None, **options: Any) -> asyncserver.ServerStats:
    """What becomes of a client with this context (None: one that sends garbage), which sends a few bytes and ends."""
    handler = reads()
    async with tls.serve(compat.hosted(handler), **options) as server:
        sock = await open_socket(server.addresses[0])
        client = TLSClient(sock, context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        with contextlib.suppress(OSError):
            if context is None:
                await asyncio.get_running_loop().sock_sendall(sock, b"GET / HTTP/1.0\r\n\r\n")
            else:
                await within(client.handshake())
                await within(client.send(b"abc"))
                await within(client.receive())  # TLS 1.3 tells here that a certificate was missing
        client.close()
        await until(lambda: server.stats().accepted and is_idle(server))
        assert not handler.whole
        return server.stats()


@pytest.mark.parametrize("fault", ["garbage", "no certificate", "expired certificate", "old version"])
async def test_tls_that_fails_never_reaches_a_hosted_handler(
    fault: str, tls: Transport, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused and counted, without an error in the log."""
    ours, theirs = plain_context(), client_context()
    client: ssl.SSLContext | None = theirs
    if fault == "garbage":
        client = None
    elif fault == "old version":
        ours.minimum_version = ssl.TLSVersion.TLSv1_3
        theirs.maximum_version = ssl.TLSVersion.TLSv1_2
    else:
        authority.configure_trust(ours)
        ours.verify_mode = ssl.CERT_REQUIRED
        if fault == "expired certificate":
            authority.issue_cert("client", not_after=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)).configure_cert(theirs)
    stats = await outcome(tls, client, ssl=ours)
    print(f"{fault}: {stats.refused} refused of {stats.accepted}")
    assert (stats.accepted, stats.refused) == (1, 1)
    assert not errors_in(caplog)


@pytest.mark.parametrize("end", ["close_notify", "truncated", "reset", "garbage"])
async def test_a_hosted_handler_never_takes_truncated_data_for_complete(
    end: str, tls: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """Only close_notify is an end; anything else breaks the connection, which is no error of the handler's."""
    handler = reads()
    async with tls.serve(compat.hosted(handler)) as server:
        client = await tls.connect(server)
        await client.send(b"abc")
        if end == "close_notify":
            await client.send_eof()
        elif end == "garbage":
            await asyncio.get_running_loop().sock_sendall(client.sock, bytes(100))
        elif end == "reset":
            client.reset()
        else:
            client.sock.shutdown(socket.SHUT_WR)
        await until(lambda: server.stats().completed == 1)
        client.close()
    assert handler.whole == ([b"abc"] if end == "close_notify" else [])
    assert not errors_in(caplog)
