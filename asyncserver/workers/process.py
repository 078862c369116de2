"""A worker process: serves on the sockets of its slot, obeys the supervisor, and reports to it.

Their messages over a socket pair:

    worker -> supervisor   ready     it serves
                           leave     it got SIGTERM: replace it
                           readings  each second; after "stats" if asked for
    supervisor -> worker   leave     drain; a successor has the queue
                           stop      drain; no successor: empty the queue
                           force     cancel the handlers
                           stats     report at once

End of file from the supervisor means that it is gone: the worker stops.
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
from ..leaving.executor import CallExecutor
from ..leaving.exits import Exits
from ..program.lifespan import Life

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..net.binding import BoundSocket
    from ..program.lifespan import Loaded
    from ..servers.server import Server
    from ..serving import Serving

READY, LEAVE, STOP, FORCE, STATS = b"ready", b"leave", b"stop", b"force", b"stats"
LONGEST_MESSAGE = 1 << 17  # a socket pair holds about as much
# Their readings, JSON compressed by zlib, fit into a message, also if all numbers have 12 digits.
MOST_SERVERS = 300
# The exit status of a worker whose lifespan failed as it was left: EX_SOFTWARE of sysexits.h.
NOT_LEFT = 70

# The supervisor handles these. Workers ignore them: the terminal sends some to all processes.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def run_worker(
    load: Callable[[], Loaded],
    sockets: list[list[BoundSocket]],
    channel: socket.socket,
    prepare: Callable[[], object],
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    *,
    reload_tls: bool,
    measure: bool,
    report_every: float,
) -> NoReturn:
    """Serve in a process just forked, with SIGNALS blocked, and exit without its parent's cleanup.

    Args:
        load: returns the servings, and the lifespan.
        sockets: to serve on, for each serving.
        channel: to the supervisor.
        prepare: called when this process handles signals; unblocks them.
        loop_factory: makes the event loop.
        reload_tls: whether to read certificates again.
        measure: whether to measure how long handlers take.
        report_every: seconds between reports; the counters of the last such time are lost
            when it is killed.
    """
    status, life = 1, Life()
    try:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, do_nothing)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: _send(channel, LEAVE))
        prepare()
        servings, life = load()
        life.check()
        for serving, bound in zip(servings, sockets, strict=True):
            serving.take(bound)
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            exits, how = Exits(), {"reload_tls": reload_tls, "measure": measure}
            exits.run(runner, _serve(servings, life, sockets, channel, exits, report_every=report_every, **how))
        status = 0
    except SystemExit as exc:  # argparse's, for instance, after its error message
        status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException as exc:
        if exc is not life.failure:
            logger.critical("worker %d cannot go on", os.getpid(), exc_info=True)
        elif life.entered:
            status = NOT_LEFT
    finally:
        _exit(status)


async def _serve(
    servings: Sequence[Serving],
    life: Life,
    sockets: list[list[BoundSocket]],
    channel: socket.socket,
    exits: Exits,
    *,
    reload_tls: bool,
    measure: bool,
    report_every: float,
) -> None:
    """Serve as the supervisor says."""
    control = _Control(
        [bound for group in sockets for bound in group],
        channel,
        max(serving.drain_timeout for serving in servings),
        life,
        report_every=report_every,
    )
    try:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(life)  # before the servers, so that it is left after them
            life.hold(servings)
            servers = [await stack.enter_async_context(serving) for serving in servings]
            for server in servers:
                server._end_level = logging.DEBUG  # the supervisor adds them up
                if measure:
                    server.measure_durations()
            if reload_tls:  # before anything is accepted: the loop has not run since
                for server in servers:
                    if server.can_reload_tls:
                        server.reload_tls()
            control.obey(servers)
            await life.enter(servers)
            control.start()
            life.begin(servers)
            _send(channel, READY)
            exits.leave = lambda _: _send(channel, LEAVE)
            with control.leaving_when_cancelled():
                await asyncio.wait([asyncio.ensure_future(server.wait_closed()) for server in servers])
        await control.calls.finish(lambda: control.deadline)
    except asyncio.CancelledError:
        if not control.given_up:
            raise
    control.report()


class _Control:
    """In a worker: obeys the supervisor, and reports to it.

    Attributes:
        calls: the loop's default executor.
        deadline: the loop's time until which what runs may go on; 0 before the drain.
        given_up: whether the supervisor has cancelled the start, or the lifespan's end.
    """

    def __init__(
        self, bound: list[BoundSocket], channel: socket.socket, drain_timeout: float, life: Life, *, report_every: float
    ) -> None:
        self.deadline = 0.0
        self.given_up = False
        self._drain_timeout = drain_timeout
        self._life = life
        self._bound = bound
        self._channel = channel
        self._report_every = report_every
        self._loop = asyncio.get_running_loop()
        self.calls = CallExecutor(self._loop)
        self._servers: Sequence[Server] = ()
        self._starting = asyncio.current_task()
        self._closing: list[asyncio.Task[object]] = []

    def obey(self, servers: Sequence[Server]) -> None:
        """Read what the supervisor says from now on; a start that it ends is cancelled."""
        self._servers = servers
        self._loop.add_reader(self._channel.fileno(), self._on_readable)
        self._report_again()

    def start(self) -> None:
        """The start is complete. Raises CancelledError, once the supervisor has ended it."""
        if self.given_up:  # and the lifespan has gone on all the same
            raise asyncio.CancelledError
        self._starting = None

    @contextlib.contextmanager
    def leaving_when_cancelled(self) -> Iterator[None]:
        """If the worker's task is cancelled, most likely by its lifespan, drain; be replaced."""
        try:
            yield
        except asyncio.CancelledError:
            logger.error("worker %d: cancelled; no new work, waiting for what runs", os.getpid())
            _send(self._channel, LEAVE)
            self._close(None)
            raise

    def report(self, beginning: bytes = b"") -> None:
        """Send the readings."""
        readings = json.dumps([server.reading() for server in self._servers]).encode()
        _send(self._channel, beginning + zlib.compress(readings, zlib.Z_BEST_SPEED))

    def _report_again(self) -> None:
        self.report()
        self._loop.call_later(self._report_every, self._report_again)

    def _on_readable(self) -> None:
        try:
            message = self._channel.recv(LONGEST_MESSAGE)
        except ConnectionResetError:  # the supervisor ended with unread messages
            message = b""
        if message == STATS:
            self.report(STATS)
        elif message == FORCE:
            self._close(0.0)
            if self._life.interrupt():
                self.given_up = True
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
        if self._starting is not None:
            self.given_up = True
            self._starting.cancel()
            return
        self.deadline = self._loop.time() + (self._drain_timeout if timeout is None else timeout)
        self.calls.hurry()
        self._closing += [self._loop.create_task(server.close(timeout)) for server in self._servers]


def _send(channel: socket.socket, message: bytes) -> None:
    """Send to the supervisor, unless it is gone, which `_on_readable` sees, or nothing fits in."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
        channel.send(message, socket.MSG_DONTWAIT)


def do_nothing(number: int, frame: Any) -> None:
    """Ignore a signal; unlike SIG_IGN this is not inherited by programs started from here."""


def _exit(status: int) -> NoReturn:
    """End a forked process without its parent's exit handlers."""
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
