"""systemd: the sockets that it opens for a program, and what a program tells it.

    systemd_sockets   LISTEN_FDS, LISTEN_FDNAMES       sd_listen_fds(3), systemd.socket(5)
    NotifySocket      NOTIFY_SOCKET, WATCHDOG_USEC     sd_notify(3), sd_watchdog_enabled(3)

Both take their variables out of the environment, so that programs started from here do not take them for their own.
Where systemd has not started us there is nothing to take, and both do nothing.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import re
import select
import socket
import stat
import time
from typing import TYPE_CHECKING, Self

from ._logger import logger as _logger
from .exceptions import BindError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping

    from .reports import ServerStats

__all__ = ["systemd_sockets"]

_LISTEN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_NOTIFY = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_MOST_DESCRIPTORS = 1 << 20  # Linux's fs.nr_open: no process has more
_UNNAMED = "unknown"  # sd_listen_fds_with_names(3)

_AWAY = float("inf")
# Seconds between two STATUS lines, for people who look at `systemctl status`.
_STATUS_EVERY = 5.0
# Messages kept while systemd does not read: a state each, and a program goes through few.
_MOST_UNSENT = 64

# What this process has taken, for as long as it runs: a second caller finds it here, and binding.py what is kept.
_taken: list[tuple[str, socket.socket]] = []


# -- sockets


def systemd_sockets(name: str | None = None) -> list[socket.socket]:
    """Return the sockets that systemd has opened for this program, in the order of its units; none without systemd.

        run(*[serve(handler, sock=sock) for sock in systemd_sockets("web")])

    systemd keeps them open as long as their unit is active. A server on one leaves what is queued there, when it
    closes, to the program's next start, and never removes the file of a Unix socket.

    The environment variables are read and removed by the first call, and programs started from here do not inherit
    the sockets. Later calls return the same ones.

    Args:
        name: those of one name only, `FileDescriptorName=` in the unit; the unit's own name if it sets none.

    Raises:
        ValueError: the variables are not as systemd makes them.
        BindError: a descriptor that they promise is not open.
    """
    return [sock for one, sock in named_sockets() if name in {None, one}]


def named_sockets() -> list[tuple[str, socket.socket]]:
    """Return all that `systemd_sockets()` has to choose from, each with its name."""
    names = listen_names(os.environ, os.getpid(), own_pidfd_id())
    if names:
        _check_open(len(names))
        for descriptor, name in enumerate(names, _FIRST_DESCRIPTOR):
            os.set_inheritable(descriptor, False)
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):  # else a FIFO, a device, or a file of OpenFile=
                _taken.append((name, socket.socket(fileno=descriptor)))
        _remove(_LISTEN, os.environ)
    return _taken


def is_kept(sock: socket.socket) -> bool:
    """Whether systemd has this socket open too, and goes on with it when we close ours."""
    return any(sock is one for _, one in _taken)


def listen_names(environment: Mapping[str, str], pid: int, pidfd_id: int | None = None) -> list[str]:
    """Return the names of the descriptors that are passed, from number 3 on; none if they are not for this process.

    Args:
        environment: from systemd, or from a process between it and us.
        pid: of this process.
        pidfd_id: see `own_pidfd_id()`.

    Raises:
        ValueError: a variable is not as systemd makes it.
    """
    if "LISTEN_PID" not in environment or _number("LISTEN_PID", environment) != pid:
        return []
    if "LISTEN_PIDFDID" in environment:
        meant = _number("LISTEN_PIDFDID", environment)
        # A 32-bit kernel shows the lower half only.
        if pidfd_id is not None and pidfd_id not in {meant, meant & 0xFFFFFFFF}:
            return []
    count = _number("LISTEN_FDS", environment) if "LISTEN_FDS" in environment else 0
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
    """Return the inode number of this process's pidfd; unlike process numbers, none is used again.

    None where the kernel has no such numbers; sd_listen_fds() does not compare them there either.
    Before Linux 6.9 all pidfds share one inode with all anonymous files, such as an epoll:
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


# -- notifications


