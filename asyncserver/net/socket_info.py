"""What the kernel tells about a connection."""

from __future__ import annotations

import fcntl
import socket
import sys
import termios

# Seconds that a peer may take for its first bytes: they follow its connection (or the header that a proxy puts before
# them) at once, or after one retransmission, which takes the round trip and 200 ms on Linux.
_FIRST_WORDS = 0.5
_SILENT_FOR = slice(52, 56)  # tcpi_last_data_recv in struct tcp_info, linux/tcp.h: ms since the last data or the start


def first_words_due(sock: socket.socket, waited: float) -> float:
    """Seconds in which the first bytes of a peer that has said nothing yet may still be on their way.

    Args:
        sock: its connection.
        waited: seconds that it has been waited for already; the kernel knows better, if it is TCP.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SILENT_FOR.stop)
    except OSError:  # a Unix socket
        return max(0.0, _FIRST_WORDS - waited)
    return max(0.0, _FIRST_WORDS - int.from_bytes(info[_SILENT_FOR], sys.byteorder) / 1000)


def unread(fd: int) -> int:
    """Bytes in the kernel that nobody has received."""
    size = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, size)
    return int.from_bytes(size, sys.byteorder)
