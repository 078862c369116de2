"""background: servers in a thread with a loop of its own, beside a program that blocks."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, overload

from .._logger import logger as _logger
from ..arguments import check_seconds
from ..leaving.executor import CallExecutor
from ..leaving.exits import Exits
from ..leaving.threads import described
from ..reports.logs import about
from ..starting import check_servings, give_up
from .lifespan import Life
from .loops import loop_factory

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ..servers.server import Server
    from ..starting import Serving
    from .lifespan import Lifespan
    from .loops import LoopFactory

__all__ = ["background"]

# Seconds beyond the drain's deadline: handlers that are cancelled have two, then calls in threads
# have two, and a worker's lifespan has five.
_GRACE = 5.0
# Seconds for what is left then, and has been cancelled.
_LAST_GRACE = 5.0


@overload
def background(
    serving: Serving,
    /,
    *,
    loop: str | LoopFactory = "auto",
    lifespan: Lifespan | None = None,
    drain_timeout: float | None = None,
    raise_errors: bool = False,
) -> contextlib.AbstractContextManager[Server, None]: ...
@overload
def background(
    serving: Serving,
    another: Serving,
    /,
    *more: Serving,
    loop: str | LoopFactory = "auto",
    lifespan: Lifespan | None = None,
    drain_timeout: float | None = None,
    raise_errors: bool = False,
) -> contextlib.AbstractContextManager[tuple[Server, ...], None]: ...
def background(
    *servings: Serving,
    loop: str | LoopFactory = "auto",
    lifespan: Lifespan | None = None,
    drain_timeout: float | None = None,
    raise_errors: bool = False,
) -> contextlib.AbstractContextManager[Any, None]:
    """Serve in a thread with a loop of its own, as long as a `with` block runs.

    Example::

        with asyncserver.background(serve(handler, "127.0.0.1", 0)) as server:
            sock = socket.create_connection(server.addresses[0])

    All addresses are bound when the block begins; it gets the Server, or a tuple of them if there
    are several servings. When it ends, for whatever reason, they drain, and the thread has ended.
    An exception that ends the block is kept, and gets a note of what else has failed. After Ctrl-C
    the drain comes first; a second one ends it at once.

    * The block may read `server.addresses`, `server.stats()` and the other readings. What acts,
      such as `close()`, is refused there: `server.loop.call_soon_threadsafe(server.pause)`,
      `asyncio.run_coroutine_threadsafe(server.close(), server.loop).result()`.
    * Handlers see the context variables as they are when the block begins, and what `lifespan`
      sets. What they set themselves, the block does not see.
    * No signals are handled. SystemExit and KeyboardInterrupt in a handler end the servers, and are
      raised at the end of the block.
    * A program that ends inside of the block, such as a notebook's, drains first. A process that is
      forked in it has no such servers.

    A block in a coroutine holds up its loop until the servers are bound, and while they drain:
    write `async with serve(...)` there.

    Args:
        servings: what `serve()` and `serve_datagrams()` return, one or several.
        loop: as for `run()`: uvloop where it is installed, unless told otherwise.
        lifespan: as for `run()`; what it raises is raised where the block begins, or at its end.
        drain_timeout: seconds for handlers to end after the block; None for each server's own.
            Those that run on are cancelled, and the log says how many.
        raise_errors: raise at the end of the block what handlers have raised, as an ExceptionGroup,
            each with a note whose handler it was. Those are the errors for which `on_error` is
            called: a peer that leaves, or sends too long a line, is none.

    Raises:
        TypeError, ValueError: at once, for wrong arguments.
        BindError: where the block begins, as for `serve()`; then nothing is left open.
        ExceptionGroup: at its end, with `raise_errors`.
        TimeoutError: at its end, if a handler blocks the loop, and the thread is left behind; it
            says where that is.
    """
    try:
        check_servings("background", servings)
        check_seconds("drain_timeout", drain_timeout, zero=True, none=True)
        life = Life(lifespan)
        life.check()
        return _Background(servings, loop_factory(loop), life, drain_timeout, raise_errors=raise_errors)
    except BaseException:
        give_up(servings)
        raise


class _Background:
    """What `background()` returns. Methods with `async` run in the thread, the others outside."""

    def __init__(
        self,
        servings: tuple[Serving, ...],
        factory: LoopFactory,
        life: Life,
        drain_timeout: float | None,
        *,
        raise_errors: bool,
    ) -> None:
        self._servings = servings
        self._factory = factory
        self._life = life
        self._drain_timeout = drain_timeout
        longest = max(serving.drain_timeout for serving in servings) if drain_timeout is None else drain_timeout
        self._longest = min(longest, threading.TIMEOUT_MAX - _GRACE - _LAST_GRACE)
        self._errors: list[BaseException] | None = [] if raise_errors else None
        self._thread: threading.Thread | None = None
        self._process = 0
        self._begun = threading.Event()
        self._ended = threading.Event()
        # Set by the thread before these events:
        self._servers: tuple[Server, ...] = ()
        self._failure: BaseException | None = None
        self._main: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any], asyncio.Event] | None = None
        self._cancelled = False

    def __enter__(self) -> Any:
        if self._thread is not None:
            raise RuntimeError("this background() has been used already: call background() again")
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="asyncserver-background", daemon=True)
        self._process = os.getpid()
        try:
            self._thread.start()
            self._begun.wait()
        except BaseException:  # Ctrl-C; or there can be no more threads
            self._cancel()
            self._ended.wait(_LAST_GRACE if self._thread.ident else 0)
            give_up(self._servings)
            raise
        if not self._servers:
            self._thread.join()
            self._raise_failure()
        atexit.register(self.__exit__, None, None, None)
        return self._servers[0] if len(self._servers) == 1 else self._servers

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if os.getpid() != self._process:
            return  # a fork has taken none of it along
        atexit.unregister(self.__exit__)
        self._finish()
        self._note_errors(exc)
        if self._failure is not None and exc is None:
            self._raise_failure()
        elif self._failure is not None and exc is not None:
            _logger.error("background(): beside what has ended its block: %r", self._failure)
            exc.add_note(f"background(): {self._failure!r}")

    if not TYPE_CHECKING:  # which refuses `async with` by itself

        def __aenter__(self) -> None:
            """Raise, and say what to write: where a loop runs, no other thread is needed."""
            give_up(self._servings)
            raise TypeError(
                "`async with background(...)`: in a coroutine write `async with serve(...) as server`, without "
                "background(); in a program without a loop `with background(...) as server`"
            )

        def __aexit__(self, *exc: object) -> None:
            """Never called; without it Python does not call `__aenter__()`."""

    # -- outside of the thread

    def _finish(self) -> None:
        """Drain, and wait for the thread's end; if it does not come, that is the failure."""
        assert self._thread is not None
        try:
            self._tell(lambda loop, _, stop: loop.call_soon_threadsafe(stop.set))
            if self._ended.wait(self._longest + _GRACE):
                self._thread.join()
                return
        except BaseException:  # a second Ctrl-C
            self._cancel()
            self._ended.wait(_LAST_GRACE)
            raise
        self._cancel()
        if not self._ended.wait(_LAST_GRACE):
            waited = self._longest + _GRACE + _LAST_GRACE
            self._failure = TimeoutError(
                f"background(): its servers have not closed {waited:g} seconds after the block, and are left behind, "
                f"with the thread {described(self._thread)}"
            )

    def _cancel(self) -> None:
        """End what runs in the thread at once."""
        self._cancelled = True
        self._tell(lambda loop, task, _: loop.call_soon_threadsafe(task.cancel))

    def _tell(self, call: Callable[..., object]) -> None:
        if self._main is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                call(*self._main)

    def _note_errors(self, exc: BaseException | None) -> None:
        """Make handlers' errors the failure, or notes of what is raised anyway."""
        if not self._errors:
            return
        raised = self._failure if exc is None else exc
        if raised is None:
            what = "an error" if len(self._errors) == 1 else f"{len(self._errors)} errors"
            self._failure = BaseExceptionGroup(f"{what} of handlers in background()", self._errors)
        else:
            for error in self._errors:
                raised.add_note(f"background(): {error!r} {' '.join(error.__notes__)}")
        self._errors.clear()  # their tracebacks hold much

    def _raise_failure(self) -> None:
        assert self._failure is not None
        failure, self._failure = self._failure, None
        try:
            raise failure
        finally:
            del failure  # its traceback refers to this frame: a cycle

    # -- in the thread

    def _run(self) -> None:
        _forget_library()
        drained = False
        try:
            with asyncio.Runner(loop_factory=self._factory) as runner:
                exits = Exits()
                exits.run(runner, self._serve(exits))
                drained = True
        except BaseException as exc:
            # As Python 3.12 ends, not even the thread starts in which a loop closes its executor.
            if not (drained or self._cancelled):
                self._failure = exc
        finally:
            give_up(self._servings)
            self._begun.set()
            self._ended.set()

    async def _serve(self, exits: Exits) -> None:
        """Serve until told to stop, then drain."""
        loop, task, stop = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()
        assert task is not None
        self._main = loop, task, stop
        if self._cancelled:
            return
        calls = CallExecutor(loop)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._life)  # before the servers, so that it is left after them
            for serving in self._servings:
                serving.hold()
            servers = [await stack.enter_async_context(serving) for serving in self._servings]
            await self._life.enter(servers)
            for server in servers:
                server._kept_errors = self._errors
                server._begin()
            self._servers = tuple(servers)
            exits.leave = lambda _: stop.set()
            self._begun.set()
            try:
                await stop.wait()
            finally:
                calls.end_by(loop.time() + self._longest)
                await asyncio.gather(*map(self._close, servers))
        await calls.finish()

    async def _close(self, server: Server) -> None:
        report = await server.close(self._drain_timeout)
        if report.cancelled:
            _logger.warning(
                "background(): handlers of %s that still ran when the drain was over, and were cancelled: %d; they "
                "hear of a drain by the end of their stream, and by stream.closing",
                server.label,
                report.cancelled,
                extra=about(server),
            )


def _forget_library() -> None:
    """Let anyio find out that asyncio runs here: its context variable may say what runs outside."""
    if "sniffio" in sys.modules:
        sys.modules["sniffio"].current_async_library_cvar.set(None)
