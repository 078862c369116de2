"""One worker: serves on the sockets of its slot, ends as the supervisor says, and reports to it. See workers.py.

What the two say to each other, a message each, over a pair of sockets:

    worker -> supervisor   ready; leave (I was told to end, replace me); readings, after "stats" if asked for
    supervisor -> worker   leave (a successor has your queue); stop (nobody has: empty it); force; stats

End of file from the supervisor means that it is gone: the worker stops as if it had been told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import zlib
from typing import TYPE_CHECKING, Any, NoReturn

from .._logger import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..net.binding import BoundSocket
    from ..servers.server import Server
    from ..serving import Serving

READY, LEAVE, STOP, FORCE, STATS = b"ready", b"leave", b"stop", b"force", b"stats"
LONGEST_MESSAGE = 1 << 17  # a socket pair holds about as much
MOST_SERVERS = 300  # whose readings, JSON compressed by zlib, fit in, also when each number has twelve digits

# What the supervisor handles. The terminal sends some of them to workers too, where they mean nothing.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

# Seconds between a worker's reports; the counters of the last such time are lost when it is killed.
_REPORT_EVERY = 1.0


def work(
    load: Callable[[], Sequence[Serving]],
    sockets: list[list[BoundSocket]],
    channel: socket.socket,
    prepare: Callable[[], object],
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    *,
    reload_tls: bool,
    measure: bool,
) -> NoReturn:
    """Serve in a process just forked, with SIGNALS blocked, and end it: what the program has left is its parent's.

    Args:
        load: returns the servings.
        sockets: for each of them those to serve on.
        channel: to the supervisor.
        prepare: called first, once signals have handlers of this process; unblocks them.
        loop_factory: makes the event loop.
        reload_tls: whether to read certificates again.
        measure: whether to measure how long handlers take.
    """
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, pass_over)
        signal.signal(signal.SIGTERM, lambda *_: _say(channel, LEAVE))
        prepare()
        servings = load()
        for serving, bound in zip(servings, sockets, strict=True):
            serving.take(bound)
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_serve(servings, sockets, channel, reload_tls, measure))
        status = 0
    except SystemExit as exc:  # argparse's way to say no, and it has said why
        status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:
        logger.critical("worker %d cannot go on", os.getpid(), exc_info=True)
    finally:
        _exit(status)


async def _serve(
    servings: Sequence[Serving],
    sockets: list[list[BoundSocket]],
    channel: socket.socket,
    reload_tls: bool,
    measure: bool,
) -> None:
    """Serve as the supervisor says."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving) for serving in servings]
        if measure:
            for server in servers:
                server.measure_durations()
        if reload_tls:  # nothing has been accepted yet: the loop has not run since
            for server in servers:
                if server.can_reload_tls:
                    server.reload_tls()
        orders = _Orders(servers, [bound for group in sockets for bound in group], channel)
        _say(channel, READY)
        await asyncio.wait([asyncio.ensure_future(server.wait_closed()) for server in servers])
    orders.report()


class _Orders:
    """In a worker: does what the supervisor says, and reports to it."""

    def __init__(self, servers: list[Server], bound: list[BoundSocket], channel: socket.socket) -> None:
        self._servers = servers
        self._bound = bound
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._closing: list[asyncio.Task[object]] = []
        self._loop.add_reader(channel.fileno(), self._on_readable)
        self._report_again()

    def report(self, beginning: bytes = b"") -> None:
        """Send the readings."""
        readings = json.dumps([server.reading() for server in self._servers]).encode()
        _say(self._channel, beginning + zlib.compress(readings, zlib.Z_BEST_SPEED))

    def _report_again(self) -> None:
        self.report()
        self._loop.call_later(_REPORT_EVERY, self._report_again)

    def _on_readable(self) -> None:
        try:
            message = self._channel.recv(LONGEST_MESSAGE)
        except ConnectionResetError:  # it left without reading what we had sent
            message = b""
        if message == STATS:
            self.report(STATS)
        elif message == FORCE:
            self._close(0.0)
        elif message == LEAVE:
            self._close(None)
        else:
            if not message:
                self._loop.remove_reader(self._channel.fileno())
                logger.error("worker %d: the supervisor is gone; no new work, waiting for what runs", os.getpid())
            for bound in self._bound:
                bound.take_back()
            self._close(None)

    def _close(self, timeout: float | None) -> None:
        self._closing += [self._loop.create_task(server.close(timeout)) for server in self._servers]


def _say(channel: socket.socket, message: bytes) -> None:
    """Send to the supervisor, unless it is gone, which is noticed elsewhere, or stopped so long that nothing fits."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
        channel.send(message, socket.MSG_DONTWAIT)


def pass_over(number: int, frame: Any) -> None:
    """Do nothing, and unlike SIG_IGN let programs that are started from here not inherit it."""


def _exit(status: int) -> NoReturn:
    """Leave a forked process without what its parent has left to do."""
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
