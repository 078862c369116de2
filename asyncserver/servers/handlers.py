"""HandlerServer: the handlers that run, and what becomes of each.

The life of a handler, and of what it handles (its source: a connection, or a datagram):

    _start              it runs, in a task of its own, up to its first wait
    _keep               it waits: it is in `_live` from now on
    _on_handler_done    its task is done
    _settle             it is counted by how it ended, its error logged, the result used
    _close_source       what it handled is closed: at once, or in a task in `_closing_sources`
    _on_source_closed   that task is done
    _release            its place is free; the drain looks whether it can end

A handler that ends without waiting skips `_keep`. Each handler has its own contextvars context. Its
errors harm nothing else, except for SystemExit and KeyboardInterrupt, which end the program.
"""

from __future__ import annotations

import asyncio
import contextvars
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .._logger import logger as _logger
from ..net.addresses import format_address
from ..net.tasks import give_up, start_task
from ..reports.error_handler import ErrorCalls
from ..reports.hints import add_hints
from ..reports.logs import about
from ..reports.stats import Durations, fault_of_peer, outcome_of
from .handler_kinds import is_protocol_handler
from .server import Server
from .slow_steps import with_timed_steps

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .._types import ErrorHandler
    from ..listening.binding import BoundSocket
    from ..net.addresses import Address
    from ..reports.stats import Run


class Source(Protocol):
    """What a handler handles. Names with underscores are private: handlers get this object."""

    @property
    def peer_address(self) -> Address:
        """The address of the other end."""

    def _begin_drain(self) -> None:
        """End as soon as no answer is owed any more: the server has begun to drain."""

    def abort(self) -> None:
        """End the connection now."""


AnySource = TypeVar("AnySource", bound=Source)


