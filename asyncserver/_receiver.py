"""Receiver: one task in which the handlers of many datagrams run, as long as they do not wait.

A task for each datagram would cost more than all else that we do for it. Most handlers answer without waiting, and
nobody can tell in which task such a handler ran. So a receiver takes datagrams one after the other and runs their
handlers in its own task. The first handler that waits keeps the task, as its own from then on, and the rest of the
batch gets a task each. So does whatever could tell the next handler of the one before: a context variable that was
set, a cancellation that was asked for, an error.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any

from ._tasks import start_task
from ._waiter import Waiter

if TYPE_CHECKING:
    from .datagram import Endpoint
    from .datagram_server import DatagramServer


class Receiver:
    """Runs handlers of an endpoint's datagrams.

    Args:
        server: whose handlers they are.
        endpoint: where the datagrams come from.
    """

    def __init__(self, server: DatagramServer, endpoint: Endpoint) -> None:
        self._server = server
        self._endpoint = endpoint
        self._ready = Waiter(server._loop, "receiving datagrams on")
        self._task: asyncio.Task[Any] | None = None
        self._closed = False

    def prepare(self) -> None:
        """Have a task that waits for datagrams."""
        if not self._closed and (self._task is None or self._task.done()):
            self._task = start_task(self._run(), self._server._loop, self._server._context)

    def run(self) -> bool:
        """Run handlers until the batch is over or one of them waits; true if it is over.

        From the loop's I/O callbacks only. Does nothing where no task is prepared, or (before Python 3.12, where tasks
        do not start at once) not yet.
        """
        task, server = self._task, self._server
        if task is None:
            return False
        try:
            self._ready.wake()
        except BaseException:  # the end of the program, told by itself
            task.exception()
            raise
        if (datagram := server._starting) is not None:
            self._task = server._starting = None
            server._keep(task, datagram)
        return self._ready.busy  # it waits for the next batch

    def close(self) -> None:
        """End the task, unless a handler has it."""
        self._closed = True
        self._ready.wake_soon()

    async def _run(self) -> object:
        server, take = self._server, self._endpoint.take
        task: Any = asyncio.current_task()
        context = contextvars.copy_context()
        while True:
            await self._ready
            if self._closed:
                return None
            handler = server._run  # it may have changed since the last batch
            while (datagram := take()) is not None:
                server._starting = datagram
                try:
                    result = await handler(datagram)
                except BaseException as exc:
                    if server._starting is not datagram:  # it has waited, and the task is its own
                        raise
                    server._starting = None
                    server._settle(datagram, exc, None)
                    if isinstance(exc, SystemExit | KeyboardInterrupt):  # others have been told of
                        raise
                    return None
                if server._starting is not datagram:
                    return result
                server._starting = None
                server._answers.append((datagram, result))
                if task.cancelling() or contextvars.copy_context() != context:
                    return None
