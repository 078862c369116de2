"""A server's life against a model: connect, ask, leave, pause, resume, reload, close, in any order, on both loops."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

import asyncserver
from tests.kit.checks import is_balanced
from tests.kit.handlers import upper_lines
from tests.kit.machine import LoopMachine, check
from tests.kit.programs import LOOPS
from tests.kit.sweep import Cut, nothing_left
from tests.kit.waiting import PATIENCE


class ServerMachine(LoopMachine):
    """One server with at most three connections; its clients are counted by what they have to expect."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[socket.socket] = []
        self.paused = False
        self.closing: asyncio.Task[Any] | None = None
        self.serving = asyncserver.serve(upper_lines, "127.0.0.1", 0, max_connections=3, drain_timeout=PATIENCE)
        self.run(self._start())

    async def _start(self) -> None:
        self.server = await self.serving.__aenter__()

    async def _until(self, reached: Callable[[], object]) -> None:
        while not reached():
            await asyncio.sleep(0)

    async def _answer(self, sock: socket.socket, question: bytes) -> bytes:
        await self.loop.sock_sendall(sock, question)
        return await self.loop.sock_recv(sock, 100)

    @precondition(lambda self: self.closing is None)
    @rule()
    def connect(self) -> None:
        sock = socket.create_connection(self.server.addresses[0])
        sock.setblocking(False)
        self.clients.append(sock)
        if not self.paused and len(self.clients) <= 3:
            self.run(self._until(lambda: self.server.stats().active == len(self.clients)))

    @precondition(lambda self: self.clients and not self.paused and self.closing is None)
    @rule(number=st.integers(0, 2))
    def ask(self, number: int) -> None:
        """Those that have a place are answered."""
        sock = self.clients[number % min(3, len(self.clients))]
        assert self.run(self._answer(sock, b"line\n")) == b"LINE\n"

    @precondition(lambda self: self.clients and not self.paused)
    @rule(number=st.integers(0, 2))
    def leave(self, number: int) -> None:
        """A place becomes free, and whoever waited longest gets it."""
        self.clients.pop(number % min(3, len(self.clients))).close()
        left = 0 if self.closing else min(3, len(self.clients))
        if self.closing is None:
            self.run(self._until(lambda: self.server.stats().active == left and self.server._busy() == bool(left)))

    @precondition(lambda self: self.closing is None)
    @rule()
    def pause(self) -> None:
        self.paused = True
        self.server.pause()

    @precondition(lambda self: self.closing is None)
    @rule()
    def resume(self) -> None:
        self.paused = False
        self.server.resume()
        self.run(self._until(lambda: self.server.stats().active == min(3, len(self.clients))))

    @rule()
    def reload(self) -> None:
        with pytest.raises(RuntimeError):
            self.server.reload_tls()

    @precondition(lambda self: len(self.clients) > 1)
    @rule(cancel=st.booleans())
    def close(self, cancel: bool) -> None:
        if self.closing is None:
            self.closing = self.loop.create_task(self.server.close())
        else:
            closing = self.loop.create_task(self.server.close())
            self.run(asyncio.sleep(0))
            if cancel:
                closing.cancel()
            self.run(asyncio.wait([closing]))
        self.run(asyncio.sleep(0))

    @invariant()
    def accounts_balance(self) -> None:
        assert is_balanced(self.server)
        assert self.server.stats().active <= 3
        assert len(self.server.connections) == self.server.stats().active

    def teardown(self) -> None:
        self.run(self.serving.__aexit__(None, None, None))
        assert is_balanced(self.server)
        now = self.server.stats()
        assert (now.active, now.failed, now.refused) == (0, 0, 0)
        assert now.accepted == now.completed + now.cancelled
        for sock in self.clients:
            sock.settimeout(PATIENCE)
            assert sock.recv(1) == b"", "ended, not reset"
            sock.close()
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("short_silence")
@pytest.mark.parametrize("loop", LOOPS)
def test_server_agrees_with_the_model(loop: str) -> None:
    """Whatever happens in whatever order: who has a place is answered, all is counted, and nothing is left."""
    check(ServerMachine, 1, 25, loop_name=loop)  # makes what is made once and for all
    with nothing_left(Cut(0, "never")):
        check(ServerMachine, 20, 25, loop_name=loop)
