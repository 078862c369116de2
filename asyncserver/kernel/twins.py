"""Twins: processes' sockets on one address; the kernel picks one per client (SO_REUSEPORT)."""

from __future__ import annotations

import socket

from .features import tell_missing
from .packet_info import is_for_many


def may_have_twins(sock: socket.socket) -> bool:
    """Prepare a bound socket for others on its address; returns whether there can be any.

    Only after it was bound: so the bind fails where another program, also one of ours, serves.
    """
    if sock.type == socket.SOCK_DGRAM and is_for_many(sock):
        return False  # each of them would get each datagram
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        tell_missing("SO_REUSEPORT", "workers share one queue")
        return False
    return True
