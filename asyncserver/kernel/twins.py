"""Twins: sockets of several processes on one address, of which the kernel picks one for each client (SO_REUSEPORT)."""

from __future__ import annotations

import socket

from .features import tell_missing
from .packet_info import is_for_many


def may_have_twins(sock: socket.socket) -> bool:
    """Prepare a socket that has been bound for others on its address; returns whether there can be any.

    Not before it was bound, so that the bind failed where another program serves already, also one of our own.
    """
    if sock.type == socket.SOCK_DGRAM and is_for_many(sock):
        return False  # all would get each datagram
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        tell_missing("SO_REUSEPORT", "workers share one queue")
        return False
    return True
