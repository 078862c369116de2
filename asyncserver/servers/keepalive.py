"""KeepAlive: which connections of a server have lost their peer's host without a word.

The kernel asks silent hosts (net/probes.py), and knows since when none has answered; here all
connections are looked at a few times in the server's `keepalive`. The kernel's own verdict would
not do: it comes only to a task that waits for the connection, and for bytes in flight after 15
minutes (tcp_retries2). TCP_USER_TIMEOUT would also end peers that read, but slowly.
"""

from __future__ import annotations

import errno
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection

    from ..adapters.protocol_connection import ProtocolConnection
    from ..streams.stream import Stream

# The part of the time after which a host that answers nothing is gone, and the looks in all of it:
# found in time also by the last look before its end, and before the kernel ends an idle connection.
_SILENCE, _LOOKS = 3 / 4, 16
# Connections looked at in a row. To ask the kernel takes four microseconds, mostly for memory that
# is in no cache; but of one that has just been heard from it is known until when it need not be.
_BATCH = 200
# Seconds for a handler to find the connection broken by itself; then it is cancelled.
_GRACE = 1.0


class KeepAlive:
    """Looks at the connections of one server for as long as it runs.

    Args:
        seconds: in which a peer's end has to be found.
        probes: see `socket_info.silence()`.
        live: returns handlers' tasks with their connections.
        vanished: called for each that has lost its peer.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        *,
        probes: int,
        live: Callable[[], Collection[tuple[asyncio.Task[object], Stream | ProtocolConnection]]],
        vanished: Callable[[Stream | ProtocolConnection], object],
        closed: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._probes = probes
        self._live = live
        self._vanished = vanished
        self._closed = closed
        # When the silence of each can have lasted for as long, at the earliest; never, once found.
        self._due: dict[Stream | ProtocolConnection, float] = {}
        self._left: list[tuple[asyncio.Task[object], Stream | ProtocolConnection]] = []
        self._look_later()

    def _look_later(self) -> None:
        if not self._closed():
            pause = self._seconds / _LOOKS
            self._loop.call_later(pause, self._look, self._loop.time() + 2 * pause)

    def _look(self, late: float) -> None:
        # If it comes late, perhaps the whole machine has stood still, as for a snapshot, and the
        # kernel is just about to ask those that have been silent for as long.
        self._left = list(self._live()) if self._loop.time() <= late else []
        self._look_at_some()

    def _look_at_some(self) -> None:
        """Look at as many as others can wait for."""
        self._left, some = self._left[_BATCH:], self._left[:_BATCH]
        now, due = self._loop.time(), self._due
        for task, connection in some:
            if not task.done() and due.get(connection, now) <= now:
                self._judge(task, connection, now)
        if self._left:
            self._loop.call_soon(self._look_at_some)
        else:
            self._look_later()

    def _judge(self, task: asyncio.Task[object], connection: Stream | ProtocolConnection, now: float) -> None:
        silent, asked = connection._silence(self._probes)
        left = self._seconds * _SILENCE - silent
        if left > 0:
            self._due[connection] = now + left
        elif asked and (silent < math.inf or connection._has_timed_out()):
            self._due[connection] = math.inf
            self._vanished(connection)
            said = f"its host has answered nothing: the keepalive is {self._seconds:g} s"
            knows = connection._vanish(TimeoutError(errno.ETIMEDOUT, said))
            if not knows():
                self._loop.call_later(_GRACE, self._end_unaware, task, knows)

    def forget(self, connection: Stream | ProtocolConnection) -> None:
        """Its handler has ended."""
        self._due.pop(connection, None)

    @staticmethod
    def _end_unaware(task: asyncio.Task[object], knows: Callable[[], bool]) -> None:
        if not knows():
            task.cancel()  # without effect on one that has ended
