"""KeptConnection: a connection whose peer's host may vanish: its silence, and its end by that.

A server with `keepalive` asks each of its connections, see servers/keepalive.py.
"""

from __future__ import annotations

import os
import socket

from ..net.probes import HOST_GONE
from ..net.socket_info import silence
from .connection import Connection
from .states import at_end


class KeptConnection(Connection):
    """A connection that the server's keepalive can end."""

    __slots__ = ()

    def _silence(self, probes: int) -> tuple[float, bool]:
        """Say for how long nothing has come from the peer's host, see `silence()`."""
        if self._loan is not None:
            return self._loan.silence(probes)
        return (0.0, False) if self._fd < 0 or self._is_broken else silence(self._sock, probes)

    def _has_timed_out(self) -> bool:
        """Whether the kernel has ended it for its host's silence; another error breaks it here."""
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code and code not in HOST_GONE:
            self._break_off(OSError(code, os.strerror(code)))
        return code in HOST_GONE

    def _break_off(self, exc: OSError) -> None:
        """Break, by an error that the kernel has reported here instead of to a receive."""
        if self._recv is not at_end:  # what is sent meets an error of its own
            self._broken(exc)
