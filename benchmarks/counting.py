"""Counts of one case of the guard: `python -m benchmarks.counting CASE` prints them as JSON.

A server in this process serves a client in another one, which takes a step only when every thread of ours sleeps (see
counting_client.py). So each operation takes the same path through the code, and what the interpreter does for it
(bytecodes executed and functions called, in our packages and in what they call, but not in this file) is the same
number in every run, on every machine with the same Python. For idle connections the count is of memory blocks and
bytes that Python holds for each.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import itertools
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from typing import Any

EARLY, BEGIN, COUNT = 10, 30, 50  # counting is switched on early, since running frames notice it only on their way
OPERATIONS = BEGIN + COUNT


class Meter:
    """Counts what the interpreter does between two operations; handlers call `tick` once for each."""

    def __init__(self) -> None:
        self._ticks = 0
        self._bytecodes = itertools.count()
        self._calls = itertools.count()
        self._marks: list[tuple[int, int]] = []
        self.done = threading.Event()

    def tick(self) -> None:
        """One more operation."""
        self._ticks += 1
        if self._ticks == EARLY:
            self._switch_on()
        elif self._ticks in {BEGIN, OPERATIONS}:
            self._marks.append((next(self._bytecodes), next(self._calls)))
        if self._ticks == OPERATIONS:
            sys.monitoring.set_events(sys.monitoring.PROFILER_ID, 0)
            self.done.set()

    def _switch_on(self) -> None:
        monitoring = sys.monitoring
        events = monitoring.events
        monitoring.use_tool_id(monitoring.PROFILER_ID, "guard")
        for event, counter in ((events.INSTRUCTION, self._bytecodes), (events.CALL, self._calls)):
            monitoring.register_callback(monitoring.PROFILER_ID, event, _counting(counter))
        monitoring.set_events(monitoring.PROFILER_ID, events.INSTRUCTION | events.CALL)

    def per_operation(self) -> dict[str, float]:
        """The counts of one operation; reading a counter advances it by one, hence the correction."""
        (bytecodes, calls), (more_bytecodes, more_calls) = self._marks
        return {
            "bytecodes": (more_bytecodes - bytecodes - 1) / COUNT,
            "calls": (more_calls - calls - 1) / COUNT,
        }


def _counting(counter: itertools.count[int]) -> Any:
    def seen(code: Any, *_: object) -> None:
        if code.co_filename != __file__:
            next(counter)

    return seen


def client(kind: str, address: Any) -> subprocess.Popen[bytes]:
    """Start the client, which does the operations and then ends."""
    host, port = address[:2]
    words = [kind, f"{host}:{port}", str(os.getpid()), str(OPERATIONS)]
    return subprocess.Popen([sys.executable, "-m", "benchmarks.counting_client", *words])


def runner(loop: str) -> asyncio.Runner:
    """A runner on the loop of that name."""
    factory: Any = importlib.import_module("uvloop").new_event_loop if loop == "uvloop" else None
    return asyncio.Runner(loop_factory=factory)


def count_asyncserver(kind: str, loop: str) -> dict[str, float]:
    """Bytecodes and calls of one message, connection or datagram."""
    import asyncserver  # noqa: PLC0415 - not wanted by the cases of compat

    meter = Meter()

    async def messages(stream: asyncserver.Stream) -> None:
        async for data in stream:
            meter.tick()
            await stream.send(data)

    async def connections(stream: asyncserver.Stream) -> None:
        meter.tick()
        async for data in stream:
            await stream.send(data)

    async def datagrams(datagram: asyncserver.Datagram) -> bytes:
        meter.tick()
        return datagram.data

    async def main() -> None:
        if kind == "datagram":
            serving: Any = asyncserver.serve_datagrams(datagrams, "127.0.0.1", 0)
        else:
            handler = {"message": messages, "connection": connections}[kind]
            serving = asyncserver.serve(handler, "127.0.0.1", 0)
        async with serving as server:
            process = client(kind, server.addresses[0])
            await asyncio.to_thread(process.wait)  # its thread sleeps until the end

    with runner(loop) as running:
        running.run(main())
    return meter.per_operation()


def count_compat(kind: str) -> dict[str, float]:
    """The same for a handler class under compat's threading servers."""
    library: Any = importlib.import_module("compat")
    meter = Meter()

    class Messages(library.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(65536):
                if kind == "message":
                    meter.tick()
                self.request.sendall(data)

    class Connections(Messages):
        def handle(self) -> None:
            meter.tick()
            super().handle()

    class Datagrams(library.BaseRequestHandler):
        def handle(self) -> None:
            meter.tick()
            data, sock = self.request
            sock.sendto(data, self.client_address)

    handler = {"message": Messages, "connection": Connections, "datagram": Datagrams}[kind]
    server_class = library.ThreadingUDPServer if kind == "datagram" else library.ThreadingTCPServer
    with server_class(("127.0.0.1", 0), handler) as server:
        process = client(kind, server.server_address)

        def stop() -> None:
            process.wait()
            server.shutdown()

        threading.Thread(target=stop).start()
        server.serve_forever()
    return meter.per_operation()


def count_idle(loop: str) -> dict[str, float]:
    """Memory that Python holds for one idle connection that has echoed one message."""
    import asyncserver  # noqa: PLC0415 - not wanted by the cases of compat

    marks: list[tuple[int, int]] = []
    first, second = 100, 300

    async def echo(stream: asyncserver.Stream) -> None:
        async for data in stream:
            await stream.send(data)

    async def open_one(host: str, port: int) -> Any:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"x")
        await reader.readexactly(1)
        sock = writer.get_extra_info("socket").dup()
        writer.transport.abort()
        return sock

    async def main() -> None:
        kept = []
        async with asyncserver.serve(echo, "127.0.0.1", 0) as server:
            for number in range(1, second + 1):
                kept.append(await open_one(*server.addresses[0][:2]))
                if number in {first, second}:
                    gc.collect()  # our clients leave garbage, and when it is collected is chance
                    marks.append((tracemalloc.get_traced_memory()[0], sys.getallocatedblocks()))
            for sock in kept:
                sock.close()

    tracemalloc.start()
    with runner(loop) as running:
        running.run(main())
    return {name: (marks[1][i] - marks[0][i]) / (second - first) for i, name in enumerate(("bytes", "blocks"))}


def count(case: str) -> dict[str, float]:
    """The counts of a case, whose name is its three words: who, what, on which loop."""
    who, kind, loop = case.split()
    if who == "compat":
        return count_compat(kind)
    return count_idle(loop) if kind == "idle" else count_asyncserver(kind, loop)


if __name__ == "__main__":
    print(json.dumps(count(sys.argv[1])))
