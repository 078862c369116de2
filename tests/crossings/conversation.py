"""Conversation: what the servers of the table speak, a line at a time, and the same in each style of handler."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
import socketserver
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import asyncserver
import compat
from asyncserver import Stream

#: More than what the kernel keeps of a connection, several times over; and what is shown of it, see `brief`.
BIG = b"x" * (1 << 21) + b"\n"
BIG_ONE = b"<2097152>\n"

#: What the kernel takes at once, of which the peer's cannot hold all.
MUCH = b"x" * 150_000 + b"\n"


def brief(data: bytes) -> bytes:
    """Show of a long run of x, as in BIG, how many there are."""
    return re.sub(rb"x{100,}", lambda run: b"<%d>" % len(run[0]), data)


class Do(enum.Enum):
    """What a handler does between two writes."""

    WAIT = "until the gate is open"
    END = "come to its end"
    END_MESSAGE = "say that there is no answer"
    RAISE = "fail"
    CLOSE = "close the server that it belongs to"


Step: TypeAlias = "bytes | Do"


class Gate:
    """What handlers wait for, as tasks or as threads, until the test opens it."""

    def __init__(self) -> None:
        self._tasks, self._threads = asyncio.Event(), threading.Event()
        self.waiting = 0

    def open(self) -> None:
        self._tasks.set()
        self._threads.set()

    async def passed(self) -> None:
        self.waiting += 1
        await self._tasks.wait()

    def passed_by_thread(self) -> None:
        self.waiting += 1
        self._threads.wait()


class Conversation:
    """The handlers of one server, and what the test knows about them."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.server: asyncserver.Server | None = None
        self.closing: asyncio.Task[Any] | None = None
        self.reports: list[asyncserver.DrainReport] = []
        self.begun = 0  # handlers
        self.ending = 0  # of these, those that have nothing left to do but to end

    @staticmethod
    def steps(line: bytes) -> list[Step]:
        """What a line is answered with; only the first of its words counts."""
        answer = line.upper() + b"\n"
        table: dict[bytes, list[Step]] = {
            b"say": [answer],
            b"hold": [Do.WAIT, answer],
            b"parts": [b"PARTS ", Do.WAIT, b"WHOLE\n"],
            b"big": [BIG],
            b"bye": [answer, Do.END],
            b"flood": [BIG, Do.END],
            b"much": [MUCH],
            b"all": [MUCH, Do.END],
            b"note": [Do.END_MESSAGE],
            b"raise": [Do.RAISE],
            b"close": [Do.CLOSE, answer, Do.END],
        }
        return table[line.split()[0]]

    def handler(self, style: str) -> Any:
        make: dict[str, Callable[[], Any]] = {
            "stream": lambda: self.serve_stream,
            "protocol": lambda: asyncserver.from_protocol(lambda: Lines(self)),
            "buffered": lambda: asyncserver.from_protocol(lambda: BufferedLines(self)),
            "callback": lambda: asyncserver.from_callback(self.serve_callback),
            "hosted": lambda: compat.hosted(type("Handler", (HostedLines,), {"conversation": self})),
        }
        return make[style]()

    async def do(self, step: Do) -> None:
        if step is Do.WAIT:
            await self.gate.passed()
        elif step is Do.RAISE:
            raise ValueError("the handler's own mistake")
        elif step is Do.CLOSE:
            assert self.server is not None
            self.reports.append(await self.server.close())

    async def serve_stream(self, stream: Stream) -> None:
        self.begun += 1
        while True:
            for step in self.steps(await stream.receive_until(b"\n", 1000)):
                if isinstance(step, bytes):
                    await stream.send(step)
                elif step is Do.END_MESSAGE:
                    stream.end_message()
                elif step is Do.END:
                    self.ending += 1
                    return
                else:
                    await self.do(step)

    async def serve_callback(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.begun += 1
        with contextlib.closing(writer):
            while (line := await reader.readline())[-1:] == b"\n":
                for step in self.steps(line[:-1]):
                    if isinstance(step, bytes):
                        writer.write(step)
                        await writer.drain()
                    elif step is Do.END:
                        self.ending += 1
                        return
                    else:
                        await self.do(step)

    def begin_to_close(self) -> None:
        """Close without waiting for it: a protocol's callbacks cannot, and its tasks must not."""
        assert self.server is not None
        self.closing = asyncio.get_running_loop().create_task(self.server.close())


class Lines(asyncio.Protocol):
    """Answers at once what can be answered at once; while it waits, it does not read."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.rest = b""
        self.steps: deque[Step] = deque()
        self.waiting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.conversation.begun += 1

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.steps.extend(self.conversation.steps(line))
        if self.waiting is None:
            self.go_on()

    def go_on(self) -> None:
        while self.steps and not self.transport.is_closing():
            step = self.steps.popleft()
            if isinstance(step, bytes):
                self.transport.write(step)
            elif step is Do.WAIT:
                self.transport.pause_reading()
                self.waiting = asyncio.get_running_loop().create_task(self.conversation.gate.passed())
                self.waiting.add_done_callback(self.waited)
                return
            elif step is Do.RAISE:
                raise ValueError("the protocol's own mistake")
            elif step is Do.CLOSE:
                self.conversation.begin_to_close()
            else:
                self.conversation.ending += 1
                self.transport.close()

    def waited(self, task: asyncio.Task[None]) -> None:
        self.waiting = None
        if not task.cancelled():
            self.go_on()
            self.read_on()

    def read_on(self) -> None:
        if self.waiting is None and not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiting is not None:
            self.waiting.cancel()


class BufferedLines(Lines, asyncio.BufferedProtocol):
    """The same with a buffer of its own."""

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        self.buffer = bytearray(1000)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self.buffer[:nbytes]))


class HostedLines(socketserver.StreamRequestHandler):
    """The same in a thread."""

    conversation: Conversation

    def handle(self) -> None:
        self.conversation.begun += 1
        for line in self.rfile:
            if not line.endswith(b"\n"):
                return
            for step in self.conversation.steps(line[:-1]):
                if isinstance(step, bytes):
                    self.wfile.write(step)
                elif step is Do.WAIT:
                    self.conversation.gate.passed_by_thread()
                elif step is Do.RAISE:
                    raise ValueError("the handler's own mistake")
                elif step is Do.CLOSE:
                    self.server.shutdown()
                else:
                    self.conversation.ending += 1
                    return
