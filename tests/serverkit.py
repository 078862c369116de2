"""What the tests of the servers share: wires, clients, handlers, waiting, programs in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import trustme

import asyncserver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from asyncserver import Stream


ROOT = Path(__file__).parent.parent
KINDS = ("tcp", "unix", "tls")
PATIENCE = 20.0  # seconds for what takes milliseconds: only a broken server is waited for so long
# A StreamReader's. Above what a test sends: uvloop's TLS loses what waits in a paused client when the end comes.
_LIMIT = 1 << 26

LOOPS = ["asyncio"]
if "ASYNCSERVER_TESTS_WITHOUT_UVLOOP" not in os.environ:
    with contextlib.suppress(ModuleNotFoundError):
        import uvloop  # noqa: F401

        LOOPS.append("uvloop")


async def upper(stream: asyncserver.Stream) -> None:
    """Send back in capitals whatever comes."""
    async for data in stream:
        await stream.send(data.upper())


async def upper_lines(stream: asyncserver.Stream) -> None:
    """Send back each line in capitals."""
    while True:
        line = await stream.receive_until(b"\n", 1 << 20)
        await stream.send(line.upper() + b"\n")


async def until(reached: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Poll, where no event tells; fails after so many seconds."""
    async with asyncio.timeout(seconds):
        while not reached():
            await asyncio.sleep(0.002)


def is_balanced(server: asyncserver.Server) -> bool:
    """Whether each accepted connection is in exactly one of the counters."""
    now = server.stats()
    ended = now.completed + now.failed + now.cancelled + now.timed_out
    return now.accepted == now.active + now.refused + ended


def is_balanced_for_datagrams(server: asyncserver.Server) -> bool:
    """Whether each datagram is in exactly one of the counters, and each completed one too."""
    now = server.stats()
    return (
        now.datagrams_received == now.active + now.completed + now.failed + now.cancelled
        and now.completed == now.datagrams_answered + now.datagrams_silent
    )


@functools.cache
def authority() -> trustme.CA:
    """Make the authority that clients trust."""
    return trustme.CA()


@functools.cache
def server_context() -> ssl.SSLContext:
    """Make a context for servers at 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@functools.cache
def client_context() -> ssl.SSLContext:
    """Make a context that trusts `server_context()`."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


class Client:
    """A client over the loop's own streams: an implementation that is not ours."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self, nbytes: int = 65536) -> bytes:
        """Receive what comes; b"" is the end."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read(nbytes)

    async def receive_exactly(self, nbytes: int) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readexactly(nbytes)

    async def ask(self, question: bytes) -> bytes:
        """Send, and receive an answer of the same length."""
        await self.send(question)
        return await self.receive_exactly(len(question))

    async def rest(self) -> bytes:
        """Receive to the end; a reset counts as the end."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read()
        return b""

    def reset(self) -> None:
        """Break the connection."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def aclose(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self.writer.wait_closed()


@dataclass(frozen=True)
class Wire:
    """One of the ways by which a client reaches a server."""

    kind: str
    folder: Path

    def serve(self, handler: Any, **options: Any) -> asyncserver.Serving:
        if self.kind == "unix":
            return asyncserver.serve(handler, path=self.folder / "server.sock", **options)
        if self.kind == "tls":
            options.setdefault("ssl", server_context())
        return asyncserver.serve(handler, "127.0.0.1", 0, **options)

    @contextlib.asynccontextmanager
    async def connect(self, server: asyncserver.Server) -> AsyncIterator[Client]:
        client = await self.dial(server)
        try:
            yield client
        finally:
            await client.aclose()

    async def dial(self, server: asyncserver.Server) -> Client:
        async with asyncio.timeout(PATIENCE):
            address = server.addresses[0]
            if self.kind == "unix":
                assert isinstance(address, str)
                return Client(*await asyncio.open_unix_connection(address, limit=_LIMIT))
            context = client_context() if self.kind == "tls" else None
            return Client(*await asyncio.open_connection(address[0], int(address[1]), ssl=context, limit=_LIMIT))

    @contextlib.contextmanager
    def blocking(self, server: asyncserver.Server) -> Iterator[BlockingClient]:
        client = BlockingClient(self.kind, server.addresses[0])
        try:
            yield client
        finally:
            client.sock.close()


