"""Server: the handlers that run, what has become of them, and how they are brought to an end.

    serving -> close(): nothing new -> handlers are told -> they end -> deadline: cancel -> a second later: abort

The same for connections (stream_server.py) and for datagrams (datagram_server.py). A handler runs in a task of its
own, with its own contextvars context, and whatever it raises stays there: `_settle` is the one place where a
handler's end is judged, counted and told.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any

from .._logger import logger as _logger
from ..net.addresses import label_of
from ..net.tasks import Progress, outlast, start_task
from .logs import about
from .stats import Account, DrainReport, outcome_of

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Coroutine

    from .._types import ErrorHandler
    from ..net.addresses import Address
    from ..net.binding import BoundSocket

# Seconds between cancelling a handler and taking its connection away.
_CANCEL_GRACE = 1.0


class Server(Account):
    """A running server. Made by `serve()` and `serve_datagrams()`; use it in the loop's thread only.

    Attributes:
        addresses: where clients reach it, an address for each socket.
        label: the same as a text, as metrics and log records have it: "tcp://127.0.0.1:8080".
        idle_timeout: seconds of silence that a connection may keep, or None.
        durations: how long handlers took, while the server's metrics are asked for; else None.
        loop: the event loop that it runs in.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bound: list[BoundSocket],
        drain_timeout: float,
        on_error: ErrorHandler | None,
    ) -> None:
        super().__init__(bound[0].sock.type)
        self.loop: asyncio.AbstractEventLoop = loop
        self._loop = loop
        self._bound = bound
        self.addresses: tuple[Address, ...] = tuple(one.address for one in bound)
        self.label: str = label_of(bound)
        self.idle_timeout: float | None = None
        self._drain_timeout = drain_timeout
        self._on_error = on_error
        self._live: dict[asyncio.Task[Any], Any] = {}
        self._starting: Any = None
        self._intakes: list[Any] = []  # listeners or endpoints: where work comes in
        self._paused = False  # by `pause()`
        self._full = False  # as many handlers run as may
        self._finishing: dict[asyncio.Task[Any], Any] = {}
        self._closing = asyncio.Event()
        self._closed = asyncio.Event()
        self._drainer: asyncio.Task[DrainReport] | None = None
        self._cleaner: asyncio.Task[None] | None = None
        self._close_callbacks: list[Callable[[], object]] = []
        self._callers: set[asyncio.Task[Any] | None] = set()
        self._deadline = 0.0
        progress = Progress(loop)
        self._tell_change, self._until = progress.tell, progress.until
        # One of each for all handlers: a bound method and a context for every one would be memory.
        self._done_callback, self._context = self._done, contextvars.copy_context()

    def __repr__(self) -> str:
        """Tell where it listens and whether it does."""
        state = "closed" if self._closed.is_set() else "closing" if self._closing.is_set() else "serving"
        return f"<{type(self).__name__} {state} on {', '.join(map(str, self.addresses))}>"

    # -- for the caller

    def add_close_callback(self, callback: Callable[[], object]) -> None:
        """Call `callback()` when the last handler has ended and the sockets are being closed; its errors are logged."""
        self._close_callbacks.append(callback)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The sockets it listens on; none once it closes."""
        return () if self._closing.is_set() else tuple(one.sock for one in self._bound)

    @property
    def connections(self) -> frozenset[Any]:
        """The connections whose handlers run now, as a snapshot: their Streams, or what stands for them."""
        starting = () if self._starting is None else (self._starting,)
        return frozenset((*self._live.values(), *starting))

    @property
    def taking(self) -> bool:
        """Whether it takes new work: it has been neither paused nor closed."""
        return self._drainer is None and not self._paused

    @property
    def closed(self) -> bool:
        """Whether the last handler has ended, or been given up."""
        return self._closed.is_set()

    @property
    def can_reload_tls(self) -> bool:
        """Whether `reload_tls()` has files to read."""
        return False

    def pause(self) -> None:
        """Take nothing new; the kernel queues connections and datagrams, until its limits. Handlers go on.

        Raises:
            RuntimeError: the server has been closed.
        """
        self._require_open("pause")
        self._paused = True
        self._apply_pause()

    def resume(self) -> None:
        """Undo `pause()`.

        Raises:
            RuntimeError: the server has been closed.
        """
        self._require_open("resume")
        self._paused = False
        self._apply_pause()

    def reload_tls(self, context: ssl.SSLContext | None = None) -> None:
        """Use new certificates for new connections; those that are open keep theirs.

        Args:
            context: the context to use from now on; None reads again the files given to `tls_context()`.

        Raises:
            RuntimeError: the server does not speak TLS or has been closed, or the context was not made by
                `tls_context()` and no new one is given.
            TypeError: the context is not one for the server side.
            OSError: a file cannot be read, or does not hold what it should; the old context stays in use.
        """
        self._require_open("reload_tls")
        raise RuntimeError(f"{self!r} does not speak TLS: there is nothing to reload")

    async def close(self, drain_timeout: float | None = None) -> DrainReport:
        """Stop, politely: no new work, then wait for the handlers, then insist.

        * Nothing new is taken. Connections and datagrams that the kernel holds already are still served.
        * Every handler is told (`stream.closing`). A connection that is between two messages comes to its end of
          stream, one that has just begun half a second later; one in a message goes on until it has answered.
        * Handlers that still run after `drain_timeout` seconds are cancelled, and a second later aborted.

        Called again, it waits for the same end, sooner if the new timeout says so. Called from inside a handler it
        does not wait for that handler, which has until the deadline, and at least a second, to end (but in a task that
        the handler waits for, it does). If the caller is cancelled while it waits, the deadline is now: close() ends
        within about a second, then CancelledError is raised.

        Args:
            drain_timeout: seconds; None for the server's own.

        Returns:
            how many handlers completed, were cancelled, were aborted.
        """
        deadline = self._loop.time() + (self._drain_timeout if drain_timeout is None else drain_timeout)
        if self._drainer is None:
            self._deadline = deadline
            # Not by the loop's factory: started eagerly, it would begin before we are known to call it.
            self._drainer = asyncio.Task(self._drain(self._ended()), loop=self._loop)
        elif drain_timeout is not None:
            self._hasten(deadline)
        caller = self._handler_of(asyncio.current_task())
        self._callers.add(caller)
        self._tell_change()
        try:
            return await outlast(self._drainer, self._hurry)
        finally:
            self._callers.discard(caller)
            self._tell_change()

    def _handler_of(self, task: asyncio.Task[Any] | None) -> asyncio.Task[Any] | None:
        """The handler that a task belongs to: itself, or the one that runs it as its `(reader, writer)` callback."""
        return next((one for one, source in self._live.items() if getattr(source, "task", None) is task), task)

    async def wait_closed(self) -> None:
        """Wait until the server has closed and the last handler has ended, or been given up."""
        await self._closed.wait()

    async def _end(self) -> None:
        """Close, and see the last handler end."""
        try:
            await self.close()
        finally:
            if self._cleaner is not None:  # else the program's end has cancelled the drain before its first step
                await outlast(self._cleaner, self._hurry)

    def _apply_pause(self) -> None:
        for intake in self._intakes:
            if self._paused or self._full:
                intake.pause()
            else:
                intake.resume()

    def _stop(self) -> None:
        """Take what the kernel holds already, then nothing more."""

    def _release_sockets(self) -> None:
        """Close what handlers needed to the end."""

    def _drop_waiting(self) -> None:
        """Close what was taken from the kernel and has no handler yet."""

    def _measured(self) -> dict[str, int]:
        """See Account."""
        return {"active": len(self._live) + (self._starting is not None)}  # what finishes is counted by how it ended

    def _released(self, source: Any) -> None:
        """A handler has ended, and what it handled is closed."""

    def _finish(self, source: Any) -> Coroutine[Any, Any, object] | None:
        """Close what a handler handled; what has to wait for that is left to the coroutine returned."""

    # -- handlers

    def _for_this_server(self, handler: Any) -> Any:
        """The function to call: a handler that needs to know its server has a method `for_server(server)`.

        One that runs in threads may have `pool_stats()`, which counts them by "threads", "waiting" and "starved".
        """
        self._pool_stats = getattr(handler, "pool_stats", None)
        make = getattr(handler, "for_server", None)
        return handler if make is None else make(self)

    def _start(self, handler: Callable[[Any], Coroutine[Any, Any, Any]], source: Any, name: str | None = None) -> None:
        """Run a handler in a task of its own, up to its first wait at once."""
        self._starting = source
        try:
            task = start_task(handler(source), self._loop, self._context, name)
        except Exception as exc:  # not even a coroutine: a wrong signature, most likely
            self._settle(source, exc, None)
            return
        except BaseException:  # SystemExit, KeyboardInterrupt: the program ends
            source.abort()
            raise
        finally:
            self._starting = None
        if task.done():
            self._judge(task, source)
        else:
            self._keep(task, source)
        del task  # holds its error, whose traceback may come to hold this frame (f_back): a cycle

    def _keep(self, task: asyncio.Task[Any], source: Any) -> None:
        """See a handler that waits to its end."""
        self._live[task] = source
        task.add_done_callback(self._done_callback, context=self._context)

    def _done(self, task: asyncio.Task[Any]) -> None:
        source = self._live.pop(task, None)
        if source is not None:  # else given up after it was aborted
            self._judge(task, source)
        elif not task.cancelled():
            task.exception()  # nobody is left to hear it

    def _judge(self, task: asyncio.Task[Any], source: Any) -> None:
        exc = asyncio.CancelledError() if task.cancelled() else task.exception()
        self._settle(source, exc, task.result() if exc is None else None)

    def _settle(self, source: Any, exc: BaseException | None, result: Any) -> None:
        """Count how a handler ended, tell of its error, and close what it handled."""
        outcome = outcome_of(exc)
        if outcome == "failed":
            self._report(exc, source)
        self._count[outcome] += 1
        try:
            finishing = self._finish(source)
        except Exception as error:
            self._report(error, source)
            finishing = None
        if finishing is None:
            self._gone(source)
            return
        task = start_task(finishing, self._loop, self._context)
        self._finishing[task] = source
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        (source := self._finishing.pop(task)).abort()  # no effect unless it was cancelled before its first step
        if not task.cancelled() and outcome_of(exc := task.exception()) == "failed":
            self._report(exc, source)
        self._gone(source)

    def _gone(self, source: Any) -> None:
        self._released(source)
        self._tell_change()

    def _report(self, exc: BaseException | None, source: Any) -> None:
        """Log a handler's error once, and pass it to `on_error`, whose own errors do no harm."""
        if exc is None or isinstance(exc, SystemExit | KeyboardInterrupt):  # those end the loop, and tell by that
            return
        _logger.error(
            "handler of %r failed", source.peer_address, exc_info=exc, extra=about(self, source, outcome="failed")
        )
        if self._on_error is not None:
            try:
                self._on_error(exc, source)
            except (Exception, asyncio.CancelledError):  # the latter of a future that it looked at: nobody cancels it
                _logger.exception("on_error failed", extra=about(self, source))

    # -- closing

    def _require_open(self, what: str) -> None:
        if self._drainer is not None:
            raise RuntimeError(f"{what}(): {self!r} has been closed; start another with serve()")

    def _hurry(self) -> None:
        self._hasten(self._loop.time())

    def _hasten(self, deadline: float) -> None:
        self._deadline = min(self._deadline, deadline)
        self._tell_change()

    def _ended(self) -> int:
        return sum(self._count[outcome] for outcome in ("completed", "failed", "cancelled", "timed_out"))

    def _unfinished(self) -> bool:
        callers = sum(task in self._live for task in self._callers)
        return len(self._live) > callers or bool(self._finishing)

    async def _drain(self, before: int) -> DrainReport:
        try:
            self._stop()
            self._closing.set()
            for source in tuple(self._live.values()):
                source._begin_drain()
            await self._until(lambda: not self._unfinished(), lambda: self._deadline)
            cancelled, aborted = await self._insist()
            return DrainReport(max(0, self._ended() - before - cancelled - aborted), cancelled, aborted)
        finally:
            self._cleaner = asyncio.Task(self._clean(), loop=self._loop)

    async def _insist(self) -> tuple[int, int]:
        """Cancel the handlers that are left, then abort; returns how many of each it took."""
        left = {task: source for task, source in self._live.items() if task not in self._callers}
        for task in left:
            task.cancel()
        for source in tuple(self._finishing.values()):
            source.abort()
        self._drop_waiting()
        end, ending = self._loop.time() + _CANCEL_GRACE, list(left)

        def ended() -> bool:  # looks at each task about once, however many there are
            while ending and ending[-1] not in self._live:
                ending.pop()
            return not (ending or self._finishing)

        await self._until(ended, lambda: end)
        given_up = {task: source for task, source in left.items() if task in self._live}
        for task, source in given_up.items():
            _logger.warning("handler of %r ignored its cancellation", source.peer_address, extra=about(self, source))
            source.abort()
            del self._live[task]
            self._count["cancelled"] += 1
            self._released(source)
        return len(left) - len(given_up), len(given_up)

    async def _clean(self) -> None:
        """Wait for handlers that called close() themselves, then say that all is over."""
        try:
            end = max(self._deadline, self._loop.time() + _CANCEL_GRACE)
            await self._until(lambda: not (self._live or self._finishing), lambda: end)
            self._callers.clear()
            await self._insist()
        finally:
            for callback in (self._release_sockets, *self._close_callbacks):
                try:
                    callback()
                except Exception:
                    _logger.exception("%r failed as the server closed", callback, extra=about(self))
            self._closed.set()
