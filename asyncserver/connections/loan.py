"""Loan: the socket of a stream that blocks in a thread: its bytes are counted, and a drain ends it.

The thread says when it waits for bytes, what it has received and what it has sent; the rule is the
one for streams (dialogue.py). Where it lets the drain end the connection the next receive is an end
of stream, and so is one under way: the receiving side is shut down, which wakes the thread.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from typing import TYPE_CHECKING

from ..net.probes import end_unanswered
from ..net.socket_info import first_words_due, silence, unread, unsent
from ..tls.records import holds_whole_records

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from .dialogue import Dialogue

# Seconds until a thread that waits is looked at again. It may have bytes already, and wait for the
# interpreter only, or its last answer may still be on its way.
_LOOK_AGAIN = 0.05


class Loan:
    """What a thread and the loop know of a blocking socket that both use."""

    __slots__ = (
        "_came_at",
        "_dialogue",
        "_lock",
        "_loop",
        "_said",
        "_sock",
        "_uncounted",
        "answers",
        "buffered",
        "decrypted",
        "draining",
        "ended",
        "waiting",
    )

    def __init__(
        self, dialogue: Dialogue, sock: socket.socket, loop: asyncio.AbstractEventLoop, *, answers: bool
    ) -> None:
        self.answers: bool = answers  # else what the thread has taken is done with
        self._dialogue = dialogue
        self._sock = sock
        self._loop = loop
        self._lock = threading.Lock()  # what a drain owes is reckoned before or after a count, not in between
        self._said = dialogue.bytes_moved
        self.waiting: bool = False  # the thread waits for bytes; to be set before `at_end()` is asked
        self.buffered: int = 0  # bytes received that wait in a file object's buffer
        self.decrypted: int = 0  # bytes that OpenSSL holds, as the thread has last seen it
        # `bytes_received` when something last came, if no payload was found in it.
        self._came_at = -1
        self.draining: bool = False  # the drain has begun
        # It began while the thread may have held bytes that are neither unread nor counted yet.
        self._uncounted = False
        self.ended: bool = False  # the drain has ended the receiving side

    # -- for the thread

    def at_end(self) -> bool:
        """Whether the next receive is an end of stream, by the drain and between two messages."""
        if not self.draining:
            return False
        if self.answers:
            self._dialogue.begin_message(self.buffered)
        else:
            self._dialogue.settle(self.buffered)
        return self._dialogue.may_end()

    def received(self, nbytes: int) -> None:
        """Count what was received."""
        dialogue = self._dialogue
        with self._lock:
            if self.draining:
                with contextlib.suppress(OSError):  # closed meanwhile
                    if self._uncounted and nbytes:
                        dialogue.owe_more(nbytes + self.decrypted)  # the rest of its record, too
                        self._uncounted = False
                    dialogue.owe_at_most(nbytes + self._unread())
            dialogue.bytes_received += nbytes

    def holds_whole_records(self) -> bool:
        """To be asked before a read under TLS: whether all that has come is read by it."""
        return self.draining and holds_whole_records(self._sock)

    def found_no_payload(self, *, whole: bool) -> None:
        """Bytes had come, but only TLS's own, or a part of a record."""
        self._came_at = self._dialogue.bytes_received
        if whole:
            self.received(0)

    def sent(self, nbytes: int) -> None:
        """Count what was sent: it answers all that was received."""
        dialogue = self._dialogue
        dialogue.bytes_sent += nbytes
        dialogue.answer()

    def _unread(self) -> int:
        return unread(self._sock.fileno()) + self.decrypted

    # -- for the loop

    def begin_drain(self, waited: float = 0.0) -> None:
        """Owe what is here, or first bytes that may be under way; end a wait that is over by that.

        For these it has waited `waited` seconds so far.
        """
        dialogue = self._dialogue
        if self._sock.fileno() < 0 or (waited and dialogue.has_what_it_owes):
            return
        if not waited and self._came_at == dialogue.bytes_received:
            self._said = dialogue.bytes_moved  # the rest of a record may be on its way
        due, waits = 0.0, False
        with self._lock:
            with contextlib.suppress(OSError):  # closed meanwhile
                due = first_words_due(self._sock, waited)
                waits = dialogue.begin_drain(self._unread(), due, self._said)
            self._uncounted = self.draining = True
        if waits:
            self._loop.call_later(due, self.begin_drain, waited + due)
        self._look()

    def silence(self, probes: int) -> tuple[float, bool]:
        """For how long nothing has come from the peer's host, see `socket_info.silence()`."""
        seconds, asked = silence(self._sock, probes)
        return seconds, asked and seconds < math.inf  # the thread gets the kernel's error

    def vanish(self) -> Callable[[], bool]:
        """Break, since the peer's host is gone: the thread gets ETIMEDOUT."""
        end_unanswered(self._sock)
        return lambda: True

    def _look(self, moved: int = -1) -> None:
        """End the wait of a thread at the second look at which nothing has moved."""
        if not (self.waiting and self.at_end()):
            return  # it asks itself before its next receive
        with contextlib.suppress(OSError):  # closed meanwhile
            fd = self._sock.fileno()
            now = -1 if unread(fd) or unsent(fd) else self._dialogue.bytes_moved
            if now < 0 or now != moved:
                self._loop.call_later(_LOOK_AGAIN, self._look, now)
                return
            self.ended = True
            socket.socket.shutdown(self._sock, socket.SHUT_RD)  # below TLS, if any
