"""NotifySocket: what a program tells systemd about itself; sd_notify(3), sd_watchdog_enabled(3).

The variables NOTIFY_SOCKET and WATCHDOG_USEC are taken out of the environment, so that programs started from here do
not take them for their own. Where systemd has not started us nothing is told.
"""

from __future__ import annotations

import collections
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Self

from .._logger import logger as _logger
from ..net.systemd import remove_variables, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..servers.stats import ServerStats

_NOTIFY = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

_AWAY = float("inf")
# Seconds between two STATUS lines, for people who look at `systemctl status`.
_STATUS_EVERY = 5.0
# Messages kept while systemd does not read: a state each, and a program goes through few.
_MOST_UNSENT = 64


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
        remove_variables(_NOTIFY, os.environ)
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
        if "WATCHDOG_USEC" not in environment or whole_number("WATCHDOG_PID", environment, pid) != pid:
            return _AWAY
        return whole_number("WATCHDOG_USEC", environment) / 1e6 or _AWAY
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
