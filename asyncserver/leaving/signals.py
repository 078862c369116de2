"""Signals that end a program: closing_on_signals, and StopSignals, on which run() stands too."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import threading
from typing import TYPE_CHECKING, ClassVar

from .._logger import logger as _logger
from ..servers.server import Server
from .stopping import Stage, Stopping
from .wakeups import watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

__all__ = ["closing_on_signals"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def closing_on_signals(*servers: Server) -> contextlib.AbstractAsyncContextManager[None]:
    """Close servers on SIGTERM and SIGINT, in a program that has a loop of its own.

    Example::

        async with serve(handler, "127.0.0.1", 8080) as server, closing_on_signals(server):
            await server.wait_closed()
        # here they have drained, whatever has ended the block

    The first signal closes all of them with their drain; a second one cancels what is left at once.
    The same signal twice within 0.1 seconds is one, and the block ends when these are over. It is
    not cancelled: wait in it for the servers. If it waits for something else when they have closed,
    the next signal cancels that, and what follows the block goes on.

    When the block ends, for whatever reason, the servers are closed with their drain, while signals
    do what they did; then the handlers that the signals had are put back. (uvloop does not tell
    which handlers it has: those of `loop.add_signal_handler()` are lost there.) A signal concerns
    all such blocks that are entered, and `run()`.

    Args:
        servers: what `async with serve(...)` or `await serve(...).start()` gave, one or several.

    Raises:
        TypeError: at once, if they are something else.
        RuntimeError: on entry, outside the main thread, where Python delivers no signals; in
            another loop than the servers'.
    """
    for server in servers:
        if not isinstance(server, Server):
            raise TypeError(
                f"closing_on_signals() expects running servers, such as `async with serve(...) as server` or "
                f"`server = await serve(...).start()` gives; got {server!r}"
            )
    if not servers:
        raise TypeError("closing_on_signals() needs a server: closing_on_signals(server); got none")
    return _closing(servers)


@contextlib.asynccontextmanager
async def _closing(servers: Sequence[Server]) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "closing_on_signals() handles signals: use it in the main thread, or call server.close() where you are told"
        )
    if any(server.loop is not loop for server in servers):
        raise RuntimeError("closing_on_signals() got a server of another loop: use it in the loop that serves")
    block = _Block(servers)
    with block.handled():
        try:
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(block.outlast_echo)
                for server in servers:
                    stack.push_async_exit(server)
                try:
                    yield
                finally:
                    block.close(None)  # all at once; the stack waits for one after the other
        except asyncio.CancelledError:
            if not block.has_cancelled():
                raise


class StopSignals:
    """SIGINT and SIGTERM close servers with their drain; once more, at once."""

    # Those that are handled now: each signal is for all of them. Only in the main thread.
    _handling: ClassVar[list[StopSignals]] = []
    _handlers: ClassVar[contextlib.ExitStack] = contextlib.ExitStack()

    def __init__(self, servers: Sequence[Server] = (), drain_delay: float = 0.0) -> None:
        self._servers = servers
        self._stopping = Stopping(drain_delay)
        self._loop = asyncio.get_running_loop()
        self._closing: list[asyncio.Task[object]] = []

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals, in the main thread; then put back what handled them before."""
        if all(one._loop is not self._loop for one in self._handling):
            self._handling.clear()  # what is in it has been left by a loop that has ended
            self._handlers.pop_all()
            calls = {number: functools.partial(self._stop_all, number) for number in STOP_SIGNALS}
            self._handlers.enter_context(replaced(self._loop, calls))
        self._handling.append(self)
        try:
            yield
        finally:
            if self in self._handling:
                self._handling.remove(self)
                if not self._handling:
                    self._handlers.close()

    @classmethod
    def _stop_all(cls, number: signal.Signals) -> None:
        for one in list(cls._handling):
            if not one._stopping.is_echo(number):
                one._stop(number.name)

    def _stop(self, cause: str) -> None:
        """React to a signal."""
        self.close(None if self._stopping.advance(cause) is Stage.DRAINING else 0.0)

    async def outlast_echo(self) -> None:
        """Wait until the last signal cannot come twice: the handler that is put back may kill."""
        await asyncio.sleep(self._stopping.echo_left)

    def close(self, timeout: float | None) -> None:
        """Begin to close the servers, with `timeout` seconds for their drain; None: their own."""
        self._closing.extend([self._loop.create_task(server.close(timeout)) for server in self._servers])


class _Block(StopSignals):
    """Those of `closing_on_signals()`: they also end what waits there after the servers."""

    def __init__(self, servers: Sequence[Server]) -> None:
        super().__init__(servers)
        self._stopping.start()
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        self._cancelled = 0

    def _stop(self, cause: str) -> None:
        if self._task is None or not all(server.closed for server in self._servers):
            super()._stop(cause)
            return
        _logger.warning("%s: the servers are closed; cancelling what closing_on_signals() still waits for", cause)
        self._cancelled += 1
        self._task.cancel()

    def has_cancelled(self) -> bool:
        """Whether it has cancelled the block, and nobody else has. Call it once."""
        left = self._cancelling
        for _ in range(self._cancelled):
            assert self._task is not None
            left = self._task.uncancel()
        return self._cancelled > 0 and left <= self._cancelling


@contextlib.contextmanager
def replaced(loop: asyncio.AbstractEventLoop, calls: Mapping[signal.Signals, Callable[[], object]]) -> Iterator[None]:
    """Let a loop handle signals; then put back what handled them before."""
    of_loop = dict(getattr(loop, "_signal_handlers", ()))  # uvloop does not show them
    with contextlib.ExitStack() as stack:
        for number, call in calls.items():
            before = signal.getsignal(number)
            try:
                loop.add_signal_handler(number, call)
            except NotImplementedError:
                stack.enter_context(watched(loop, calls))
                break
            stack.callback(_put_back, loop, number, before, of_loop.get(number))
        yield


def _put_back(
    loop: asyncio.AbstractEventLoop, number: signal.Signals, before: object, of_loop: asyncio.Handle | None
) -> None:
    # rloop 0.5 raises it always, and what is put back here is all that is left to do.
    with contextlib.suppress(AttributeError):
        loop.remove_signal_handler(number)
    if before is not None:  # one that is not Python's
        signal.signal(number, before)  # type: ignore[arg-type]  # what getsignal() has returned
    if of_loop is not None:
        loop.add_signal_handler(number, of_loop._run)
