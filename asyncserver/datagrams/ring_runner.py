"""RingRunner: an InlineRunner whose socket is read and answered in C, many datagrams at a time.

    kernel's queue -> ring -> handler, handler, ... -> answers

The ring is the end of the kernel's queue. What it holds nobody has received: it is not counted, and
a drain and a close treat it like what the kernel holds. But it is for nobody else to read, and no
event of the loop tells of it.
"""

from __future__ import annotations

import errno
import functools
import mmap
import operator
import socket
from typing import TYPE_CHECKING

from ..kernel.features import tell_missing
from ..kernel.packet_info import pack_control, reply_control, sent_to_many, unpack_control
from ..net.readers import runs_again
from ..speedups.extension import accelerated
from .datagram import Datagram, NotForUs
from .inline_runner import InlineRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..kernel.packet_info import Control
    from ..listening.binding import BoundSocket
    from .batch_reader import Handling

_UDP = {socket.AF_INET, socket.AF_INET6}
_LONGEST = 0xFFFF  # its header has 16 bits for the length: RFC 768
_MOST = 32  # datagrams that are received with one call


class RingRunner(InlineRunner):
    """Runs handlers for datagrams. The arguments are InlineRunner's."""

    sent: int  # again, for pyright

    def __init__(self, server: Handling, bound: BoundSocket, max_datagram_size: int) -> None:
        super().__init__(server, bound, max_datagram_size)
        self._ring: Iterator[Datagram] = iter(())
        self._held = 0  # how many were set aside in it
        size = _MOST * min(max_datagram_size, _LONGEST)
        self._memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # touched as needed
        self._judge = functools.partial(_judge, bound.twin) if self._asks_destination else None
        self._receive = self._receive_next

    # -- what the ring holds

    @property
    def received(self) -> int:
        """See Endpoint. `_received` has what the ring holds: so a datagram's turn costs nothing."""
        return self._received - operator.length_hint(self._ring)

    def _fill(self) -> None:
        """Take from the kernel what is left of the batch; in a drain, where fewer may do, one."""
        wanted = self._left + 1 if self._remaining is None else 1  # the next one is not in `_left`
        taken = Datagram._receive_many(self, self.sock.fileno(), wanted, self._memory, self._judge)
        if len(taken) < wanted:  # to be told that there are no more would cost another call
            self._left = len(taken) - 1
        if self._bound.twin:
            taken = [one for one in taken if one.control is not NotForUs]  # type: ignore[comparison-overlap]
        self._received += len(taken)
        self._ring = iter(taken)

    def _batch(self) -> Iterator[Datagram]:
        """See InlineRunner. After a pause, and after an error, each is taken by itself."""
        if self._held:
            return super()._batch()
        self._left -= 1
        try:
            self._fill()
        except BlockingIOError:
            self._left = 0
        except OSError as exc:
            self._log_error(exc)
            return super()._batch()
        return self._ring

    def _receive_next(self) -> Datagram:
        """See `Endpoint._receive`."""
        if not operator.length_hint(self._ring):
            self._fill()
        for datagram in self._ring:
            self._received -= 1  # the caller counts it, or drops it
            return datagram
        raise NotForUs

    def _set_aside(self) -> None:
        """End the batch that runs, if one does: nothing is left in its iterator."""
        rest = [*self._ring]
        self._held = len(rest)
        self._ring = iter(rest)

    def pause(self) -> None:
        """See BatchReader."""
        super().pause()
        self._set_aside()

    def resume(self) -> None:
        """See BatchReader."""
        super().resume()
        self._look_again()

    def _on_readable(self) -> None:
        try:
            super()._on_readable()
        finally:
            self._set_aside()
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
        self._ring = iter(())
        self._received -= self._held
        self._dropped += self._held
        super().close()

    # -- answers

    def _send_answers(self) -> None:
        if type(self.sock) is not socket.socket:  # what stands in for one gets each call
            super()._send_answers()
            return
        answers, self._answers = self._answers, []
        together = 0
        while answers:
            batch = Datagram._send_many(self.sock.fileno(), answers)
            together += batch
            del answers[:batch]
            if answers:
                self._answers = [answers.pop(0)]
                super()._send_answers()
        if together:
            self.sent += together
            self._server._count_answered(together)


@functools.lru_cache
def _judge(twin: bool, raw: bytes) -> tuple[Control | type[NotForUs] | None, bytes]:
    control = unpack_control(raw)
    if twin and sent_to_many(control):
        return NotForUs, b""
    answer = reply_control(control)
    return answer, pack_control(answer or [])


def _has_recvmmsg() -> bool:
    try:
        Datagram._receive_many(None, -1, 1, bytearray(_MOST), None)
    except OSError as exc:
        if exc.errno == errno.EBADF:
            return True
    tell_missing("recvmmsg", "datagrams are received one at a time")
    return False


def make_runner(server: Handling, bound: BoundSocket, max_datagram_size: int) -> InlineRunner:
    """Make the runner for a socket.

    A ring is for UDP, and for the system's own kind of socket. What it holds waits for the handler
    that runs; so there is none where others read the same queue, or a handler may run the loop.
    """
    able = accelerated and type(bound.sock) is socket.socket and bound.sock.family in _UDP
    able = able and not (bound.contended or runs_again(server._loop)) and _has_recvmmsg()
    kind = RingRunner if able else InlineRunner
    return kind(server, bound, max_datagram_size)
