"""run: a program that serves until a signal to stop."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Literal

from .arguments import check_count, check_seconds
from .leaving.exits import Exits
from .leaving.threads import watch_end
from .monitoring.notify import NotifySocket
from .program.lifespan import Life
from .program.loops import loop_factory
from .program.process import serve_here
from .starting import check_servings, give_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .program.lifespan import Lifespan, Loaded
    from .program.loops import LoopFactory
    from .starting import Serving

__all__ = ["run"]


def run(
    *servings: Serving,
    loop: str | LoopFactory = "auto",
    workers: int | Literal["auto"] = 1,
    metrics: str | None = None,
    drain_delay: float = 0.0,
    stuck_timeout: float = 30.0,
    max_requests: int | None = None,
    max_age: float | None = None,
    lifespan: Lifespan | None = None,
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

    Example::

        asyncserver.run(
            asyncserver.serve(handler, "127.0.0.1", 8080),
            asyncserver.serve(handler, path="app.sock"),
            workers=2,
            metrics="127.0.0.1:9100",
        )

    Args:
        servings: what `serve()` and `serve_datagrams()` return, one or several.
        loop: "uvloop", the standard library's "asyncio", or "auto" for uvloop where it is
            installed. Any other one by "module:function", or the function itself: called without
            arguments it returns a new loop.
        workers: processes that serve; 1 is this one. "auto" is one for each CPU that this process
            may use, and not more than the CPU quota of its cgroup (v2), rounded up: the log says
            how many. If that is one, it has a supervisor all the same, so that signals and limits
            mean the same on every machine. Workers share nothing: what one stores another does not
            have.
        metrics: "HOST:PORT" where to serve over HTTP: /metrics for Prometheus, the sum of all
            workers, with `?by=worker` each of them; /ready, 200 while every server takes new work,
            else 503; /live. Every client that reaches it can read it. /metrics needs
            prometheus-client: `pip install prometheus-client`, or `'.[metrics]'` in the clone.
        drain_delay: seconds between the first signal, from which on /ready says no, and the drain:
            time for a load balancer to notice, and to send no more. A second signal ends it early.
        stuck_timeout: seconds that the loop of one of several workers may not turn, because a
            handler blocks it or a debugger holds it. Then the log says where all its threads are,
            and it is killed, with its connections, and replaced; connections in its queue go to its
            successor. After 10 such kills the log says so, and /ready says no. 0 leaves it alone.
        max_requests: connections and datagrams, of all its servers together, after which a worker
            is replaced as on SIGHUP: a new one serves first, then this one drains. It may be a
            tenth more, at random, so that workers do not end together, and what comes until its
            next report, within a second. One at a time: the next waits until this one has ended.
            Handlers that run for days are cancelled at `drain_timeout`. None for no limit; only
            with workers.
        max_age: seconds after which a worker is replaced in the same way; up to a tenth more.
        lifespan: a function that returns an async context manager, such as one with
            `@contextlib.asynccontextmanager`; it gets the tuple of Servers if it can be called with
            one argument, and nothing if its signature cannot be read. Entered once in each process
            that serves, when its sockets are bound and before anything is taken from them; left
            when the servers have drained. Handlers see the context variables that it sets.
            What it raises is logged, and raised here: at once when it is entered, after the drain
            when it is left. If it cancels the task that has entered it, as a task group does when
            one of its tasks fails, the servers drain. A signal cancels it while it is entered, a
            second one while it is left. With workers, one that has not been left 5 seconds after
            `drain_timeout` is killed with its worker.

    Raises:
        BindError: an address could not be had.
        ChildProcessError: a worker ended before all of them had begun to serve, or its lifespan
            failed as it was left at the end.
        ModuleNotFoundError: uvloop, or the module of the loop, was asked for and is not installed.
        RuntimeError: called where an event loop runs already, or for several workers
            outside the main thread; the loop lacks what servers need, such as add_reader().
    """
    life = Life(lifespan)
    run_program(
        servings,
        lambda: (servings, life),
        loop,
        workers,
        life=life,
        metrics=metrics,
        drain_delay=drain_delay,
        stuck_timeout=stuck_timeout,
        max_requests=max_requests,
        max_age=max_age,
    )
    watch_end()


def run_program(
    servings: Sequence[Serving],
    load: Callable[[], Loaded],
    loop: str | LoopFactory,
    workers: int | str,
    started: Callable[[], object] = lambda: None,
    *,
    life: Life,
    metrics: str | None = None,
    drain_delay: float = 0.0,
    stuck_timeout: float = 30.0,
    max_requests: int | None = None,
    max_age: float | None = None,
) -> None:
    """Run as `run()` does; see there, also for what is raised and for the other arguments.

    With several workers `servings` are the places only: `load` is called in each worker for what to
    serve there, and its lifespan. `life` is that of one process. `started` is called once all
    addresses are bound.
    """
    # Not needed to serve alone, and an eighth of the time that the whole import takes.
    from .monitoring.monitor import Monitor  # noqa: PLC0415

    monitoring: Serving | None = None
    try:
        check_servings("run", servings)
        _check_workers(workers, max_requests, max_age)
        life.check()
        check_seconds("drain_delay", drain_delay, zero=True)
        check_seconds("stuck_timeout", stuck_timeout, zero=True)
        monitor = Monitor()
        if metrics is not None:
            monitoring = monitor.serving(metrics)
        factory = loop_factory(loop)
        with NotifySocket.from_environment() as notify:
            if workers != 1:
                _check_process()
                from .workers.supervisor import Supervisor  # noqa: PLC0415 - as above

                Supervisor(
                    servings,
                    load,
                    factory,
                    _count(workers),
                    started=started,
                    monitor=monitoring,
                    drain_delay=drain_delay,
                    stuck_timeout=stuck_timeout,
                    max_requests=max_requests,
                    max_age=max_age,
                    notify=notify,
                ).run()
                return
            if asyncio._get_running_loop() is not None:
                raise RuntimeError("run() makes a loop of its own, and here one runs already: write `await serve(...)`")
            exits = Exits()
            with asyncio.Runner(loop_factory=factory) as runner:
                main = serve_here(
                    servings,
                    started,
                    exits,
                    life=life,
                    monitor=monitor,
                    monitoring=monitoring,
                    drain_delay=drain_delay,
                    notify=notify,
                )
                exits.run(runner, main)
    finally:
        give_up((*servings, monitoring))


def _check_workers(workers: object, max_requests: object, max_age: object) -> None:
    if isinstance(workers, bool) or not (isinstance(workers, int) or workers == "auto"):
        raise TypeError(f'workers must be a whole number or "auto", got {workers!r}')
    if isinstance(workers, int) and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    check_count("max_requests", max_requests, none=True)
    check_seconds("max_age", max_age, none=True)
    for name, limit in (("max_requests", max_requests), ("max_age", max_age)):
        if limit is not None and workers == 1:
            raise ValueError(
                f'{name} has no effect without workers: give workers=2 or more, or "auto", or leave it out; one '
                "process has no other to take over"
            )


def _count(workers: int | str) -> int:
    if isinstance(workers, int):
        return workers
    from .workers.cpus import usable_cpus  # noqa: PLC0415 - not needed to serve alone

    return usable_cpus()


def _check_process() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("run(workers=...) handles signals: call it in the main thread")
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("run(workers=...) forks: call it where no event loop runs")
