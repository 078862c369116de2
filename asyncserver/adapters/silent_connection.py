"""SilentConnection: of a protocol that answers nothing; what it has taken is done with."""

from __future__ import annotations

from .protocol_connection import ProtocolConnection

# Seconds until a callback is looked at again, in a drain. Its reader tells nobody what it takes.
_LOOK_AGAIN = 0.05


class SilentConnection(ProtocolConnection):
    """A connection to which a drain owes nothing for what the protocol, or callback, has taken."""

    __slots__ = ()

    def has_received(self, nbytes: int) -> None:
        """Count the bytes; in a drain look whether they were the last, when they are taken."""
        super().has_received(nbytes)
        if self.draining:
            self._look_for_the_end()

    def _end_between_messages(self) -> None:
        self.answer()
        super()._end_between_messages()
        if self.callback is not None and self.callback.unconsumed() and not (self.ended or self._lost.done()):
            self.loop.call_later(_LOOK_AGAIN, self._look_for_the_end)
