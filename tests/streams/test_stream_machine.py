"""A stream against a model of the bytes: operations of both ends in any order, over every transport and both loops."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Coroutine
from typing import Any

import anyio
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from tests.kit.machine import check
from tests.kit.programs import LOOPS
from tests.kit.stream_model import StreamModel
from tests.kit.transports import KINDS

# Steps before anything ends: most of what there is to see comes before.
_GOOD_STEPS = 8


class StreamMachine(StreamModel):
    """What both ends and the server may do."""

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


@pytest.fixture
def short_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most peers here go on without end when the stream is closed; none is waited for long."""
    monkeypatch.setattr("asyncserver.connections.lingering._PATIENCE", 0.02)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("short_close")
@pytest.mark.timeout(300)
def test_stream_agrees_with_the_model(kind: str, loop: str) -> None:
    """Whatever both ends do, the bytes come in order and once, and only the documented errors come."""
    check(StreamMachine, 12, 25, kind=kind, loop_name=loop)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("short_close")
def test_stream_agrees_with_the_model_for_long(kind: str, loop: str) -> None:
    """The same, at random, for minutes."""
    examples = int(os.environ.get("ASYNCSERVER_SOAK_EXAMPLES", "2000"))
    check(StreamMachine, examples, 60, derandomize=False, kind=kind, loop_name=loop)
