"""The model of a stream: what the peer has sent, what the stream has, and whether what it does is right.

The model is two byte sequences, what the peer has sent and what the stream has, and the few facts that decide which
errors may come. Whatever is waited for has to come when the model says that it can.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio

import asyncserver
from asyncserver import Stream
from tests.kit.certificates import client_context, server_context
from tests.kit.checks import is_balanced
from tests.kit.machine import LoopMachine
from tests.kit.waiting import PATIENCE

_ENDINGS = (asyncio.CancelledError, anyio.EndOfStream, anyio.IncompleteRead, anyio.DelimiterNotFound)


def descriptors() -> set[str]:
    """The descriptors that are open now."""
    return {name for name in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{name}").exists()}


class Peer:
    """The other end: never waits, and reads and writes only when it is pumped."""

    def __init__(self, address: Any, kind: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        self.sock.connect(address)
        self.sock.setblocking(False)
        self.received = bytearray()
        self.unsent = bytearray()
        self.reading = True
        self.ended = False  # it has seen the end, or the connection is broken
        self.half_close_when_sent = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls: ssl.SSLObject | None = None
        if kind == "tls":
            self.tls = client_context().wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self.ready = self.tls is None

    def send(self, data: bytes) -> None:
        if self.tls is None:
            self.unsent += data
        else:
            self.tls.write(data)
        self.pump()

    def half_close(self) -> None:
        if self.tls is not None:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.unwrap()
        else:
            self.half_close_when_sent = True
        self.pump()

    def reset(self) -> None:
        if self.sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.ended = True
        self.sock.close()

    def pump(self) -> None:
        """Send and receive what can be, now."""
        if not self.ended:
            with contextlib.suppress(BlockingIOError):
                try:
                    self._push()
                    while self.reading and not self.ended:
                        self._take(self.sock.recv(1 << 20))
                except (ConnectionError, ssl.SSLError):
                    self.ended = True

    def _push(self) -> None:
        if self.tls is not None:
            self._step()
            self.unsent += self._outgoing.read()
        while self.unsent:
            del self.unsent[: self.sock.send(self.unsent)]
        if self.half_close_when_sent:
            self.half_close_when_sent = False
            self.sock.shutdown(socket.SHUT_WR)

    def _take(self, data: bytes) -> None:
        self.ended = not data
        if self.tls is None:
            self.received += data
        else:
            self._incoming.write(data) if data else self._incoming.write_eof()
            self._step()
            self._push()

    def _step(self) -> None:
        assert self.tls is not None
        with contextlib.suppress(ssl.SSLWantReadError):
            try:
                if not self.ready:
                    self.tls.do_handshake()
                    self.ready = True
                while chunk := self.tls.read(1 << 20):
                    self.received += chunk
            except ssl.SSLZeroReturnError:
                pass
            except ssl.SSLEOFError:
                self.ended = True


class StreamModel(LoopMachine):
    """One connection of one server: what has been sent and received, what waits, and whether it may end so."""

    kind: str

    def __init__(self) -> None:
        super().__init__()
        self.loop.run_until_complete(asyncio.sleep(0))  # makes whatever it makes for itself
        self.open_before = descriptors()
        self.folder = tempfile.TemporaryDirectory()
        self.bytes = itertools.cycle(range(1, 251))  # all different for a while, and no delimiter among them
        self.sent = b""  # by the peer
        self.got = b""  # by the stream's user
        self.answered = b""  # by the stream
        self.sending: tuple[asyncio.Task[Any], bytes, int] | None = None
        self.receiving: tuple[asyncio.Task[Any], str, int] | None = None
        self.cancelled: set[asyncio.Task[Any]] = set()
        self.peer_half_closed = self.peer_gone = self.eof_sent = self.closed = self.torn = self.saw_end = False
        self.expirations = self.steps = 0
        self.owed: int | None = None
        self.closing: asyncio.Task[Any] | None = None
        self.run(self._start())

    async def _start(self) -> None:
        streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.released = asyncio.Event()

        async def hold(stream: Stream) -> None:
            streams.put_nowait(stream)
            await self.released.wait()

        options: dict[str, Any] = {"drain_timeout": PATIENCE}
        if self.kind == "unix":
            options["path"] = Path(self.folder.name) / "s"
        else:
            options |= {"host": "127.0.0.1", "port": 0}
        if self.kind == "tls":
            options["ssl"] = server_context()
        self.serving = asyncserver.serve(hold, **options)
        self.server = await self.serving.__aenter__()
        self.peer = Peer(self.server.addresses[0], self.kind)
        while streams.empty() or not self.peer.ready:
            self.peer.pump()
            await asyncio.sleep(0)
        self.stream = streams.get_nowait()

    # -- running on until nothing moves

    def settle(self) -> None:
        """Let everything happen that can; what the model says must happen is waited for."""
        self.run(self._settle())

    async def _settle(self) -> None:
        self.steps += 1
        quiet, end = 0, time.monotonic() + PATIENCE / 2
        while quiet < 4 or self._must_go_on():
            before = self._state()
            self.peer.pump()
            await asyncio.sleep(0)
            self._reap()
            quiet = quiet + 1 if before == self._state() else 0
            assert time.monotonic() < end, f"nothing moves: {self._state()}, {self.receiving}, {self.sending}"

    def _state(self) -> tuple[object, ...]:
        stream, peer = self.stream, self.peer
        pending = self.sending is not None, self.receiving is not None
        return stream.bytes_sent, stream.bytes_received, len(peer.received), len(peer.unsent), peer.ended, pending

    def _must_go_on(self) -> bool:
        if self.peer.unsent or self.peer.ended or self.stream._fd < 0:
            return bool(self.stream._fd < 0 and (self.sending or self.receiving))
        if self.sending is not None and self.peer.reading:
            return True
        if self.receiving is None:
            return False
        _, kind, nbytes = self.receiving
        ahead = self.sent[len(self.got) :]
        if self.peer_half_closed:
            return True
        enough = {"receive": 1, "exactly": nbytes, "until": nbytes}[kind]
        return len(ahead) >= enough or (kind == "until" and b"\0" in ahead[:nbytes])

    # -- what has ended, and whether it may end so

    def _reap(self) -> None:
        if self.sending is not None and self.sending[0].done():
            (task, data, before), self.sending = self.sending, None
            self._judge_send(task, data, self.stream.bytes_sent - before)
        if self.receiving is not None and self.receiving[0].done():
            (task, kind, nbytes), self.receiving = self.receiving, None
            self._judge_receive(task, kind, nbytes)

    def _judge_send(self, task: asyncio.Task[Any], data: bytes, count: int) -> None:
        self.answered += data[:count]
        exc = asyncio.CancelledError() if task.cancelled() else task.exception()
        if exc is None:
            assert count == len(data)
            assert not self.closed
            return
        self._judge_error(exc, task)
        assert not isinstance(exc, anyio.EndOfStream | anyio.IncompleteRead | anyio.DelimiterNotFound)
        if self.kind == "tls" and isinstance(exc, asyncio.CancelledError | asyncserver.IdleTimeout):
            self.torn = True  # perhaps

    def _judge_receive(self, task: asyncio.Task[Any], kind: str, nbytes: int) -> None:
        exc = asyncio.CancelledError() if task.cancelled() else task.exception()
        if exc is not None:
            self._judge_error(exc, task)
            ahead = self.sent[len(self.got) :]
            if isinstance(exc, anyio.DelimiterNotFound):
                assert b"\0" not in ahead[:nbytes]
                assert len(ahead) >= nbytes
            elif isinstance(exc, anyio.EndOfStream | anyio.IncompleteRead):
                assert (kind == "receive") == isinstance(exc, anyio.EndOfStream)
                self._judge_end(kind, nbytes, ahead)
            return
        assert not self.closed or kind != "receive"
        data: bytes = task.result() + (b"\0" if kind == "until" else b"")
        assert data or (kind == "exactly" and nbytes == 0)
        assert len(data) <= nbytes
        assert kind != "exactly" or len(data) == nbytes
        assert kind != "until" or data.index(b"\0") == len(data) - 1
        self.got += data
        assert self.sent.startswith(self.got), "not the bytes that the peer sent, or not in order"
        assert not self.saw_end or not data, "bytes after the end"

    def _judge_end(self, kind: str, nbytes: int, ahead: bytes) -> None:
        if self.owed is not None and not self.peer_half_closed:
            assert len(self.got) >= self.owed, "the drain ended before what had come was answered"
            return
        assert self.peer_half_closed, "an end that the peer has not sent"
        if not self.peer_gone:
            assert kind != "receive" or not ahead, "bytes lost before the end"
            assert kind != "exactly" or len(ahead) < nbytes
            assert kind != "until" or b"\0" not in ahead
        self.saw_end = kind == "receive"

    def _judge_error(self, exc: BaseException, task: asyncio.Task[Any]) -> None:
        """Which errors may come at all."""
        if isinstance(exc, asyncio.CancelledError):
            assert task in self.cancelled
        elif isinstance(exc, asyncserver.IdleTimeout):
            assert self.expirations > 0
            self.expirations -= 1
        elif isinstance(exc, anyio.BrokenResourceError):
            assert self.peer_gone or self.torn, f"nothing has broken: {exc!r}"
        elif isinstance(exc, anyio.ClosedResourceError):
            assert self.closed or self.eof_sent
        else:
            assert isinstance(exc, _ENDINGS), f"no error that is documented: {exc!r}"

    def teardown(self) -> None:
        self.released.set()
        self.peer.reading = True
        for pending in (self.sending, self.receiving):
            if pending is not None:
                self.cancelled.add(pending[0])
                pending[0].cancel()
        self.settle()
        self.peer.close()
        self.run(self.server.close())
        if self.closing is not None:
            self.run(asyncio.wait([self.closing]))
        self.run(self.serving.__aexit__(None, None, None))
        assert is_balanced(self.server)
        assert self.server.stats().accepted == self.server.stats().completed == 1
        self.folder.cleanup()
        left = asyncio.all_tasks(self.loop)
        opened = descriptors() - self.open_before
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        assert not left
        assert not opened
