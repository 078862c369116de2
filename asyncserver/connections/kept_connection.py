"""KeptConnection: a connection whose peer's host may vanish: its silence, and its end by that.

A server with `keepalive` asks each of its connections, see servers/keepalive.py.
"""

from __future__ import annotations

from ..net.socket_info import unanswered
from .connection import Connection
from .states import at_end


class KeptConnection(Connection):
    """A connection that the server's keepalive can end."""

    __slots__ = ()

    def _unanswered(self, probes: int) -> float:
        """Say for how long the peer's host has answered nothing, see `unanswered()`."""
        if self._loan is not None:
            return self._loan.unanswered(probes)
        return 0.0 if self._fd < 0 or self._is_broken else unanswered(self._sock, probes)

    def _break_off(self, exc: OSError) -> None:
        """Break, by an error that the kernel has reported here instead of to a receive."""
        if self._recv is not at_end:  # what is sent meets an error of its own
            self._broken(exc)
