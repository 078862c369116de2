"""KernelDrops: datagrams that the kernel has dropped at the sockets of one slot, counted by the supervisor.

It is not for workers to tell. During a rolling restart two of them watch a socket, before a dead one is replaced none
does, and a socket that somebody else has bound is watched by all. The supervisor has each of them, all the time.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from ..datagrams.datagram import kernel_drops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..net.binding import BoundSocket
    from .slot import Slot


class KernelDrops:
    """What has been dropped since it was made.

    Args:
        bound: sockets of one server; those of streams do not matter.
    """

    def __init__(self, bound: Sequence[BoundSocket]) -> None:
        self._sockets = [one.sock for one in bound if one.sock.type == socket.SOCK_DGRAM]
        self._before = self._counted()
        self._difference: float | None = None

    def _counted(self) -> int:
        return sum(map(kernel_drops, self._sockets))

    def count(self, reported: float) -> float:
        """The number, where workers have reported so many."""
        if self._difference is not None:
            return reported + self._difference
        return self._counted() - self._before

    def leave(self, reported: float) -> None:
        """The sockets are about to be closed here: from now on add what workers report more."""
        if self._difference is None:
            self._difference = self.count(reported) - reported


def drops_of(slots: Sequence[Slot]) -> list[list[KernelDrops]]:
    """For each slot, for each server; a socket that several slots have is counted in the first."""
    seen: set[BoundSocket] = set()
    drops = []
    for slot in slots:
        drops.append([KernelDrops([one for one in bound if one not in seen]) for bound in slot.sockets])
        seen.update(one for bound in slot.sockets for one in bound)
    return drops
