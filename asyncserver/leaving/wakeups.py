"""Signals in a loop that handles none: Python writes their numbers to a socket that it watches.

asyncio's own loops do the same. A handler of Python's alone would be called only when the loop next
turns.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Mapping


@contextlib.contextmanager
def watched(loop: asyncio.AbstractEventLoop, calls: Mapping[signal.Signals, Callable[[], object]]) -> Iterator[None]:
    """Let the loop call what signals are to call; then put back what handled them before.

    In the main thread, where Python delivers signals.
    """
    ours, pythons = socket.socketpair()
    with ours, pythons, contextlib.ExitStack() as stack:
        ours.setblocking(False)
        pythons.setblocking(False)  # as set_wakeup_fd() demands
        theirs = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        stack.callback(signal.set_wakeup_fd, theirs)
        # A number, and nothing behind the function: veloxloop 0.2 takes no more.
        loop.add_reader(ours.fileno(), functools.partial(_read, ours, calls, theirs))
        stack.callback(_unwatch, loop, ours)
        for number in calls:
            before = signal.signal(number, _nothing)
            signal.siginterrupt(number, False)  # what the loop waits for need not be begun again
            if before is not None:  # one that is not Python's
                stack.callback(signal.signal, number, before)
        yield


def _read(sock: socket.socket, calls: Mapping[signal.Signals, Callable[[], object]], theirs: int) -> None:
    """Call what belongs to each number; hand on what is another's, perhaps the loop's own."""
    with contextlib.suppress(BlockingIOError):
        for number in sock.recv(4096):
            if number in calls:
                calls[signal.Signals(number)]()
            elif theirs >= 0:
                os.write(theirs, bytes([number]))


def _unwatch(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    if not loop.is_closed():
        loop.remove_reader(sock.fileno())


def _nothing(*_: object) -> None:
    """Without a handler of Python's nothing would be written."""
