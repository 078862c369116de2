"""A server in a process of its own for the tests of faults: several servers on one loop, and a report when asked.

    python -m tests.kit.faults_server LOOP '{"tcp": {OPTIONS}, "tls": {}, "proxy": {}, "unix": {}, "udp": {}}'

It prints a line of JSON with the addresses, then one for each line that it reads: `report` tells what it has counted
and what it uses, `limit N` bounds its descriptors, `garbage` ends the search for cycles, and the end of the input
closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import importlib
import json
import logging
import os
import resource
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import asyncserver
from asyncserver import Datagram, Server, Serving, Stream

LARGE = 1 << 20  # the answer to b"!large"


class Messages(logging.Handler):
    """Counts what is logged, and keeps the first and the last of it; printing it all would be the load itself."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count: Counter[str] = Counter()
        self.first: list[str] = []
        self.last: deque[str] = deque(maxlen=5)

    def emit(self, record: logging.LogRecord) -> None:
        self.count[record.levelname] += 1
        text = f"{record.name} {record.levelname} {record.getMessage()} {record.exc_info and record.exc_info[1]!r}"
        (self.first if len(self.first) < 5 else self.last).append(text)


async def answer(stream: Stream) -> None:
    """Send back in capitals whatever comes; some words are orders."""
    async for data in stream:
        if data == b"!raise":
            raise ValueError("as ordered")
        if data == b"!cancel":
            asyncio.current_task().cancel()  # type: ignore[union-attr]
        if data == b"!timeout":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await stream.receive()
        await stream.send(bytes(LARGE) if data == b"!large" else data.upper())


async def answer_datagram(datagram: Datagram) -> bytes | None:
    """Send back in capitals; some words are orders."""
    if datagram.data == b"!raise":
        raise ValueError("as ordered")
    if datagram.data == b"!wait":
        await asyncio.sleep(0.001)
    return None if datagram.data == b"!silent" else datagram.data.upper()


def serving(name: str, options: dict[str, Any]) -> Serving:
    """One server, by the name of its kind."""
    host = options.pop("host", "127.0.0.1")
    if name == "udp":
        return asyncserver.serve_datagrams(answer_datagram, host, 0, **options)
    if name == "unix":
        return asyncserver.serve(answer, **options)
    if name in {"tls", "mutual"}:
        files = {key: options.pop(key) for key in ("certfile", "client_ca") if key in options}
        options["ssl"] = asyncserver.tls_context(**files)
    return asyncserver.serve(answer, host, 0, proxy_protocol=name == "proxy", **options)


def empty_caches() -> None:
    """Let the interpreter free what it keeps for its own sake, which is more the busier the machine has been.

    These are lists of free objects, as long as the most that were in use at a time; and equal names in the cache of
    methods, hundreds, since `asyncio.Task` looks for `result` in what has woken it by a new string each time
    (findings/cpython-getattrstring-fills-the-method-cache.sh).
    """
    clear: Callable[[], object] = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache  # until 3.12
    clear()
    if not gc.isenabled():
        gc.freeze()  # a collection empties the lists; cycles have to stay, so it may not see any
    gc.collect()


class Reporter:
    """Does what the lines on standard input say."""

    def __init__(self, servers: dict[str, Server], messages: Messages) -> None:
        self.servers = servers
        self.messages = messages
        self.ended = asyncio.Event()
        self.memory = os.open("/proc/self/statm", os.O_RDONLY)  # now: there may be no descriptor for it later
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(0, self.read)

    def read(self) -> None:
        words = os.read(0, 1000).decode().split()
        if not words:
            self.loop.remove_reader(0)
            self.ended.set()
        elif words[0] == "garbage":
            gc.disable()
            print(json.dumps(words), flush=True)
        elif words[0] == "limit":
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(words[1]), hard))
            print(json.dumps(words), flush=True)
        else:
            print(json.dumps(self.report()), flush=True)

    def report(self) -> dict[str, Any]:
        """What the process uses, and what each of its servers has counted."""
        empty_caches()
        resident = int(os.pread(self.memory, 100, 0).split()[1]) * resource.getpagesize()
        try:
            descriptors = len(os.listdir("/proc/self/fd")) - 1
        except OSError:  # none is left to look with
            descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        counters = {name: dataclasses.asdict(server.stats()) for name, server in self.servers.items()}
        return counters | {
            "accelerated": asyncserver.accelerated,
            "memory": resident,
            "blocks": sys.getallocatedblocks(),
            "cpu": time.process_time(),
            "descriptors": descriptors,
            "tasks": len(asyncio.all_tasks(self.loop)),
            "threads": threading.active_count(),
            "log": dict(self.messages.count),
            "messages": [*self.messages.first, *self.messages.last],
        }


async def main(kinds: dict[str, dict[str, Any]], messages: Messages) -> None:
    """Serve until the input ends."""
    async with contextlib.AsyncExitStack() as stack:
        servers = {name: await stack.enter_async_context(serving(name, options)) for name, options in kinds.items()}
        reporter = Reporter(servers, messages)
        print(json.dumps({name: server.addresses[0] for name, server in servers.items()}), flush=True)
        await reporter.ended.wait()


if __name__ == "__main__":
    collected = Messages()
    for logger in ("asyncserver", "asyncio"):
        logging.getLogger(logger).addHandler(collected)
        logging.getLogger(logger).propagate = False
    loop_factory = importlib.import_module(sys.argv[1]).new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main(json.loads(sys.argv[2]), collected))
