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
import itertools
import json
import logging
import os
import signal
import socket
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from .._logger import logger
from ..leaving.executor import CallExecutor
from ..leaving.exits import Exits, exit_now
from ..program.lifespan import Life

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..listening.binding import BoundSocket
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


@dataclass(frozen=True)
class Orders:
    """How a worker serves."""

    sockets: list[list[BoundSocket]]  # for each serving
    channel: socket.socket  # to the supervisor
    reload_tls: bool
    measure: bool  # how long handlers take
    report_every: float  # seconds; what was counted after the last report is lost when it is killed


def run_worker(
    load: Callable[[], Loaded],
    orders: Orders,
    prepare: Callable[[], object],
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> NoReturn:
    """Serve in a process just forked, with SIGNALS blocked, and exit without its parent's cleanup.

    `prepare` is called when this process handles signals, and unblocks them.
    """
    status, life = 1, Life()
    try:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, do_nothing)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: send(orders.channel, LEAVE))
        prepare()
        servings, life = load()
        life.check()
        for serving, bound in zip(servings, orders.sockets, strict=True):
            serving.take(bound)
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            exits = Exits()
            exits.run(runner, _serve(servings, life, orders, exits))
        status = 0
    except SystemExit as exc:  # argparse's, for instance, after its error message
        status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException as exc:
        if exc is not life.failure:
            logger.critical("worker %d cannot go on", os.getpid(), exc_info=True)
        elif life.entered:
            status = NOT_LEFT
    finally:
        exit_now(status)


async def _serve(servings: Sequence[Serving], life: Life, orders: Orders, exits: Exits) -> None:
    control = _Control(orders, max(serving.drain_timeout for serving in servings), life)
    try:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(life)  # before the servers, so that it is left after them
            life.hold(servings)
            servers = [await stack.enter_async_context(serving) for serving in servings]
            for server in servers:
                server._end_level = logging.DEBUG  # the supervisor adds them up
                if orders.measure:
                    server.measure_durations()
                if orders.reload_tls and server.can_reload_tls:  # nothing is accepted yet: the loop has not run since
                    server.reload_tls()
            control.obey(servers)
            await life.enter(servers)
            control.start()
            life.begin(servers)
            send(orders.channel, READY)
            exits.leave = lambda _: send(orders.channel, LEAVE)
            with control.leaving_when_cancelled():
                await asyncio.wait([asyncio.ensure_future(server.wait_closed()) for server in servers])
        await control.calls.finish()
    except asyncio.CancelledError:
        if not control.given_up:
            raise
    control.report()


class _Control:
    """In a worker: obeys the supervisor, and reports to it."""

    def __init__(self, orders: Orders, drain_timeout: float, life: Life) -> None:
        self.given_up = False  # the supervisor has cancelled the start, or the lifespan's end
        self._orders = orders
        self._drain_timeout = drain_timeout
        self._life = life
        self._channel = orders.channel
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
            send(self._channel, LEAVE)
            self._close(None)
            raise

    def report(self, beginning: bytes = b"") -> None:
        """Send the readings."""
        readings = json.dumps([server.reading() for server in self._servers]).encode()
        send(self._channel, beginning + zlib.compress(readings, zlib.Z_BEST_SPEED))

    def _report_again(self) -> None:
        self.report()
        self._loop.call_later(self._orders.report_every, self._report_again)

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
            for bound in itertools.chain(*self._orders.sockets):
                bound.take_back()
            self._close(None)

    def _close(self, timeout: float | None) -> None:
        if self._starting is not None:
            self.given_up = True
            self._starting.cancel()
            return
        self.calls.end_by(self._loop.time() + (self._drain_timeout if timeout is None else timeout))
        self._closing += [self._loop.create_task(server.close(timeout)) for server in self._servers]


def send(channel: socket.socket, message: bytes) -> None:
    """Send to the other side, unless it is gone, which others notice, or nothing fits in."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
        channel.send(message, socket.MSG_DONTWAIT)


def do_nothing(number: int, frame: Any) -> None:
    """Ignore a signal; unlike SIG_IGN this is not inherited by programs started from here."""
