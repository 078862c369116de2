"""Advice: why an address cannot be had, and what to do; the system's own errors say neither."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Any

from ..exceptions import BindError

ADVICE = {
    errno.EADDRINUSE: "it is taken: stop the program that has it, or choose another (port=0 picks a free one)",
    errno.EACCES: "permission denied: ports below 1024 and other people's folders need privileges; choose another",
    errno.EPERM: "permission denied: choose another",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address: use one of its own, or host=None for all",
    errno.ENOENT: "the folder does not exist: make it first",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EAFNOSUPPORT: "this machine does not support that kind of address",
}

# Where a socket is given: listen() of Linux says no more than EINVAL.
CONNECTED = {errno.EINVAL: "it is connected to a peer: give a socket that is only bound to an address"}


def is_connected(sock: socket.socket) -> bool:
    """Whether it has a peer, so that nobody can connect to it."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def resolving(host: str | None) -> Any:
    """Turn the error about a name into one with advice."""
    try:
        yield
    except (socket.gaierror, UnicodeError) as exc:
        raise BindError(
            getattr(exc, "errno", None) or errno.EINVAL,
            f"the host name {host!r} does not resolve ({exc}): check its spelling, or give an address",
        ) from exc


@contextlib.contextmanager
def explained(place: str, advice: dict[int, str] = ADVICE) -> Any:
    """Turn the system's error into one with advice."""
    try:
        yield
    except BindError:
        raise
    except OSError as exc:
        reason = advice.get(exc.errno or 0, exc.strerror or str(exc))
        raise BindError(exc.errno, f"cannot listen on {place}: {reason}") from exc
    except OverflowError as exc:
        raise ValueError(f"cannot listen on {place}: {exc}") from exc
