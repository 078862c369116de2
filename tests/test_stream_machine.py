"""A stream against a model of the bytes: operations of both ends in any order, over every transport and both loops.

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
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import asyncserver
from tests.serverkit import KINDS, LOOPS, PATIENCE, client_context, is_balanced, server_context

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from asyncserver import Stream

# Steps before anything ends: most of what there is to see comes before.
_GOOD_STEPS = 8

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


class StreamMachine(RuleBasedStateMachine):
    """One connection of one server."""

    kind: str
    loop_name: str

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore] # typed in some versions of hypothesis
        factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
        if self.loop_name == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop
        self.loop = factory()
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

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(PATIENCE):
                return await coroutine

        return self.loop.run_until_complete(bounded())

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

    # -- what the stream's user does

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.loop.create_task(coroutine)

    @precondition(lambda self: self.sending is None)
    @rule(size=st.sampled_from([0, 1, 7, 4096, 20_000, 3 << 20]))
    def send(self, size: int) -> None:
        data = bytes(itertools.islice(self.bytes, 250)) * (size // 250 + 1)
        data = data[:size]
        self.sending = self._spawn(self.stream.send(data)), data, self.stream.bytes_sent
        self.settle()

    @precondition(lambda self: self.receiving is None)
    @rule(kind=st.sampled_from(["receive", "exactly", "until"]), nbytes=st.sampled_from([1, 2, 5, 100, 5000, 65536]))
    def receive(self, kind: str, nbytes: int) -> None:
        operation: Any = {
            "receive": lambda: self.stream.receive(nbytes),
            "exactly": lambda: self.stream.receive_exactly(nbytes),
            "until": lambda: self.stream.receive_until(b"\0", nbytes),
        }[kind]
        self.receiving = self._spawn(operation()), kind, nbytes
        self.settle()

    @precondition(lambda self: self.receiving is not None)
    @rule()
    def receive_at_once_with_another(self) -> None:
        with pytest.raises(anyio.BusyResourceError):
            self.run(self.stream.receive())

    @precondition(lambda self: self.sending is not None)
    @rule()
    def send_at_once_with_another(self) -> None:
        with pytest.raises(anyio.BusyResourceError):
            self.run(self.stream.send(b"x"))

    @precondition(lambda self: self.receiving is not None)
    @rule(data=st.sampled_from([b"", b"x", b"xy\0z"]))
    def cancel_receive(self, data: bytes) -> None:
        """Perhaps just as bytes arrive."""
        assert self.receiving is not None
        if data and not self.peer_half_closed and not self.peer_gone:
            self.sent += data
            self.peer.send(data)
        self._cancel(self.receiving[0])

    @precondition(lambda self: self.sending is not None)
    @rule()
    def cancel_send(self) -> None:
        assert self.sending is not None
        self._cancel(self.sending[0])

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        self.cancelled.add(task)
        task.cancel()
        self.settle()
        assert task.done()

    @precondition(lambda self: self.steps > _GOOD_STEPS)
    @rule()
    def send_eof(self) -> None:
        task = self._spawn(self.stream.send_eof())
        self.run(asyncio.wait([task]))
        exc = task.exception()
        if self.sending is not None:
            assert isinstance(exc, anyio.BusyResourceError)
        elif exc is None:
            self.eof_sent = True
        else:
            self._judge_error(exc, task)
        self.settle()

    @precondition(lambda self: not self.closed and (self.sending or self.receiving))
    @rule()
    def expire(self) -> None:
        """As the server does after `idle_timeout`."""
        self.expirations += 2  # once in each direction
        self.stream._expire()
        self.settle()

    @precondition(lambda self: not self.closed and self.steps > _GOOD_STEPS)
    @rule(way=st.sampled_from(["aclose", "abort", "aclose, cancelled"]))
    def close(self, way: str) -> None:
        self.closed = True
        if way == "abort":
            self.peer_gone = True  # it may lose what was sent
            self.stream.abort()
        else:
            task = self._spawn(self.stream.aclose())
            if way == "aclose, cancelled":
                self.run(asyncio.sleep(0))
                self.peer_gone = task.cancel() or self.peer_gone
            self.run(self._pump_until(task))
        self.settle()
        assert self.stream._fd == -1
        assert self.sending is None
        assert self.receiving is None

    async def _pump_until(self, task: asyncio.Task[Any]) -> None:
        while not task.done():
            self.peer.pump()
            await asyncio.sleep(0)
        if not task.cancelled():
            task.result()

    # -- what the peer does

    @precondition(lambda self: not (self.peer_half_closed or self.peer_gone or self.peer.ended))
    @rule(data=st.sampled_from([b"\0", b"a", b"bc\0", b"d" * 300, b"\0".join([b"line"] * 40), b"e" * 70_000]))
    def peer_sends(self, data: bytes) -> None:
        self.sent += data
        self.peer.send(data)
        self.settle()

    @rule()
    def peer_pauses_or_resumes(self) -> None:
        self.peer.reading = not self.peer.reading
        self.settle()

    @precondition(lambda self: self.steps > _GOOD_STEPS)
    @precondition(lambda self: not (self.peer_half_closed or self.peer_gone or self.peer.ended))
    @rule()
    def peer_half_closes(self) -> None:
        self.peer_half_closed = True
        self.peer.half_close()
        self.settle()

    @precondition(lambda self: not self.peer_gone and self.steps > _GOOD_STEPS)
    @rule(way=st.sampled_from(["reset", "close"]))
    def peer_leaves(self, way: str) -> None:
        """Without reading on; under TLS without close_notify."""
        self.peer_gone = True
        if self.kind == "unix" or (way == "close" and self.kind == "tcp"):  # Unix sockets know no reset
            self.peer_half_closed = True
        getattr(self.peer, way)()
        self.settle()

    # -- what the server does

    @precondition(lambda self: self.closing is None and self.steps > _GOOD_STEPS)
    @rule()
    def drain(self) -> None:
        self.owed = None if self.peer.unsent else len(self.sent)
        self.closing = self._spawn(self.server.close())
        self.owed = self.owed or 0
        self.settle()

    # -- always

    @invariant()
    def what_the_peer_has_is_what_was_sent(self) -> None:
        in_flight = b"" if self.sending is None else self.sending[1][: self.stream.bytes_sent - self.sending[2]]
        whole = self.answered + in_flight
        assert whole.startswith(self.peer.received)
        if self.peer.reading and not self.peer_gone and not self.torn and self.sending is None:
            self.run(self._until_received(len(whole)))

    async def _until_received(self, nbytes: int) -> None:
        while len(self.peer.received) < nbytes and not self.peer.ended:
            self.peer.pump()
            await asyncio.sleep(0)
        assert len(self.peer.received) == nbytes, "sent, and lost"

    @invariant()
    def bytes_are_counted(self) -> None:
        assert self.stream.bytes_received == len(self.got) + len(self.stream._buffer or b"")

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


@pytest.fixture
def short_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most peers here go on without end when the stream is closed; none is waited for long."""
    monkeypatch.setattr("asyncserver.stream._CLOSE_TIMEOUT", 0.02)


def _run(kind: str, loop: str, examples: int, steps: int, *, derandomize: bool) -> None:
    machine = type("Machine", (StreamMachine,), {"kind": kind, "loop_name": loop})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=derandomize,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("short_close")
@pytest.mark.timeout(300)
def test_stream_agrees_with_the_model(kind: str, loop: str) -> None:
    """Whatever both ends do, the bytes come in order and once, and only the documented errors come."""
    _run(kind, loop, 12, 25, derandomize=True)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("short_close")
def test_stream_agrees_with_the_model_for_long(kind: str, loop: str) -> None:
    """The same, at random, for minutes."""
    _run(kind, loop, int(os.environ.get("ASYNCSERVER_SOAK_EXAMPLES", "2000")), 60, derandomize=False)
