"""run: a program that serves until a signal to stop. The only place that knows uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import signal
import threading
from typing import TYPE_CHECKING, Any, Literal

from ._logger import logger as _logger
from .arguments import check_seconds
from .leaving.executor import CallExecutor
from .leaving.exits import Exits
from .leaving.signals import StopSignals, replaced
from .leaving.stopping import Stage
from .leaving.terminals import open_terminals
from .leaving.threads import watch_end
from .monitoring.notify import NotifySocket
from .reports.logs import about
from .serving import Serving

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence

    from .monitoring.monitor import Monitor
    from .servers.server import Server

__all__ = ["run"]


def run(
    *servings: Serving,
    loop: Literal["auto", "uvloop", "asyncio"] = "auto",
    workers: int = 1,
    metrics: str | None = None,
    drain_delay: float = 0.0,
    stuck_timeout: float = 30.0,
) -> None:
    """Serve until SIGINT or SIGTERM, or until every server has been closed; then drain and return.

    The first signal drains, a second one cancels what is left at once. SIGHUP reads certificates
    again from the files given to `tls_context()`, for new connections; when that fails, the old
    ones stay, and the log says why. When it comes because the terminal has been closed, it drains
    instead. If a server cannot start, those that did are closed and the error is raised. Outside
    the main thread no signals are handled, since Python delivers them there.

    With several workers this process serves nothing itself. It supervises the workers,
    which are forked from it:

    * A worker that dies is replaced at once; one that keeps dying after 0.1, 0.2 ... 30 seconds.
    * SIGHUP starts new workers, waits until they serve, then drains the old ones; new
      certificates are read from their files. The code in a new worker is this program's
      as it was when `run()` was called; new code is loaded on SIGHUP only by the command
      line. If a new worker cannot start, the old one stays. The program itself has to be
      restarted for a new Python, and for a new asyncserver.
    * SIGUSR1 logs the counters of all workers together. SIGTERM sent to a worker replaces it.
    * If this process is killed, the workers drain and leave.

    Under systemd (NOTIFY_SOCKET, WATCHDOG_USEC) it reports when it is ready, reloads and
    stops, and that it is alive.

    SystemExit that is raised in a handler, or anywhere else in the loop, drains as a signal does,
    and then ends the program with its status. In a worker it ends that worker, which is replaced.

    Calls of `asyncio.to_thread()` that run when the servers have closed may go on until the drain's
    deadline and two seconds longer; then the log names them, and they are left behind. Threads that
    the program has started by itself, and those of `anyio.to_thread`, are waited for by Python at
    its end; if that takes long, the log says so.

    Call it in the main thread, before the program starts threads: fork does not take them along.
    What follows `run()`, and `atexit`, is for this process only.

    Args:
        servings: what `serve()` and `serve_datagrams()` return, one or several.
        loop: "uvloop", the standard library's "asyncio", or "auto" for uvloop where it is
            installed.
        workers: processes that serve; 1 is this one.
        metrics: "HOST:PORT" where to serve over HTTP: /metrics for Prometheus, the sum of all
            workers, with `?by=worker` each of them; /ready, 200 while every server takes new work,
            else 503; /live. Every client that reaches it can read it. /metrics needs
            prometheus-client, `pip install asyncserver[metrics]`.
        drain_delay: seconds between the first signal, from which on /ready says no, and the drain:
            time for a load balancer to notice, and to send no more. A second signal ends it early.
        stuck_timeout: seconds that the loop of one of several workers may not turn, because a
            handler blocks it or a debugger holds it. Then the log says where all its threads are,
            and it is killed, with its connections, and replaced; connections in its queue go to its
            successor. After 10 such kills the log says so, and /ready says no. 0 leaves it alone.

    Raises:
        BindError: an address could not be had.
        ChildProcessError: a worker ended before all of them had begun to serve.
        ModuleNotFoundError: uvloop was asked for and is not installed.
        RuntimeError: called where an event loop runs already, or for several workers
            outside the main thread.
    """
    run_program(
        servings, lambda: servings, loop, workers, metrics=metrics, drain_delay=drain_delay, stuck_timeout=stuck_timeout
    )
    watch_end()


def run_program(
    servings: Sequence[Serving],
    load: Callable[[], Sequence[Serving]],
    loop: str,
    workers: int,
    started: Callable[[], object] = lambda: None,
    *,
    metrics: str | None = None,
    drain_delay: float = 0.0,
    stuck_timeout: float = 30.0,
) -> None:
    """Run as `run()` does; see there, also for what is raised.

    Args:
        servings: what to serve; with several workers the places only.
        load: called in each of several workers for what to serve at those places.
        loop: as for `run()`.
        workers: as for `run()`.
        started: called once all addresses are bound.
        metrics: as for `run()`.
        drain_delay: as for `run()`.
        stuck_timeout: as for `run()`.
    """
    # Not needed to serve alone, and an eighth of the time that the whole import takes.
    from .monitoring.monitor import Monitor  # noqa: PLC0415

    monitoring: Serving | None = None
    try:
        _check(servings, workers)
        check_seconds("drain_delay", drain_delay, zero=True)
        check_seconds("stuck_timeout", stuck_timeout, zero=True)
        monitor = Monitor()
        if metrics is not None:
            monitoring = monitor.serving(metrics)
        factory = _loop_factory(loop)
        with NotifySocket.from_environment() as notify:
            if workers > 1:
                _check_process()
                from .workers.supervisor import Supervisor  # noqa: PLC0415 - as above

                Supervisor(
                    servings,
                    load,
                    factory,
                    workers,
                    started=started,
                    monitor=monitoring,
                    drain_delay=drain_delay,
                    stuck_timeout=stuck_timeout,
                    notify=notify,
                ).run()
                return
            main = functools.partial(
                _run, servings, started, monitor=monitor, monitoring=monitoring, drain_delay=drain_delay, notify=notify
            )
            _run_here(main, factory)
    finally:
        give_up((*servings, monitoring))


def _run_here(
    main: Callable[[Exits], Coroutine[Any, Any, None]], factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("run() makes a loop of its own, and here one runs already: write `await serve(...)`")
    exits = Exits()
    with asyncio.Runner(loop_factory=factory) as runner:
        exits.run(runner, main(exits))


def give_up(servings: Iterable[object]) -> None:
    """Close those that have not started; they must not warn: an error was raised already."""
    for serving in servings:
        if isinstance(serving, Serving):
            serving.close()


def _check(servings: Sequence[Serving], workers: int) -> None:
    for serving in servings:
        if not isinstance(serving, Serving):
            raise TypeError(f"run() expects what serve() and serve_datagrams() return; got {serving!r}")
    if not servings:
        raise TypeError(
            "run() needs a server: run(serve(handler, host, port)); got none. systemd_sockets() gives none where "
            "systemd has opened none for this process"
        )
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"workers must be a whole number, got {workers!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")


def _check_process() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("run(workers=...) handles signals: call it in the main thread")
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("run(workers=...) forks: call it where no event loop runs")


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name not in {"auto", "uvloop", "asyncio"}:
        raise ValueError(f'loop must be "auto", "uvloop" or "asyncio", got {name!r}')
    if name != "asyncio":
        try:
            import uvloop  # noqa: PLC0415 - optional; takes 10 ms
        except ModuleNotFoundError:
            if name == "uvloop":
                raise
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop


async def _run(
    servings: Sequence[Serving],
    started: Callable[[], object],
    exits: Exits,
    *,
    monitor: Monitor,
    monitoring: Serving | None,
    drain_delay: float,
    notify: NotifySocket,
) -> None:
    calls = CallExecutor(asyncio.get_running_loop())
    signals = _Signals(monitor, notify, drain_delay, max(serving.drain_timeout for serving in servings), calls)
    try:
        with signals.handled():
            async with contextlib.AsyncExitStack() as stack:
                if monitoring is not None:  # first, so that it can say "not ready" before and after
                    from .monitoring.monitor import log_urls  # noqa: PLC0415 - as above

                    log_urls((await stack.enter_async_context(monitoring)).addresses)
                servers = [await stack.enter_async_context(serving) for serving in servings]
                signals.concern(servers)
                exits.leave = signals.leave
                monitor.watch(servers, measure=monitoring is not None)
                started()
                for server in servers:
                    _logger.info("%r", server, extra=about(server))
                with _telling(notify, servers):
                    await asyncio.wait([asyncio.ensure_future(server.wait_closed()) for server in servers])
            await calls.finish(lambda: signals.deadline)
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
    """What signals do to the servers of this process, from before the first of them is bound.

    Attributes:
        given_up: whether one has ended the start.
        deadline: the loop's time until which what runs may go on; 0 before the drain.
    """

    def __init__(
        self, monitor: Monitor, notify: NotifySocket, drain_delay: float, drain_timeout: float, calls: CallExecutor
    ) -> None:
        super().__init__(drain_delay=drain_delay)
        self.given_up = False
        self.deadline = 0.0
        self._drain_timeout = drain_timeout
        self._calls = calls
        self._monitor = monitor
        self._notify = notify
        self._delay: asyncio.TimerHandle | None = None
        self._starting = asyncio.current_task()
        self._terminals = open_terminals()

    def concern(self, servers: Sequence[Server]) -> None:
        """Take the servers, which have all started."""
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

    def _stop(self, number: signal.Signals) -> None:
        """Close the servers, perhaps after a delay; a second time at once."""
        self._notify.stopping()
        if self._starting is None:
            self._advance(number.name)
            return
        _logger.info("%s: not all servers had started; those that had are closed", number.name)
        self.given_up = True
        self._starting.cancel()

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

    def close(self, timeout: float | None) -> None:
        """See StopSignals."""
        self.deadline = self._loop.time() + (self._drain_timeout if timeout is None else timeout)
        self._calls.hurry()
        super().close(timeout)

    def _reload(self) -> None:
        """Read the certificates again."""
        if open_terminals() != self._terminals:
            self._terminals = open_terminals()
            if not self._stopping.is_echo(signal.SIGHUP):
                self._stop(signal.SIGHUP)
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
                _logger.error("SIGHUP: %r keeps its certificates: %s", server, exc, extra=about(server))
                note = ", but new certificates could not be read (see the log)"
            else:
                _logger.info("SIGHUP: %r has read its certificates again", server, extra=about(server))
        self._notify.ready(note)
