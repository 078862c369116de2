"""KernelDrops: datagrams that the kernel dropped at a slot's sockets, counted by the supervisor.

Workers cannot count them: during a rolling restart two workers have a socket, before a dead one is
replaced none has, and a socket given as `sock` or `fd` all have. The supervisor has each, always.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from ..datagrams.datagram import kernel_drops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..listening.binding import BoundSocket
    from .slot import Slot


class KernelDrops:
    """Counts the datagrams dropped at a server's sockets since it was made."""

    def __init__(self, bound: Sequence[BoundSocket]) -> None:
        self._sockets = [one.sock for one in bound if one.sock.type == socket.SOCK_DGRAM]
        self._before = self._counted()
        self._difference: float | None = None

    def _counted(self) -> int:
        return sum(map(kernel_drops, self._sockets))

    def count(self, reported: float) -> float:
        """The number of drops. `reported` is the workers' own count."""
        if self._difference is not None:
            return reported + self._difference
        return self._counted() - self._before

    def freeze(self, reported: float) -> None:
        """Before the sockets are closed here: from now on add the growth of the workers' count."""
        if self._difference is None:
            self._difference = self.count(reported) - reported


def drops_of(slots: Sequence[Slot]) -> list[list[KernelDrops]]:
    """Make them for each slot and server; a socket in several slots is counted in the first."""
    seen: set[BoundSocket] = set()
    drops = []
    for slot in slots:
        drops.append([KernelDrops([one for one in bound if one not in seen]) for bound in slot.sockets])
        seen.update(one for bound in slot.sockets for one in bound)
    return drops
