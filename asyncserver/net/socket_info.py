"""What the kernel reports about a connection."""

from __future__ import annotations

import fcntl
import math
import os
import select
import socket
import sys
import termios

# Seconds that a peer has for its first bytes. They follow its connect, or a proxy's header, at
# once, or after one retransmission: a round trip and 200 ms on Linux.
_FIRST_WORDS = 0.5
# In struct tcp_info, linux/tcp.h, ms since the last data, or since the start.
_LAST_RECEIVED, _LAST_SENT = slice(52, 56), slice(44, 48)
# There, too: the state; probes without an answer, of an idle connection or of a full peer; segments
# in flight; ms since the last acknowledgement; bytes that were never sent.
_STATE, _PROBES, _IN_FLIGHT, _LAST_ACKNOWLEDGED, _NEVER_SENT = 0, 3, slice(24, 28), slice(56, 60), slice(144, 148)
_TCP_CLOSE = 7  # include/net/tcp_states.h: the kernel has ended it

_SIOCOUTQNSD = 0x894B  # linux/sockios.h; the other two are called as for terminals, see tcp(7)


def first_words_due(sock: socket.socket, waited: float) -> float:
    """Seconds for which the first bytes of a silent peer may still be on their way.

    `waited` are the seconds so far; for TCP the kernel knows better.
    """
    silent = _seconds_since(sock, _LAST_RECEIVED)
    return max(0.0, _FIRST_WORDS - (waited if silent is None else silent))


def sent_ago(sock: socket.socket) -> float | None:
    """Seconds since data was last sent; None where the kernel has no such time, as for Unix."""
    return _seconds_since(sock, _LAST_SENT)


def _seconds_since(sock: socket.socket, field: slice) -> float | None:
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, field.stop)
    except OSError:  # a Unix socket
        return None
    # qemu's user mode knows all options as one number each.
    return int.from_bytes(info[field], sys.byteorder) / 1000 if len(info) == field.stop else None


def silence(sock: socket.socket, probes: int) -> tuple[float, bool]:
    """Seconds for which nothing has come from the peer's host, and whether it has left us waiting.

    Bytes in flight want an answer, and so do probes. A host answers for a program that reads
    nothing too: to the probes of its closed window (RFC 9293, 3.8.6.1), each of which starts the
    time again. Infinite if the kernel has ended the connection; none for what is no TCP.

    Args:
        sock: a connection.
        probes: how many of a closed window must have stayed without an answer. Where the time
            between them is not bounded, a second one has to tell a loss from an end.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _NEVER_SENT.stop)
    except OSError:  # a Unix socket, or closed
        return 0.0, False
    if len(info) < _NEVER_SENT.stop:  # qemu's user mode
        return 0.0, False
    if info[_STATE] == _TCP_CLOSE:
        return math.inf, True
    asked = any(info[_IN_FLIGHT]) or info[_PROBES] >= (probes if any(info[_NEVER_SENT]) else 1)
    return int.from_bytes(info[_LAST_ACKNOWLEDGED], sys.byteorder) / 1000, asked


def has_hung_up(fd: int) -> bool:
    """Whether the peer has ended its side or the connection is broken, read or not."""
    state = select.poll()
    state.register(fd, select.POLLRDHUP)
    return bool(state.poll(0))


def unread(fd: int) -> int:
    """Bytes in the kernel that have not been received."""
    try:
        return _ask(fd, termios.FIONREAD)
    except OSError:  # VSOCK of older kernels
        return _seen(fd)


def unsent(fd: int) -> int:
    """Bytes that the kernel has not sent, since the peer has no room; not those under way."""
    try:
        return _ask(fd, _SIOCOUTQNSD)
    except OSError:  # no TCP: a Unix peer has them as soon as they are sent
        return 0


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the peer's host has not acknowledged; our end of stream counts as one."""
    if sock.fileno() < 0 or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return 0
    try:
        return _ask(sock.fileno(), termios.TIOCOUTQ)
    except OSError:  # this system does not tell
        return 0


def _ask(fd: int, what: int) -> int:
    size = bytearray(4)
    fcntl.ioctl(fd, what, size)
    return int.from_bytes(size, sys.byteorder)


def _seen(fd: int) -> int:
    """The same where only a look at the bytes tells."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            return len(sock.recv(1 << 20, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:  # nothing, or not connected any more
            return 0
