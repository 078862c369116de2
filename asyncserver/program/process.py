"""A program of one process: its servers, what is around them, and what signals do to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import threading
from typing import TYPE_CHECKING

from .._logger import logger as _logger
from ..leaving.executor import CallExecutor
from ..leaving.signals import StopSignals, replaced
from ..leaving.stopping import Stage
from ..reports.logs import about

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..leaving.exits import Exits
    from ..monitoring.monitor import Monitor
    from ..monitoring.notify import NotifySocket
    from ..servers.server import Server
    from ..serving import Serving
    from .lifespan import Life


async def serve_here(
    servings: Sequence[Serving],
    started: Callable[[], object],
    exits: Exits,
    *,
    life: Life,
    monitor: Monitor,
    monitoring: Serving | None,
    drain_delay: float,
    notify: NotifySocket,
) -> None:
    """Serve in this process until all servers have closed, or a signal comes; then drain.

    `started` is called when all servers serve; `monitoring` serves the monitor over HTTP, if that
    is asked for; `drain_delay` are seconds between the first signal and the drain.
    """
    drain_timeout = max(serving.drain_timeout for serving in servings)
    signals = _Signals(monitor, notify, life, drain_delay=drain_delay, drain_timeout=drain_timeout)
    try:
        with signals.handled():
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(signals.outlast_echo)
                if monitoring is not None:  # first, so that it can say "not ready" before and after
                    from ..monitoring.monitor import log_urls  # noqa: PLC0415 - an eighth of the import's time

                    about_us = await stack.enter_async_context(monitoring)
                    about_us._end_level = logging.DEBUG  # it is none of the program's
                    log_urls(about_us.addresses)
                await stack.enter_async_context(life)  # before the servers, so that it is left after them
                life.hold(servings)
                servers = []
                for serving in servings:
                    servers.append(server := await stack.enter_async_context(serving))
                    server._end_level = logging.DEBUG  # until it has been said that it serves
                await life.enter(servers)
                signals.concern(servers)
                life.begin(servers)
                exits.leave = signals.leave
                monitor.watch(servers, measure=monitoring is not None)
                started()
                for server in servers:
                    server._end_level = logging.INFO
                    _logger.info("serving on %s", server.label, extra=about(server))
                with _telling(notify, servers), signals.closing_when_cancelled():
                    await asyncio.wait([asyncio.ensure_future(server.wait_closed()) for server in servers])
            await signals.calls.finish()
    except asyncio.CancelledError:
        if not signals.given_up:
            raise


@contextlib.contextmanager
def _telling(notify: NotifySocket, servers: Sequence[Server]) -> Iterator[None]:
    """Report to systemd, from the loop, so that systemd notices a loop that is stuck."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def pulse() -> None:
        nonlocal timer
        notify.pulse([server.stats() for server in servers])
        timer = loop.call_later(notify.pulse_every, pulse)

    notify.ready()
    if notify.pulse_every < math.inf:
        pulse()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        notify.stopping()


class _Signals(StopSignals):
    """What signals do to the servers of this process, from before the first of them is bound."""

    def __init__(
        self,
        monitor: Monitor,
        notify: NotifySocket,
        life: Life,
        *,
        drain_delay: float,
        drain_timeout: float,
    ) -> None:
        super().__init__(drain_delay=drain_delay)
        self.given_up = False  # a signal has cancelled the start, or the lifespan's end
        self._drain_timeout = drain_timeout
        self.calls = CallExecutor(self._loop)
        self._life = life
        self._monitor = monitor
        self._notify = notify
        self._delay: asyncio.TimerHandle | None = None
        self._starting = asyncio.current_task()

    def concern(self, servers: Sequence[Server]) -> None:
        """Take the servers, which have all started. Raises CancelledError, if a signal came."""
        if self.given_up:  # and the lifespan has gone on all the same
            raise asyncio.CancelledError
        self._servers, self._starting = servers, None
        self._stopping.start()

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with super().handled(), replaced(self._loop, {signal.SIGHUP: self._reload}):
            yield

    def _stop(self, cause: str) -> None:
        """Close the servers, perhaps after a delay; a second time at once."""
        self._notify.stopping()
        if self._starting is None:
            self._advance(cause)
            return
        _logger.info("%s: not all servers had started; those that had are closed", cause)
        self.given_up = True
        self._starting.cancel()

    @contextlib.contextmanager
    def closing_when_cancelled(self) -> Iterator[None]:
        """If the program's task is cancelled, most likely by its lifespan, close all servers."""
        try:
            yield
        except asyncio.CancelledError:
            if not self._stopping.stopping:
                _logger.info("cancelled: no new work, waiting for what runs")
                self._stopping.fail()
                self.close(None)
            raise

    def leave(self, exc: SystemExit) -> None:
        """Drain, since a handler has ended the program."""
        if not self._stopping.stopping:
            self._advance(f"SystemExit({exc.code!r})")

    def _advance(self, cause: str) -> None:
        if self._delay is not None:
            self._delay.cancel()
        stage = self._stopping.advance(cause)
        if stage is Stage.DELAYED:
            self._monitor.stopping = True
            self._delay = self._loop.call_later(self._stopping.drain_delay, self._advance, "the delay is over")
        else:
            self.close(None if stage is Stage.DRAINING else 0.0)
        if stage >= Stage.FORCED and self._life.interrupt():
            self.given_up = True

    def close(self, timeout: float | None) -> None:
        """See StopSignals; calls in threads have as long."""
        self.calls.end_by(self._loop.time() + (self._drain_timeout if timeout is None else timeout))
        super().close(timeout)

    def _reload(self) -> None:
        """Read the certificates again."""
        if self._stopping.has_lost_terminal():
            if not self._stopping.is_echo(signal.SIGHUP):
                self._stop("SIGHUP")
            return
        if self._stopping.stage is not Stage.SERVING:
            return
        self._notify.reloading()
        note = ""
        reloadable = [server for server in self._servers if server.can_reload_tls]
        if not reloadable:
            _logger.info("SIGHUP: no server has certificates to be read again")
        for server in reloadable:
            try:
                server.reload_tls()
            except (OSError, ValueError) as exc:
                _logger.error("SIGHUP: %s keeps its certificates: %s", server.label, exc, extra=about(server))
                note = ", but new certificates could not be read (see the log)"
            else:
                _logger.info("SIGHUP: %s has read its certificates again", server.label, extra=about(server))
        self._notify.ready(note)
