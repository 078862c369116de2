"""InlineRunner: handlers of many datagrams in one task, as long as they do not wait; their answers.

A task for each datagram would cost more than all else that we do for it. Most handlers answer
without waiting, and none of these can see in which task it ran. So one task takes datagrams one
after the other, and runs their handlers in itself. Its states, and what leads to the next:

    (none)  -> ready            `_prepare()` has started it; it waits at `_next_batch`
    ready   -> running          the socket is readable: `_serve_batch()` wakes it, at once
    running -> running          a handler has ended without waiting; the next one begins
    running -> ready            there is no datagram left; `wake()` returns
    running -> the handler's    a handler waits, and the task with it; `wake()` returns
    running -> over             the next handler could see that there was one before: by an error,
                                by a cancellation asked for, by a context variable that was set
    ready   -> over             the drain begins, or the program cancels all tasks

`current` is the datagram whose handler runs in the runner's task. It is cleared by the first to see
what becomes of that handler:

* the task, when the handler has ended: the task is still the runner's;
* `_serve_batch()`, when `wake()` has returned and `current` is still set: the handler waits, and
  the server keeps the task, as the handler's. When that ends at last, the task finds that `current`
  is not its datagram, and ends like it.

So a handler has one task from beginning to end, and shares it only with handlers that have ended.
When the task is the handler's, or over, a new one is prepared, and the rest of the batch gets tasks
of its own. So does a batch that finds no task ready: in a drain, and before Python 3.12, where a
task does not start at once.

What handlers return is sent when the batch is over, so that a peer wakes up once for many answers.
If a handler sends something itself, what those before it have returned goes first.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from typing import TYPE_CHECKING, Any

from ..net.tasks import start_task
from ..net.waiter import Waiter
from .batch_reader import BatchReader, Handling

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from ..kernel.packet_info import Control
    from ..listening.binding import BoundSocket
    from ..net.addresses import Address
    from .datagram import Buffer, Datagram


class InlineRunner(BatchReader):
    """Runs handlers for datagrams. The arguments are BatchReader's.

    Attributes:
        current: the datagram whose handler runs in the runner's task.
    """

    sent: int  # again, for pyright

    def __init__(self, server: Handling, bound: BoundSocket, max_datagram_size: int) -> None:
        super().__init__(server, bound, max_datagram_size)
        self._next_batch = Waiter(weakref.ref(server._loop), "receiving datagrams on")
        self._task: asyncio.Task[object] | None = None
        self.current: Datagram | None = None
        self._answers: list[Datagram] = []  # whose answers are not sent yet

    @property
    def active(self) -> int:
        """Datagrams that were taken, and that the server neither keeps nor has settled."""
        return len(self._answers) + (self.current is not None)

    def _serve_batch(self) -> None:
        try:
            self._next_batch.wake()
        except BaseException:  # it ends the program, which shows it
            assert self._task is not None
            self._task.exception()
            raise
        finally:
            self._send_answers()
        if self._next_batch.busy:
            return
        if self.current is not None:
            self._give_away(self.current)
        while (datagram := self._take()) is not None:
            self._server._start(self._server._run, datagram)
        self._prepare()

    def _give_away(self, datagram: Datagram) -> None:
        task, self._task, self.current = self._task, None, None
        assert task is not None
        self._server._keep(task, datagram)

    def _prepare(self) -> None:
        if self._remaining is None and (self._task is None or self._task.done()):
            self._task = start_task(self._run_handlers(), self._loop, self._server._context)

    def _batch(self) -> Iterator[Datagram]:
        """The datagrams of a batch, each taken when its turn comes."""
        return iter(self._take, None)

    async def _run_handlers(self) -> object:
        server = self._server
        task = asyncio.current_task()
        assert task is not None
        copy_context = contextvars.copy_context
        context = copy_context()
        while True:
            await self._next_batch
            if self._remaining is not None:
                return None
            handler = server._run
            for datagram in self._batch():
                self.current = datagram
                try:
                    datagram.answer = await handler(datagram)
                except BaseException as exc:
                    if self.current is not datagram:
                        del task  # the error's traceback holds this frame: a cycle
                        raise
                    self.current = None
                    server._settle(datagram, exc, None)
                    if isinstance(exc, SystemExit | KeyboardInterrupt):  # others are logged
                        raise
                    return None
                if self.current is not datagram:
                    return datagram.answer
                self.current = None
                self._answers.append(datagram)
                if task.cancelling() or copy_context() != context:
                    return None

    def _send_answers(self) -> None:
        answers, self._answers = self._answers, []
        sock, sent, quick = self.sock, 0, False
        for datagram in answers:
            answer = datagram.answer
            try:
                if type(answer) is not bytes:
                    quick = False
                elif datagram.control is None:  # `try_send()`, inlined
                    sock.sendto(answer, datagram.address)
                    self.sent += 1
                    quick = True
                else:
                    quick = self.try_send(answer, datagram.address, datagram.control)
            except Exception:  # `_settle` gets it again, and waits for room, or logs it
                quick = False
            if quick:
                sent += 1
            else:
                self._server._settle(datagram, None, answer)
        if sent:
            self._server._count_answered(sent)

    def send(self, data: Buffer, address: Address, control: Control | None) -> Coroutine[Any, Any, None]:
        """See Endpoint; what handlers before have returned goes first."""
        self._send_answers()
        return super().send(data, address, control)

    def drain(self) -> None:
        """See BatchReader."""
        super().drain()
        self._next_batch.wake_soon()  # the task ends
