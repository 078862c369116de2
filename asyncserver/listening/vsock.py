"""VSOCK: streams between virtual machines and their host, addressed by two numbers: vsock(7)."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

_FAMILY = getattr(socket, "AF_VSOCK", None)
_ANY = 0xFFFFFFFF  # VMADDR_CID_ANY, VMADDR_PORT_ANY: numbers that no machine and no port has

#: What errors mean here; Docker's profile for seccomp, for one, forbids VSOCK.
ADVICE = {
    errno.EADDRINUSE: "it is taken: stop the program that has it, or choose another (port 0 picks a free one)",
    errno.EACCES: "permission denied: ports below 1024 need privileges; choose another",
    errno.EPERM: "permission denied: is it a container that may not use VSOCK?",
    errno.EADDRNOTAVAIL: "this machine does not have that cid: leave it out, for all that it has; 1, the machine "
    "itself, needs the kernel's module vsock_loopback",
    **dict.fromkeys(
        (errno.EAFNOSUPPORT, errno.ENODEV),
        "this kernel has no VSOCK: load its module vsock_loopback, vhost_vsock (in a host) or "
        "vmw_vsock_virtio_transport (in a virtual machine), or serve TCP",
    ),
}


def check(place: object) -> None:
    """Raise TypeError or ValueError unless it is a port, or a tuple of cid and port."""
    numbers: tuple[Any, ...] = place if isinstance(place, tuple) and len(place) == 2 else (place,)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in numbers):
        raise TypeError(f"vsock must be a port or a tuple (cid, port), whole numbers; got {place!r}")
    # Python takes the last 32 bits of larger ones.
    if not (0 <= numbers[-1] < _ANY and 0 <= numbers[0] <= _ANY):
        raise ValueError(f"vsock takes a port from 0 to {_ANY - 1} and a cid of at most {_ANY}; got {place!r}")


def address(place: int | tuple[int, int]) -> tuple[int, int]:
    """Where to bind: a port alone is meant for every cid of this machine, 0 for a free port."""
    cid, port = place if isinstance(place, tuple) else (_ANY, place)
    return cid, port or _ANY


def family() -> int:
    """Return the number of the family; raises OSError where Python was built without it."""
    if _FAMILY is None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    return int(_FAMILY)


def is_unbound(sock: socket.socket) -> bool:
    """Whether it has no port yet."""
    return sock.family == _FAMILY and sock.getsockname()[1] == _ANY
