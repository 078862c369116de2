"""Slots: the places of workers, each with the sockets that outlive the worker in it. See workers.py."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from .process import LONGEST_MESSAGE

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from ..net.binding import BoundSocket
    from ..servers.stats import Reading
    from ..serving import Serving

NEVER = float("inf")

# Seconds that a worker must have lived for its death to be an accident, not a habit.
_STEADY = 10.0
# Seconds until the next attempt after a second early death, doubled by each further one, and the most.
_BACKOFF, _LONGEST_BACKOFF = 0.1, 30.0


class Worker:
    """A worker process, as the supervisor sees it."""

    def __init__(self, pid: int, pidfd: int, slot: Slot, channel: socket.socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.slot = slot
        self.channel = channel
        self.started: float = time.monotonic()
        self.serving = False
        self.leaving = False
        self.kill_at = NEVER
        self.silent_at = NEVER  # when it will have said nothing for so long that its loop counts as stuck
        self.readings: list[Reading] = []

    @property
    def taking(self) -> bool:
        """Whether it takes new work, as far as is known: it serves, is not to leave, and has not been found silent."""
        return self.serving and not self.leaving and self.silent_at < NEVER

    def send(self, message: bytes) -> None:
        """Send, unless it is dead or so stuck that it has not read hundreds before; then it will be killed."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            self.channel.send(message)

    def receive(self) -> bytes | None:
        """Return its next message; None if there is none, b"" if there will be none."""
        try:
            return self.channel.recv(LONGEST_MESSAGE)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        """Close what the supervisor holds of it."""
        self.channel.close()
        os.close(self.pidfd)


class Slot:
    """One worker's place: its sockets for each server, and who fills it."""

    def __init__(self, sockets: list[list[BoundSocket]]) -> None:
        self.sockets = sockets
        self.worker: Worker | None = None
        self.successor: Worker | None = None
        self.early_deaths: int = 0
        self.restart_at: float = NEVER
        self.retired: list[Reading] = [{} for _ in sockets]  # of workers that have ended

    def back_off(self, lived: float) -> float:
        """After a death: decide when the next worker starts, and return in how many seconds."""
        self.early_deaths = 0 if lived >= _STEADY else self.early_deaths + 1
        delay = min(_BACKOFF * 2.0 ** (self.early_deaths - 2), _LONGEST_BACKOFF) if self.early_deaths > 1 else 0.0
        self.restart_at = time.monotonic() + delay
        return delay


def open_slots(servings: Sequence[Serving], count: int) -> list[list[list[BoundSocket]]]:
    """Bind every place, or none; returns the sockets for each slot, for each server."""
    opened: list[list[list[BoundSocket]]] = []
    try:
        opened.extend(serving.open_slots(count) for serving in servings)
    except BaseException:
        for bound in (one for slots in opened for sockets in slots for one in sockets):
            bound.close()
        raise
    return [list(sockets) for sockets in zip(*opened, strict=True)]
