"""IP addresses as texts, perhaps with an interface: "fe80::1%eth0", "239.1.2.3%2".

RFC 4007, 11, has this for IPv6; here it is read for IPv4, too, whose groups are on interfaces.
"""

from __future__ import annotations

import errno
import os
import socket

_MAPPED = bytes(10) + b"\xff\xff"  # how sockets for IPv6 and IPv4 show IPv4: RFC 4291, 2.5.5.2


def parse_ip(text: str) -> tuple[bytes, str]:
    """Return the bytes of an address, 4 or 16, and the interface after %, or "".

    Raises:
        ValueError: it is no address; a name, for example.
    """
    host, percent, interface = text.partition("%")
    if bool(percent) == bool(interface):
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                packed = socket.inet_pton(family, host)
            except (OSError, ValueError):  # ValueError: zeros in it, or what cannot be encoded
                continue
            return packed[12:] if packed.startswith(_MAPPED) else packed, interface
    raise ValueError(f"expected an IP address, got {text!r}")


def format_ip(packed: bytes) -> str:
    """Write the address of these 4 or 16 bytes."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def is_multicast(packed: bytes) -> bool:
    """Whether these 4 or 16 bytes are a group's: RFC 5771, 224.0.0.0/4; RFC 4291, 2.7, ff00::/8."""
    return packed[0] >> 4 == 0xE if len(packed) == 4 else packed[0] == 0xFF


def interface_index(interface: str) -> int:
    """Return the number of an interface that is given by name or number.

    Raises:
        OSError: there is no such name, with errno ENODEV.
    """
    try:
        return socket.if_nametoindex(interface)
    except (OSError, ValueError):
        if interface.isascii() and interface.isdigit() and 0 < int(interface[:20]) < 1 << 31:
            return int(interface)
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from None
