"""run: a program that serves until it is told to stop. The only place that knows uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Literal

from ._log import logger as _logger
from .serving import Serving
from .workers import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .server import Server

__all__ = ["run"]


_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(*servings: Serving, loop: Literal["auto", "uvloop", "asyncio"] = "auto", workers: int = 1) -> None:
    """Serve until SIGINT or SIGTERM, or until every server has been closed; then drain and return.

    The first signal drains, a second one cancels what is left at once. If a server cannot start, those that did are
    closed and the error is raised. Outside the main thread no signals are handled, since Python delivers them there.

    With several workers this process serves nothing itself. It supervises the workers, which are forked from it:

    * A worker that dies is replaced at once; one that keeps dying after 0.1, 0.2 ... 30 seconds.
    * SIGHUP starts new workers, waits until they serve, then drains the old ones; new certificates are read from
      their files. The code in a new worker is this program's as it was when `run()` was called; new code is loaded on
      SIGHUP only by the command line. If a new worker cannot start, the old one stays. The program itself has to
      be restarted for a new Python, and for a new asyncserver.
    * SIGUSR1 logs the counters of all workers together. SIGTERM sent to a worker replaces it.
    * If this process is killed, the workers drain and leave.

    Call it in the main thread, before the program starts threads: fork does not take them along. What follows
    `run()`, and `atexit`, is for this process only.

    Args:
        servings: what `serve()` and `serve_datagrams()` return, one or several.
        loop: "uvloop", the standard library's "asyncio", or "auto" for uvloop where it is installed.
        workers: processes that serve; 1 is this one.

    Raises:
        BindError: an address could not be had.
        ChildProcessError: a worker ended before all of them had begun to serve.
        ModuleNotFoundError: uvloop was asked for and is not installed.
        RuntimeError: called where an event loop runs already, or for several workers outside the main thread.
    """
    try:
        _check(servings, workers)
        if workers > 1:
            run_workers(servings, lambda: servings, loop, workers)
            return
        factory = _loop_factory(loop)
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("run() makes a loop of its own, and here one runs already: write `await serve(...)`")
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_run(servings))
    finally:
        give_up(servings)


def give_up(servings: Iterable[object]) -> None:
    """Close those that have not started: the error that kept them from it is enough, nobody forgot to await them."""
    for serving in servings:
        if isinstance(serving, Serving):
            serving.close()


def _check(servings: Sequence[Serving], workers: int) -> None:
    for serving in servings:
        if not isinstance(serving, Serving):
            raise TypeError(f"run() expects what serve() and serve_datagrams() return; got {serving!r}")
    if not servings:
        raise TypeError("run() needs a server: run(serve(handler, host, port))")
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"workers must be a whole number, got {workers!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")


def run_workers(servings: Sequence[Serving], load: Callable[[], Sequence[Serving]], loop: str, workers: int) -> None:
    """Run with worker processes, each of which calls `load` for what to serve at the places of `servings`.

    See `run()`, also for what is raised.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("run(workers=...) handles signals: call it in the main thread")
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("run(workers=...) forks: call it where no event loop runs")
    Supervisor(servings, load, _loop_factory(loop), workers).run()


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name not in {"auto", "uvloop", "asyncio"}:
        raise ValueError(f'loop must be "auto", "uvloop" or "asyncio", got {name!r}')
    if name != "asyncio":
        try:
            import uvloop  # noqa: PLC0415 - optional, and 10 ms that a program with a loop of its own need not pay
        except ModuleNotFoundError:
            if name == "uvloop":
                raise
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop


async def _run(servings: Sequence[Serving]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving) for serving in servings]
        for server in servers:
            _logger.info("%r", server)
        with _stopping(servers):
            await asyncio.wait([asyncio.ensure_future(server.wait_closed()) for server in servers])


@contextlib.contextmanager
def _stopping(servers: Sequence[Server]) -> Iterator[None]:
    """Close the servers when a signal asks for it."""
    loop = asyncio.get_running_loop()
    closing: list[asyncio.Task[object]] = []

    def stop(number: signal.Signals) -> None:
        if closing:
            _logger.warning("%s again: cancelling what still runs", number.name)
        else:
            _logger.info("%s: no new work, waiting for what runs; once more to end it now", number.name)
        timeout = 0.0 if closing else None
        closing.extend([loop.create_task(server.close(timeout)) for server in servers])

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