class NotifySocket:
    """Tells systemd how this program is. Does nothing, and costs nothing, if systemd has not asked for it.

    It never blocks and never raises: what systemd has no room for just now goes out before the next message.

    Args:
        address: of systemd's socket; None if it has not asked.
        watchdog: seconds within which it has to hear of us again, or infinity.

    Attributes:
        watchdog: that.
        pulse_every: seconds between two calls of `pulse()`, or infinity.
    """

    def __init__(self, address: str | None, watchdog: float = _AWAY) -> None:
        self._address = address or ""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address is not None else None
        if self._sock is not None:
            self._sock.setblocking(False)
        self.watchdog: float = watchdog if self._sock is not None else _AWAY
        self.pulse_every: float = min(self.watchdog / 2, _STATUS_EVERY) if self._sock is not None else _AWAY
        self._unsent: collections.deque[bytes] = collections.deque(maxlen=_MOST_UNSENT)
        self._state = "starting"
        self._warned = False

    @classmethod
    def from_environment(cls) -> Self:
        """Make the one that the environment asks for, and remove what asks."""
        address, watchdog = notify_address(os.environ), watchdog_seconds(os.environ, os.getpid())
        _remove(_NOTIFY, os.environ)
        return cls(address, watchdog)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say no more."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def ready(self, note: str = "") -> None:
        """All servers serve, also: again. `note` is for people."""
        self._state = f"serving{note}"
        self._tell("READY=1")

    def reloading(self) -> None:
        """A reload has begun; `ready()` ends it. To be called anew for each SIGHUP, which systemd waits for."""
        self._state = "reloading"
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The end has begun. May be called twice."""
        if self._state != "draining":
            self._state = "draining"
            self._tell("STOPPING=1")

    def pulse(self, stats: Iterable[ServerStats]) -> None:
        """The process is alive, and this is what it has done."""
        if self._flush():  # a pulse itself is not worth being kept: the next one will do
            self._send(f"WATCHDOG=1\nSTATUS={self._state}: {_summary(stats)}".encode())

    def _tell(self, *assignments: str) -> None:
        self._unsent.append("\n".join([*assignments, f"STATUS={self._state}"]).encode())
        self._flush()

    def _flush(self) -> bool:
        """Send what is kept; false if there was no room for all of it."""
        while self._unsent and self._send(self._unsent[0]):
            self._unsent.popleft()
        return not self._unsent

    def _send(self, message: bytes) -> bool:
        """Send one message, if anybody listens; false if there is no room."""
        if self._sock is not None:
            try:
                self._sock.sendto(message, self._address)
            except BlockingIOError:  # its queue is full: unix(7)
                return False
            except OSError as exc:
                self._warn(exc)
        return True

    def _warn(self, exc: OSError) -> None:
        level, self._warned = logging.DEBUG if self._warned else logging.WARNING, True
        _logger.log(level, "systemd cannot be told about this program, at NOTIFY_SOCKET=%r: %s", self._address, exc)


def notify_address(environment: Mapping[str, str]) -> str | None:
    """Return the address of systemd's socket; None if there is none, or of a kind that we do not speak."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address.startswith("@") and len(address) > 1:  # an abstract name, unix(7)
        return "\0" + address[1:]
    if address.startswith("/"):
        return address
    if address:
        _logger.warning("NOTIFY_SOCKET must be a path, or @ and an abstract name; got %r: systemd is not told", address)
    return None


def watchdog_seconds(environment: Mapping[str, str], pid: int) -> float:
    """Return the seconds within which systemd has to hear of us; infinity if it does not watch."""
    try:
        if "WATCHDOG_USEC" not in environment or _number("WATCHDOG_PID", environment, pid) != pid:
            return _AWAY
        return _number("WATCHDOG_USEC", environment) / 1e6 or _AWAY
    except ValueError as exc:
        _logger.warning("%s: the watchdog is not told", exc)
        return _AWAY


def _summary(stats: Iterable[ServerStats]) -> str:
    """What people want to see in a line: the counters of all servers."""
    servers = list(stats)
    words = {
        "active": sum(one.active for one in servers),
        "connections": sum(one.accepted for one in servers),
        "datagrams": sum(one.datagrams_received for one in servers),
        "failed": sum(one.failed for one in servers),
        "refused": sum(one.refused for one in servers),
        "dropped": sum(one.datagrams_dropped for one in servers),
    }
    return ", ".join(f"{count} {word}" for word, count in words.items())


def _number(name: str, environment: Mapping[str, str], default: int = 0) -> int:
    text = environment.get(name, str(default))
    if not re.fullmatch("[0-9]{1,20}", text):
        raise ValueError(f"{name} must be a whole number, as systemd sets it; got {text!r}")
    return int(text)


def _remove(names: Iterable[str], environment: MutableMapping[str, str]) -> None:
    for name in names:
        environment.pop(name, None)
