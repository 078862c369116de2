"""What the kernel reports about a connection."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import termios

# Seconds that a peer has for its first bytes. They follow its connect, or a proxy's header, at
# once, or after one retransmission: a round trip and 200 ms on Linux.
_FIRST_WORDS = 0.5
# In struct tcp_info, linux/tcp.h, ms since the last data, or since the start.
_LAST_RECEIVED, _LAST_SENT = slice(52, 56), slice(44, 48)

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
