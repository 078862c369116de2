"""Dialogue: the bytes of a connection both ways, and whether a drain may end it here.

A server of bytes does not know what a message is. It decides by what it can see:

    New        no bytes have been received or sent
    Active     bytes were received since we last sent: a message is under way
    Between    we have sent since bytes were received, or said that no answer is due: a drain may
               end the connection here
    Owed       bytes that had reached this host when the drain began are not answered yet

There is no socket in here. The connection reports its bytes; where every instruction counts, it
adds to the counters itself (streams/).
"""

from __future__ import annotations

from .fields import ConnectionFields


class Dialogue(ConnectionFields):
    """The counters of one connection, in bytes of payload."""

    __slots__ = ()

    @property
    def bytes_moved(self) -> int:
        """Bytes both ways; a connection is idle as long as this does not change."""
        return self.bytes_received + self.bytes_sent

    def answer(self) -> None:
        """We send: all bytes received so far count as answered."""
        self._answered = self.bytes_received

    def begin_message(self, unconsumed: int) -> None:
        """A message begins with the bytes that are not taken yet, unless one is under way."""
        if self._message_sent != self.bytes_sent:
            self._message_sent, self._message_at = self.bytes_sent, self.bytes_received - unconsumed

    def settle(self, unconsumed: int) -> None:
        """A message is over, whose answer waits to be sent, or that gets none.

        The next one begins with the bytes that are not taken yet.
        """
        self.answer()
        self._message_sent, self._message_at = self.bytes_sent, self.bytes_received - unconsumed

    # -- while draining

    @property
    def draining(self) -> bool:
        """Whether the drain has begun."""
        return self._owed_until is not None

    def begin_drain(self, unread: int, due: float, said: int = 0) -> bool:
        """Owe an answer to the `unread` bytes in the kernel, and to a silent peer's first ones.

        These may still be on their way for `due` seconds; before them `bytes_moved` is `said`.
        True: call this again when they are due.
        """
        waits = due > 0 and not unread and self.bytes_moved == said
        self._owed_until = self.bytes_received + (1 if waits else unread)
        return waits

    @property
    def has_what_it_owes(self) -> bool:
        """Whether all bytes have been received to which an answer is owed."""
        return self.bytes_received >= (self._owed_until or 0)

    def owe_more(self, nbytes: int) -> None:
        """Owe an answer to bytes that were in neither count when the drain began."""
        self._owed_until = (self._owed_until or 0) + nbytes

    def owe_at_most(self, nbytes: int) -> None:
        """Owe an answer to at most `nbytes` more: TLS bytes in the kernel are more than payload."""
        self._owed_until = min(self._owed_until or 0, self.bytes_received + nbytes)

    def may_end(self) -> bool:
        """Whether a drain may end the connection: it is between two messages, and owes no answer.

        What decides is where the message under way begins, not how much was received: from a peer
        that sends without a pause, a part of the next message is always here.
        """
        return self._answered == self.bytes_received and self._message_at >= (self._owed_until or 0)
