"""Dialogue: how far two sides have come, and whether a drain may end them here.

A server of bytes does not know what a message is. What it can see decides, and nothing else:

    New        neither side has said anything
    Active     bytes have come since we last sent: a message is under way
    Between    we have sent since bytes last came: a drain may end the dialogue here
    Owed       bytes had reached this host when the drain began, and are not answered yet

There is no socket in here. Whoever moves bytes says so, or adds to the counters itself where every
instruction counts (stream.py).
"""

from __future__ import annotations


class Dialogue:
    """What has been said on one connection.

    Attributes:
        bytes_received: payload bytes received so far.
        bytes_sent: payload bytes sent so far.
    """

    __slots__ = ("_answered", "_message_start", "_owed_until", "bytes_received", "bytes_sent")

    def __init__(self) -> None:
        self.bytes_received: int = 0
        self.bytes_sent: int = 0
        self._answered = 0  # bytes_received when we last sent
        # Where the message under way begins, if some of it was there before we last sent: (bytes_sent
        # then, bytes_received before it).
        self._message_start = (0, 0)
        # While draining: the bytes_received up to which we owe answers.
        self._owed_until: int | None = None

    @property
    def moved(self) -> int:
        """Bytes both ways; a connection for which it stays the same is idle."""
        return self.bytes_received + self.bytes_sent

    def answer(self) -> None:
        """We send: what has come so far is answered, as far as anybody can tell."""
        self._answered = self.bytes_received

    def begin_message(self, unconsumed: int) -> None:
        """Take bytes of which so many had come before: a message begins, unless one is under way."""
        if self._message_start[0] != self.bytes_sent:
            self._message_start = self.bytes_sent, self.bytes_received - unconsumed

    # -- while draining

    @property
    def draining(self) -> bool:
        """Whether the drain has begun."""
        return self._owed_until is not None

    def begin_drain(self, unread: int, due: float) -> bool:
        """Owe an answer to what has reached this host by now, and to a peer's first words.

        Args:
            unread: bytes that nobody has received yet.
            due: seconds for which the first words of a silent peer may still be on their way.

        Returns:
            whether they are waited for: call it again then.
        """
        waits = due > 0 and not (unread or self.moved)
        self.owe(1 if waits else unread)
        return waits

    def owe(self, nbytes: int) -> None:
        """Owe an answer to so many bytes more than have come."""
        self._owed_until = self.bytes_received + nbytes

    def owe_at_most(self, nbytes: int) -> None:
        """Learn that so many more are left at most: TLS makes more of a message than it is."""
        self._owed_until = min(self._owed_until or 0, self.bytes_received + nbytes)

    def may_end(self) -> bool:
        """Whether a drain may end the dialogue here: between two messages, and nothing is owed.

        A peer that sends without end always has the next message half here, so what counts is not
        how much has come, but where the message under way begins.
        """
        return self._answered == self.bytes_received and self._message_start[1] >= (self._owed_until or 0)
