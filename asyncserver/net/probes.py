"""Probes: how often the kernel asks whether a silent peer's host is still there.

    idle              keepalive probes (RFC 1122, 4.2.3.6), which any host answers
    its window closed probes of the window (RFC 9293, 3.8.6.1), which it answers too
    bytes in flight   retransmissions (RFC 6298), which it acknowledges

The kernel sends one kind at a time: no keepalive probes while bytes wait. The second and third come
at intervals that double up to two minutes, unless Linux 6.15 or newer is told less. These are only
questions; how long an answer may take is for `socket_info.silence()` and who calls it.
"""

from __future__ import annotations

import contextlib
import errno
import socket

# Seconds. Linux counts keepalive in whole ones: a silence of one, and one for the answer.
SHORTEST = 2.0

#: What the kernel says of a host that has not answered; other than ETIMEDOUT if ARP or a router has
#: said so meanwhile.
HOST_GONE = frozenset((errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN))

# Of Linux: seconds, and probes, that TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT may be (tcp.h).
_MOST_SECONDS, _MOST_PROBES = 32767, 127
# linux/tcp.h, since 6.15: the longest time between two retransmissions or window probes, in ms,
# from one second to the two minutes that it is by default.
_TCP_RTO_MAX_MS = 44
_RTO_MAX = (1000, 120_000)


def ask_often(sock: socket.socket, seconds: float) -> None:
    """Set a TCP socket, or what a listening one accepts, so that a live host is heard in time.

    An idle connection is asked after a third of the time, again and again, and ended by the kernel
    when it is over. Other probes come at least four times in it, where the kernel can be told so.
    """
    whole = int(min(seconds, 3 * _MOST_SECONDS))
    idle, interval = max(1, whole // 3), max(1, whole // 12)
    count = min(_MOST_PROBES, max(1, (whole - idle) // interval))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
    with contextlib.suppress(OSError):  # an older kernel, or Multipath TCP
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, int(min(max(_RTO_MAX[0], seconds * 250), _RTO_MAX[1])))


def probes_come_in_time(sock: socket.socket) -> bool:
    """Whether the kernel bounds the time between two probes of a closed window, as it was told."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS) < _RTO_MAX[1]
    except OSError:
        return False


def end_unanswered(sock: socket.socket) -> None:
    """Let the kernel end a connection with ETIMEDOUT at its next probe or retransmission.

    That is for a thread that blocks in it. Only where it is known that the host answers nothing:
    TCP_USER_TIMEOUT would end others, too.
    """
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1)
    except OSError:  # Multipath TCP, or closed meanwhile
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
