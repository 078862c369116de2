"""TLS records, as far as they can be told without decrypting them."""

from __future__ import annotations

import contextlib
import socket

# Bytes to look at: as many as one receive takes.
_AHEAD = 65536


def holds_whole_records(sock: socket.socket) -> bool:
    """Whether the kernel holds whole TLS records only, of which OpenSSL will keep no part."""
    end, ahead = 0, b"?"
    with contextlib.suppress(OSError):
        ahead = socket.socket.recv(sock, _AHEAD, socket.MSG_PEEK | socket.MSG_DONTWAIT)  # below TLS
    while end + 5 <= len(ahead):  # a record's type, two bytes of version, two of length
        end += 5 + int.from_bytes(ahead[end + 3 : end + 5])
    return end == len(ahead)