class BlockingClient:
    """A client with a blocking socket: what it does in the loop's thread is done before the server can look.

    Whatever needs the server's answer runs in a thread instead.
    """

    def __init__(self, kind: str, address: Any) -> None:
        self.kind = kind
        self.sock = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(address)

    def handshake(self) -> None:
        if self.kind == "tls":
            self.sock = client_context().wrap_socket(self.sock, server_hostname="127.0.0.1")

    def receive_exactly(self, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes and (chunk := self.sock.recv(nbytes - len(data))):
            data += chunk
        return data

    def rest(self) -> bytes:
        """Receive until the server ends the connection, and leave."""
        data = b""
        while chunk := self.sock.recv(65536):
            data += chunk
        self.sock.close()
        return data

    def ask_now(self, question: bytes) -> asyncio.Task[bytes]:
        """Ask before the server can look, as far as that goes (TLS takes two); returns the answer, to its end."""
        if self.kind == "tls":
            return asyncio.create_task(asyncio.to_thread(self.ask_to_the_end, question))
        self.sock.sendall(question)
        return asyncio.create_task(asyncio.to_thread(self.rest))

    def ask_to_the_end(self, question: bytes) -> bytes:
        """Handshake, ask, and receive until the server ends the connection."""
        self.handshake()
        self.sock.sendall(question)
        return self.rest()


class Program:
    """A Python program in a process of its own, whose output is collected while it runs."""

    def __init__(
        self, arguments: list[str], folder: Path, pass_fds: tuple[int, ...] = (), /, **environment: str
    ) -> None:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name in {"PATH", "HOME"} or name.startswith("COVERAGE_")
        }
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
        self.output = ""
        self.errors = ""
        self._news = threading.Condition()
        self._threads = [
            threading.Thread(target=self._collect, args=(name,), daemon=True) for name in ("output", "errors")
        ]
        for thread in self._threads:
            thread.start()

    def _collect(self, name: str) -> None:
        pipe = self.process.stdout if name == "output" else self.process.stderr
        assert pipe is not None
        for line in pipe:
            with self._news:
                setattr(self, name, getattr(self, name) + line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until it has printed that, so often."""
        with self._news:
            found = self._news.wait_for(lambda: (self.output + self.errors).count(text) >= times, PATIENCE)
        assert found, f"no {text!r} in {self.output!r}, {self.errors!r}"

    def wait(self) -> int:
        """Wait for its end and for all that it has said; returns its exit status."""
        status = self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def wait_until_asleep(pid: int) -> None:
    """Wait until the main thread of a program sleeps for good: who waits for the GIL wakes every 5 ms.

    CPython may overlook a signal that comes in the moment before that, until another comes or a thread ends.
    """
    switches, since = "", time.monotonic()
    while time.monotonic() - since < 0.2:
        text = Path(f"/proc/{pid}/task/{pid}/status").read_text()
        now = text[text.index("voluntary_ctxt_switches") :]
        if now != switches or "State:\tS" not in text:
            switches, since = now, time.monotonic()


def free_port() -> int:
    """A port that nobody has, for streams or for datagrams."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(tcp.getsockname())
        port: int = tcp.getsockname()[1]
        return port


def run_script(source: str, folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run a script to its end; returns its status, output and errors."""
    (folder / "script.py").write_text(source)
    with Program(["-W", "error", "script.py", *arguments], folder, **environment) as program:
        return program.wait(), program.output, program.errors


def errors_in(caplog: Any) -> list[Any]:
    """The records of the package's own logger that tell of an error."""
    return [one for one in caplog.records if one.name == "asyncserver" and one.levelname == "ERROR"]


@pytest.fixture(params=KINDS)
def wire(request: pytest.FixtureRequest, tmp_path: Path) -> Wire:
    return Wire(request.param, tmp_path)


@pytest.fixture
def tcp(tmp_path: Path) -> Wire:
    return Wire("tcp", tmp_path)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Abort a third of a second after the cancellation; how long a real one takes is tested in test_drain.py."""
    monkeypatch.setattr("asyncserver.servers.server.Server._cancel_grace", 0.3)


class Misbehaving:
    """A handler that does what the first word asks for; otherwise it sends capitals. At the end it is let go."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release.set()
        await asyncio.sleep(0)

    async def __call__(self, stream: Stream) -> None:
        word = await stream.receive()
        if word == b"raise":
            raise ValueError("the handler's own mistake")
        if word == b"hang":
            await self.release.wait()
        while word == b"swallow" and not self.release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.release.wait()
        await stream.send(word.upper())
        await upper(stream)
