"""Loan: what its thread and the loop reckon at the same time."""

from __future__ import annotations

import asyncio
import socket
import threading

from asyncserver.connections.dialogue import Dialogue
from asyncserver.connections.loan import Loan


class Interrupted(Dialogue):
    """Lets a drain begin in the middle of the count of what was received."""

    loan: Loan
    drain: threading.Thread | None = None

    @property
    def bytes_received(self) -> int:
        """What was counted so far. The thread has looked whether a drain has begun, and asks for this next."""
        if self.drain is None and threading.current_thread() is threading.main_thread() and hasattr(self, "loan"):
            self.drain = threading.Thread(target=self.loan.begin_drain)
            self.drain.start()
            self.drain.join(0.1)  # it waits for the count, or would be done by then
        return self.counted

    @bytes_received.setter
    def bytes_received(self, nbytes: int) -> None:
        self.counted = nbytes


async def test_drain_begins_while_bytes_are_counted() -> None:
    """It owes an answer to all that is still in the kernel, and to no more."""
    ours, theirs = socket.socketpair()
    dialogue = Interrupted()
    dialogue.bytes_received = 0
    with ours, theirs:
        dialogue.loan = loan = Loan(dialogue, ours, asyncio.get_running_loop(), answers=False)
        theirs.send(b"much that comes first" + b"second")
        loan.received(len(ours.recv(21)))
        assert dialogue.drain is not None
        dialogue.drain.join(10)
        assert loan.draining
        assert not loan.at_end()
        loan.received(len(ours.recv(6)))
        assert loan.at_end()
