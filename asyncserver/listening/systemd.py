"""Sockets that systemd opens for a program: LISTEN_FDS, LISTEN_FDNAMES.

See sd_listen_fds(3) and systemd.socket(5). The variables are removed from the environment, so that
programs started from here do not take them for their own.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import stat
from typing import TYPE_CHECKING

from ..exceptions import BindError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping

__all__ = ["systemd_sockets"]

_LISTEN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_MOST_DESCRIPTORS = 1 << 20  # Linux's fs.nr_open: no process has more
_UNNAMED = "unknown"  # sd_listen_fds_with_names(3)

# All that this process has taken, for later calls of systemd_sockets() and for is_kept().
_taken: list[tuple[str, socket.socket]] = []


def systemd_sockets(name: str | None = None) -> list[socket.socket]:
    """Return the sockets that systemd has opened for this program, if any, in its units' order.

    Example::

        run(*[serve(handler, sock=sock) for sock in systemd_sockets("web")])

    systemd keeps them open as long as their unit is active. A server on one leaves its queue, when
    it closes, to the program's next start, and never removes the file of a Unix socket.

    The first call reads and removes the environment variables; later calls return the same sockets.
    Programs started from here do not inherit them.

    Args:
        name: return only sockets of this name, `FileDescriptorName=` in the unit; the unit's own
            name if it sets none.

    Raises:
        ValueError: the variables are not as systemd sets them.
        BindError: a descriptor that they name is not open.
    """
    return [sock for one, sock in named_sockets() if name in {None, one}]


def named_sockets() -> list[tuple[str, socket.socket]]:
    """Return all sockets from systemd, each with its name."""
    names = listen_names(os.environ, os.getpid(), own_pidfd_id())
    if names:
        _check_open(len(names))
        for descriptor, name in enumerate(names, _FIRST_DESCRIPTOR):
            os.set_inheritable(descriptor, False)
            # Not a FIFO, a device, or a file of OpenFile=.
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                _taken.append((name, socket.socket(fileno=descriptor)))
        remove_variables(_LISTEN, os.environ)
    return _taken


def is_kept(sock: socket.socket) -> bool:
    """Whether systemd has this socket open too, and keeps it when we close ours."""
    return any(sock is one for _, one in _taken)


def listen_names(environment: Mapping[str, str], pid: int, pidfd_id: int | None = None) -> list[str]:
    """Return the names of the passed descriptors, from number 3 on; none if for another process.

    `pid` and `pidfd_id` are this process's. Raises ValueError for what systemd does not set so.
    """
    if "LISTEN_PID" not in environment or whole_number("LISTEN_PID", environment) != pid:
        return []
    if "LISTEN_PIDFDID" in environment:
        meant = whole_number("LISTEN_PIDFDID", environment)
        # A 32-bit kernel shows the lower half only.
        if pidfd_id is not None and pidfd_id not in {meant, meant & 0xFFFFFFFF}:
            return []
    count = whole_number("LISTEN_FDS", environment)
    if count > _MOST_DESCRIPTORS:
        raise ValueError(f"LISTEN_FDS must be at most {_MOST_DESCRIPTORS}, got {count}")
    if "LISTEN_FDNAMES" not in environment:
        return [_UNNAMED] * count
    names = environment["LISTEN_FDNAMES"].split(":") if count else []
    if len(names) != count:
        raise ValueError(
            f"LISTEN_FDNAMES must hold a name for each of the {count} descriptors of LISTEN_FDS, separated by "
            f"colons; got {environment['LISTEN_FDNAMES']!r}"
        )
    return names


def own_pidfd_id() -> int | None:
    """Return the inode number of this process's pidfd; unlike a process number it is not reused.

    None where the kernel has no such numbers; sd_listen_fds() does not compare them there either.
    Before Linux 6.9 all pidfds share one inode with other anonymous files, such as an epoll:
    pidfd_open(2).
    """
    try:
        with contextlib.ExitStack() as stack:
            pidfd = os.pidfd_open(os.getpid())
            stack.callback(os.close, pidfd)
            anonymous = os.fstat(stack.enter_context(select.epoll()).fileno())
            own = os.fstat(pidfd)
    except (AttributeError, OSError):  # not on Linux; forbidden; no descriptors left
        return None
    return own.st_ino if own.st_dev != anonymous.st_dev else None


def _check_open(count: int) -> None:
    for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + count):
        try:
            os.fstat(descriptor)
        except OSError as exc:
            last = _FIRST_DESCRIPTOR + count - 1
            raise BindError(
                exc.errno,
                f"LISTEN_FDS={count} promises descriptors {_FIRST_DESCRIPTOR} to {last}, but {descriptor} is not "
                "open: whatever starts this program has to pass them on",
            ) from exc


# -- systemd's variables, also for monitoring/notify.py


def whole_number(name: str, environment: Mapping[str, str], default: int = 0) -> int:
    """Return a variable's value; raises ValueError if it is not a whole number."""
    text = environment.get(name, str(default))
    if not re.fullmatch("[0-9]{1,20}", text):
        raise ValueError(f"{name} must be a whole number, as systemd sets it; got {text!r}")
    return int(text)


def remove_variables(names: Iterable[str], environment: MutableMapping[str, str]) -> None:
    """Remove variables from an environment; they may be missing."""
    for name in names:
        environment.pop(name, None)
