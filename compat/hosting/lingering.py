"""The end of a hosted connection: what its handler has sent still reaches the client.

For streams the loop does it, see asyncserver/connections/lingering.py, also for why; here it is
done in the handler's thread.
"""

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
    everything and goes on sending for two. Raises OSError if the connection broke.
    """
    if not (_queued(request, termios.FIONREAD) or _queued(request, _SIOCOUTQNSD)):
        return
    request.settimeout(_TURN)
    stalled = _STALLED if idle_timeout is None else min(idle_timeout, _STALLED)
    since, before, silent = monotonic(), sys.maxsize, False
    while (left := _queued(request, termios.TIOCOUTQ)) or not silent:
        if left < before:
            since, before = monotonic(), left
        elif monotonic() - since >= (stalled if left else _PATIENCE):
            return
        try:
            silent = False
            if not socket.socket.recv(request, _CHUNK):  # below TLS, if any
                return
        except TimeoutError:
            silent = True


def _queued(request: socket.socket, what: int) -> int:
    size = bytearray(4)
    try:
        fcntl.ioctl(request.fileno(), what, size)
    except OSError:  # not of this kind of socket
        return 0
    return int.from_bytes(size, sys.byteorder)