class HandlerServer(Server, Generic[AnySource]):
    """A server with handlers for sources of one kind. The arguments are Server's."""

    durations: Durations | None
    _run: Run[AnySource]  # what is started for each source: the handler, or what leads to it

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bound: list[BoundSocket],
        drain_timeout: float,
        on_error: ErrorHandler | None,
    ) -> None:
        super().__init__(loop, bound, drain_timeout)
        self._error_calls = ErrorCalls(on_error, loop, self._tell_change)
        self._starting: AnySource | None = None
        self._live: dict[asyncio.Task[object], AnySource] = {}
        self._closing_sources: dict[asyncio.Task[object], AnySource] = {}
        self._undelivered_before = 0  # the drain
        # One of each for all handlers, to save memory.
        self._done_callback, self._context = self._on_handler_done, contextvars.copy_context()

    def _begin(self) -> None:
        """See Server. Handlers, and `on_error`, get the context as it is now."""
        self._context = self._error_calls.context = contextvars.copy_context()
        super()._begin()

    @property
    def connections(self) -> frozenset[Any]:
        """See Server."""
        return frozenset(self._running(self._live.copy()))  # whole, in any thread

    def _running(self, live: dict[asyncio.Task[object], AnySource]) -> tuple[AnySource, ...]:
        """Those whose handlers run, in the order in which they came."""
        return (*live.values(),) if self._starting is None else (*live.values(), self._starting)

    def measure_durations(self) -> None:
        """See Server."""
        if self.durations is None:
            self.durations = Durations()
            self._run = self._layers()

    @abstractmethod
    def _layers(self) -> Run[AnySource]:
        """Build what is run for each source, layer by layer, around the handler."""

    def _measured(self) -> dict[str, int]:
        """See Account."""
        # A source that is being closed is counted already, by how its handler ended.
        return {"active": len(self._live) + (self._starting is not None)}

    def _for_this_server(self, handler: Any) -> Any:
        """Return the function to call.

        A handler that must know its server has, in its class, a method
        `__asyncserver_handler__(server)`, which returns the function. If it runs in threads it also
        has `pool_stats()`, which counts them by "threads", "waiting" and "starved". Other
        attributes of a handler are never read: they are the program's own, or a mock's.
        """
        function = handler
        if hasattr(type(handler), "__asyncserver_handler__"):
            self._pool_stats = getattr(handler, "pool_stats", None)
            function = handler.__asyncserver_handler__(self)
        if self._loop.get_debug() and not is_protocol_handler(handler):
            return with_timed_steps(function, self._report_step)
        return function

    def _report_step(self, name: str, source: AnySource, seconds: float) -> None:
        """In debug mode, warn of a handler that blocked the loop; asyncio names only a callback."""
        loop: Any = self._loop  # AbstractEventLoop does not promise slow_callback_duration
        if seconds > loop.slow_callback_duration:
            message = "handler %s of %s kept the event loop busy for %.3f s, and all others waiting"
            peer = format_address(source.peer_address)
            _logger.warning(message, name, peer, seconds, extra=about(self, source, duration=seconds))

    # -- the life of a handler

    def _start(self, handler: Run[AnySource], source: AnySource, name: str | None = None) -> None:
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
            self._settle_task(task, source)
        else:
            self._keep(task, source)
        del task  # holds its error, whose traceback may later hold this frame (f_back): a cycle

    def _keep(self, task: asyncio.Task[object], source: AnySource) -> None:
        """Keep a handler that waits until it ends."""
        self._live[task] = source
        task.add_done_callback(self._done_callback, context=self._context)

    def _on_handler_done(self, task: asyncio.Task[object]) -> None:
        source = self._live.pop(task, None)
        if source is not None:  # else `_insist` has given it up
            self._settle_task(task, source)
        elif not task.cancelled():
            task.exception()  # looked at, so that asyncio does not log it

    def _settle_task(self, task: asyncio.Task[object], source: AnySource) -> None:
        try:
            exc = task.exception()
        except asyncio.CancelledError:
            exc = asyncio.CancelledError()
        self._settle(source, exc, task.result() if exc is None else None)

    def _settle(self, source: AnySource, exc: BaseException | None, result: object) -> None:
        """Count how a handler ended, log its error, and close what it handled."""
        self._count["completed" if exc is None else self._judge(exc, source)] += 1
        try:
            closing = self._close_source(source)
        except Exception as error:
            self._report(error, source)
            closing = None
        if closing is None:
            self._release(source)
            return
        task = start_task(closing, self._loop, self._context)
        self._closing_sources[task] = source
        task.add_done_callback(self._on_source_closed)

    def _judge(self, exc: BaseException, source: AnySource) -> str:
        """Log what a handler raised; returns the counter that its end belongs to."""
        outcome, fault = outcome_of(exc), fault_of_peer(exc)
        if fault and not self._blame_peer(fault, exc, source):
            outcome = "failed"
        if outcome == "failed":
            self._report(exc, source)
        return outcome

    def _blame_peer(self, fault: str, exc: BaseException, source: AnySource) -> bool:
        """Log what a peer did; false if peers of this server cannot do it."""
        return False

    def _close_source(self, source: AnySource) -> Coroutine[Any, Any, object] | None:
        """Close what a handler handled; a coroutine that it returns does what must wait."""

    def _abandon(self, source: AnySource, closing: asyncio.Task[object]) -> bool:
        """Close now: the time to do it politely is over. True if the peer lost something."""
        source.abort()
        return False

    def _on_source_closed(self, task: asyncio.Task[object]) -> None:
        # abort() has an effect only if the task was cancelled before its first step.
        (source := self._closing_sources.pop(task)).abort()
        if not task.cancelled() and outcome_of(exc := task.exception()) == "failed":
            self._report(exc, source)
        self._release(source)

    def _release(self, source: AnySource) -> None:
        """Free the place of a source. Derived classes do more."""
        self._tell_change()

    def _report(self, exc: BaseException | None, source: AnySource) -> None:
        """Log a handler's error once, and pass it to `on_error`, whose errors are logged too."""
        if exc is None or isinstance(exc, SystemExit | KeyboardInterrupt):
            return  # the last two end the loop, and come out of it
        add_hints(exc)
        _logger.error(
            "handler of %r failed", source.peer_address, exc_info=exc, extra=about(self, source, outcome="failed")
        )
        if self._kept_errors is not None:
            exc.add_note(f"in the handler of {format_address(source.peer_address)} on {self.label}")
            self._kept_errors.append(exc)
        self._error_calls.call(exc, source, about(self, source))

    # -- closing

    def _handlers_ended(self) -> int:
        """Handlers that have ended, and whose sources are closed."""
        ended = sum(self._count[outcome] for outcome in ("completed", "failed", "cancelled", "timed_out"))
        return ended - len(self._closing_sources)

    def _busy(self) -> bool:
        return bool(self._live or self._closing_sources or self._error_calls.running)

    def _occupied(self) -> int:
        """Count the places taken by handlers; a handler that waits in `close()` takes none."""
        occupied = len(self._live) + len(self._closing_sources)
        return occupied - sum(task in self._live for task in self._callers) if self._callers else occupied

    def _unfinished(self) -> bool:
        return self._occupied() > 0 or bool(self._error_calls.running - self._callers)

    def _begin_drains(self) -> None:
        self._undelivered_before = self._count["undelivered"]
        for source in tuple(self._live.values()):
            source._begin_drain()

    async def _insist(self) -> tuple[int, int]:
        left = {task: source for task, source in self._live.items() if task not in self._callers}
        telling = self._error_calls.running - self._callers
        for task in (*left, *telling):
            task.cancel()
        # Connections closed in this drain, after their handlers, before the peers had taken all.
        cut_off = self._count["undelivered"] - self._undelivered_before
        cut_off += sum([self._abandon(source, task) for task, source in tuple(self._closing_sources.items())])
        self._drop_waiting()
        end, ending = self._loop.time() + self._cancel_grace, list(left)

        def ended() -> bool:  # looks at each task about once, however many there are
            while ending and ending[-1] not in self._live:
                ending.pop()
            return not (ending or self._closing_sources or telling & self._error_calls.running)

        await self._until(ended, lambda: end)
        given_up = {task: source for task, source in left.items() if task in self._live}
        for task, source in given_up.items():
            _logger.warning("handler of %r ignored its cancellation", source.peer_address, extra=about(self, source))
            source.abort()
            give_up(task)
            del self._live[task]
            self._count["cancelled"] += 1
            self._release(source)
        return len(left) - len(given_up), len(given_up) + cut_off
