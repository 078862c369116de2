"""RingRunner: an InlineRunner whose socket is read and answered in C, many datagrams at a time.

    kernel's queue -> ring -> Batch: handler, handler, ... -> answers

The ring is the end of the kernel's queue: see speedups/datagrams.h. What it holds when reading
pauses or ends is for nobody else to read, and no event of the loop tells of it.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
from typing import TYPE_CHECKING, Any, TypeAlias

from ..kernel.features import tell_missing
from ..kernel.packet_info import pack_control, reply_control, sent_to_many, unpack_control
from ..net.readers import runs_again
from ..speedups.extension import accelerate, accelerated
from .datagram import Datagram, NotForUs
from .inline_runner import InlineRunner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from ..kernel.packet_info import Control
    from ..listening.binding import BoundSocket
    from .batch_reader import Handling, Run

    #: The control data for an answer, as Python and as the kernel has them; or NotForUs.
    Judgement: TypeAlias = tuple[Control | type[NotForUs] | None, bytes]

_UDP = {socket.AF_INET, socket.AF_INET6}
_LONGEST = 0xFFFF  # its header has 16 bits for the length: RFC 768


@accelerate
class Ring:
    """Receives and sends for its reader: speedups/ring.c. There is none in pure Python."""

    if TYPE_CHECKING:
        _held: int  # datagrams in the ring

        def _open(
            self,
            size: int,
            datagram: type[Datagram],
            not_for_us: type[NotForUs],
            judge: Callable[[bytes], Judgement] | None,
        ) -> None:
            """Have room for datagrams of this size; OSError if there is no recvmmsg."""

        def _receive_next(self) -> Datagram:
            """See `Endpoint._receive`."""

        def _send_batch(self, answers: list[tuple[Datagram, object]]) -> int:
            """Send answers, in order, up to one that Python has to send; returns how many."""


@accelerate
class Batch:
    """Runs handlers in one task: speedups/batch.c. There is none in pure Python."""

    if TYPE_CHECKING:
        handler: Run  # what is called for each datagram
        datagram: Datagram | None  # whose handler began last
        over: bool  # whether the task has to end

        def __init__(self, runner: Ring, cancelling: Callable[[], int], context: contextvars.Context) -> None: ...

        def __await__(self) -> Generator[Any, None, object]: ...


class RingRunner(Ring, InlineRunner):
    """Runs handlers for datagrams. The arguments are InlineRunner's."""

    current: Datagram | None  # again, for pyright

    def __init__(self, server: Handling, bound: BoundSocket, max_datagram_size: int) -> None:
        super().__init__(server, bound, max_datagram_size)
        try:
            size = min(max_datagram_size, _LONGEST)
            self._open(size, Datagram, NotForUs, self._judge if self._asks_destination else None)
        except OSError:  # then the ring stays empty
            tell_missing("recvmmsg", "datagrams are received one at a time")
        else:
            self._receive = self._receive_next

    def _judge(self, raw: bytes) -> Judgement:
        control = unpack_control(raw)
        if self._bound.twin and sent_to_many(control):
            return NotForUs, b""
        answer = reply_control(control)
        return answer, pack_control(answer or [])

    # -- what the ring holds

    def resume(self) -> None:
        """See BatchReader."""
        super().resume()
        self._look_again()

    def _on_readable(self) -> None:
        try:
            super()._on_readable()
        finally:
            self._look_again()

    def _look_again(self) -> None:
        if self._held and self._watching and self._remaining is None:
            self._loop.call_soon(self._on_readable)

    def drain(self) -> None:
        """See BatchReader; what the ring holds is ours, also where another process reads on."""
        super().drain()
        assert self._remaining is not None
        self._remaining += self._held

    def close(self) -> None:
        """See Endpoint; what the ring holds is counted as dropped."""
        self.pause()
        for _ in range(self._held):
            try:
                self._receive()
            except NotForUs:
                continue
            self._dropped += 1
        super().close()

    # -- handlers and their answers

    async def _run_handlers(self) -> object:
        task = asyncio.current_task()
        assert task is not None
        batch = Batch(self, task.cancelling, contextvars.copy_context())
        del task  # an error's traceback holds this frame: a cycle
        try:
            while True:
                await self._next_batch
                if self._remaining is not None:
                    return None
                batch.handler = self._server._run
                result = await batch
                if batch.over:
                    return result
        except BaseException as exc:
            datagram = batch.datagram
            if datagram is None or self.current is not datagram:
                raise
            self.current = None
            self._server._settle(datagram, exc, None)
            if isinstance(exc, SystemExit | KeyboardInterrupt):  # others are logged
                raise
            return None
        finally:
            del batch

    @staticmethod
    async def _awaited(made: Awaitable[object] | StopIteration) -> object:
        """For the batch: what a call made that is no coroutine, or raised, which would end it."""
        if isinstance(made, StopIteration):
            raise RuntimeError("the handler raised StopIteration") from made  # noqa: TRY004 - it is not the type
        return await made

    def _send_answers(self) -> None:
        answers, self._answers = self._answers, []
        together = 0
        while answers:
            batch = self._send_batch(answers)
            together += batch
            del answers[:batch]
            if answers:
                self._answers = [answers.pop(0)]
                super()._send_answers()
        if together:
            self._server._count_answered(together)


def make_runner(server: Handling, bound: BoundSocket, max_datagram_size: int) -> InlineRunner:
    """Make the runner for a socket.

    A ring is for UDP, and for the system's own kind of socket. What it holds waits for the handler
    that runs; so there is none where others read the same queue, or a handler may run the loop.
    """
    able = accelerated and type(bound.sock) is socket.socket and bound.sock.family in _UDP
    kind = RingRunner if able and not (bound.contended or runs_again(server._loop)) else InlineRunner
    return kind(server, bound, max_datagram_size)
