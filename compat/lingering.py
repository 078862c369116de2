"""The end of a hosted connection: what its handler has sent still reaches the client.

Closing is enough as long as nothing more comes. But where bytes lie unread, or arrive afterwards
(the next request of a client that does not wait for answers), the kernel resets the connection
(RFC 1122, 4.2.2.13), and what it has yet to send is lost. For streams the loop does
the same (asyncserver/connections/lingering.py); here it is done in the handler's thread.
"""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from time import monotonic

_SIOCOUTQNSD = 0x894B  # linux/sockios.h: bytes that the kernel has not sent yet

_TURN = 0.2  # seconds without a byte until we look whether the client has everything
_PATIENCE = 2.0  # seconds that a client which has everything may go on sending
_STALLED = 10.0  # seconds in which a client takes nothing at all, until it is given up
_CHUNK = 65536


def linger(request: socket.socket, idle_timeout: float | None = None) -> None:
    """Wait until the client has what was sent, if closing now could take it away.

    Our side has been ended. What arrives is thrown away. A client that takes nothing for ten
    seconds, or for an idle timeout that is shorter, is given up, and so is one that has
    everything and goes on sending for two.

    Args:
        request: a socket whose handler has come to its end.
        idle_timeout: the server's, in seconds; None if it has none.

    Raises:
        OSError: the connection broke.
    """
    if not (_queued(request, termios.FIONREAD) or _queued(request, _SIOCOUTQNSD)):
        return
    request.settimeout(_TURN)
    stalled = _STALLED if idle_timeout is None else min(idle_timeout, _STALLED)
    since, before, left = monotonic(), sys.maxsize, _queued(request, termios.TIOCOUTQ)
    while True:
        if left < before:
            since, before = monotonic(), left
        elif monotonic() - since >= (stalled if left else _PATIENCE):
            return
        try:
            if not socket.socket.recv(request, _CHUNK):  # below TLS, if any
                return
            left = _queued(request, termios.TIOCOUTQ)
        except TimeoutError:
            left = _queued(request, termios.TIOCOUTQ)
            if not left:
                return


def _queued(request: socket.socket, what: int) -> int:
    size = bytearray(4)
    try:
        fcntl.ioctl(request.fileno(), what, size)
    except OSError:  # not of this kind of socket
        return 0
    return int.from_bytes(size, sys.byteorder)
