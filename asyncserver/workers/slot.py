"""Slots: the places of workers, each with sockets that outlive its worker."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from typing import TYPE_CHECKING

from .process import LONGEST_MESSAGE, send

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from ..listening.binding import BoundSocket
    from ..reports.stats import Reading
    from ..serving import Serving

NEVER = float("inf")
# On this signal a worker writes its stacks, with no help of the interpreter. Programs do
# not use it.
DUMP = signal.SIGRTMAX

# Seconds after which a worker's death is not an early one any more.
_STEADY = 10.0
# Seconds until the next worker after two early deaths, doubled by each further one; the most.
_BACKOFF, _LONGEST_BACKOFF = 0.1, 30.0


class Worker:
    """A worker process, as the supervisor sees it."""

    def __init__(self, pid: int, slot: Slot, channel: socket.socket, stacks: socket.socket) -> None:
        self.pid = pid
        self.slot = slot
        self.channel = channel
        self._stacks = stacks
        for end in (channel, stacks):
            end.setblocking(False)
        self.started: float = time.monotonic()
        self.serving = False
        self.leaving = False
        self.kill_at = NEVER
        self.recycle_at = NEVER
        self.silent_at = NEVER  # when that is logged, unless it sends a message before
        self.stuck_at = NEVER  # when it is asked for its stacks
        self.abort_at = NEVER  # when it is killed
        self.readings: list[Reading] = []

    @property
    def taking(self) -> bool:
        """Whether it takes new work, as far as known: it serves, stays, and is not stuck."""
        return self.serving and not self.leaving and self.silent_at < NEVER

    def send(self, message: bytes) -> None:
        """Send, unless it is dead, or so stuck that hundreds are unread: then it will be killed."""
        send(self.channel, message)

    def send_signal(self, number: int) -> None:
        """Send a signal; until its status is asked for, its number is no other process's."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, flags: int = 0) -> int | None:
        """Return its exit status as `os.waitstatus_to_exitcode()` has it; None if it still runs."""
        try:
            ended, status = os.waitpid(self.pid, flags)
        except ChildProcessError:  # other code in this program has waited for it
            return 255
        return os.waitstatus_to_exitcode(status) if ended else None

    def stacks(self) -> str:
        """Return what it has written after DUMP."""
        text = b""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while more := self._stacks.recv(LONGEST_MESSAGE):
                text += more
        return text.decode(errors="replace").rstrip()

    def receive(self) -> bytes | None:
        """Return its next message; None if there is none yet, b"" at the end."""
        try:
            return self.channel.recv(LONGEST_MESSAGE)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        """Close the supervisor's descriptors for it."""
        self.channel.close()
        self._stacks.close()


class Slot:
    """One worker's place: its sockets for each server, its worker, and the next one."""

    def __init__(self, sockets: list[list[BoundSocket]]) -> None:
        self.sockets = sockets
        self.worker: Worker | None = None
        self.successor: Worker | None = None
        self.early_deaths: int = 0
        self.restart_at: float = NEVER
        self.retired: list[Reading] = [{} for _ in sockets]  # of workers that have ended

    @property
    def settled(self) -> bool:
        """Whether its worker serves, and no successor is starting."""
        return self.worker is not None and self.worker.serving and self.successor is None

    def back_off(self, lived: float) -> float:
        """After a death, set when the next worker starts; returns in how many seconds."""
        self.early_deaths = 0 if lived >= _STEADY else self.early_deaths + 1
        delay = min(_BACKOFF * 2.0 ** (self.early_deaths - 2), _LONGEST_BACKOFF) if self.early_deaths > 1 else 0.0
        self.restart_at = time.monotonic() + delay
        return delay


def write_stacks_on_dump(end: socket.socket) -> None:
    """In a new worker: on DUMP, write there where each thread is, however stuck it is."""
    end.setblocking(False)  # as much as fits in
    faulthandler.register(DUMP, file=end.fileno(), all_threads=True)


def open_slots(servings: Sequence[Serving], count: int) -> list[list[list[BoundSocket]]]:
    """Bind all sockets, or none; returns them for each slot and server."""
    opened: list[list[list[BoundSocket]]] = []
    try:
        opened.extend(serving.open_slots(count) for serving in servings)
    except BaseException:
        for bound in (one for slots in opened for sockets in slots for one in sockets):
            bound.close()
        raise
    return [list(sockets) for sockets in zip(*opened, strict=True)]
