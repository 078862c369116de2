"""NotifySocket: reports a program's state to systemd; sd_notify(3), sd_watchdog_enabled(3).

The variables NOTIFY_SOCKET and WATCHDOG_USEC are removed from the environment, so that programs
started from here do not take them for their own. Without systemd nothing is sent.
"""

from __future__ import annotations

import collections
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Self

from .._logger import logger as _logger
from ..listening.systemd import remove_variables, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..reports.stats import ServerStats

_NEVER = float("inf")
# Seconds between two STATUS lines, for the readers of `systemctl status`.
_STATUS_EVERY = 5.0
# Messages kept while systemd does not read. Each is a new state, and a program has few.
_MOST_UNSENT = 64


class NotifySocket:
    """Reports this program's state to systemd; does nothing if systemd has not asked for it.

    It never blocks and never raises. A message for which there is no room is sent before the next.

    Args:
        address: of systemd's socket; None if it has not asked.
        watchdog: seconds within which systemd expects a sign of life, or infinity.

    Attributes:
        watchdog: as given; infinity without an address.
        pulse_every: seconds between two calls of `pulse()`, or infinity.
    """

    def __init__(self, address: str | None, watchdog: float = _NEVER) -> None:
        self._address = address or ""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address is not None else None
        if self._sock is not None:
            self._sock.setblocking(False)
        self.watchdog: float = watchdog if self._sock is not None else _NEVER
        self.pulse_every: float = min(self.watchdog / 2, _STATUS_EVERY) if self._sock is not None else _NEVER
        self._unsent: collections.deque[bytes] = collections.deque(maxlen=_MOST_UNSENT)
        self._state = "starting"
        self._warned = False

    @classmethod
    def from_environment(cls) -> Self:
        """Make the one that the environment asks for, and remove the variables."""
        address, watchdog = notify_address(os.environ), watchdog_seconds(os.environ, os.getpid())
        remove_variables(("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"), os.environ)
        return cls(address, watchdog)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Send nothing more."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def ready(self, note: str = "") -> None:
        """Report that all servers serve, at the start or after a reload. `note` is for people."""
        self._state = f"serving{note}"
        self._report("READY=1")

    def reloading(self) -> None:
        """Report a reload, for each SIGHUP since systemd waits for it; `ready()` ends it."""
        self._state = "reloading"
        self._report("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Report that the end has begun. Idempotent."""
        if self._state != "draining":
            self._state = "draining"
            self._report("STOPPING=1")

    def pulse(self, stats: Iterable[ServerStats]) -> None:
        """Report that the process is alive, and its counters."""
        if self._flush():  # a pulse that does not fit is not kept: the next one does as well
            self._send(f"WATCHDOG=1\nSTATUS={self._state}: {_summary(stats)}".encode())

    def _report(self, *assignments: str) -> None:
        self._unsent.append("\n".join([*assignments, f"STATUS={self._state}"]).encode())
        self._flush()

    def _flush(self) -> bool:
        """Send the kept messages; false if there was no room for all of them."""
        while self._unsent and self._send(self._unsent[0]):
            self._unsent.popleft()
        return not self._unsent

    def _send(self, message: bytes) -> bool:
        """Send one message, if the socket is open; false if there is no room."""
        if self._sock is not None:
            try:
                self._sock.sendto(message, self._address)
            except BlockingIOError:  # its queue is full: unix(7)
                return False
            except OSError as exc:
                level, self._warned = logging.DEBUG if self._warned else logging.WARNING, True
                told = "systemd cannot be told about this program, at NOTIFY_SOCKET=%r: %s"
                _logger.log(level, told, self._address, exc)
        return True


def notify_address(environment: Mapping[str, str]) -> str | None:
    """Return the address of systemd's socket; None if there is none, or an unknown kind."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address.startswith("@") and len(address) > 1:  # an abstract name, unix(7)
        return "\0" + address[1:]
    if address.startswith("/"):
        return address
    if address:
        _logger.warning("NOTIFY_SOCKET must be a path, or @ and an abstract name; got %r: systemd is not told", address)
    return None


def watchdog_seconds(environment: Mapping[str, str], pid: int) -> float:
    """Return the seconds of systemd's watchdog; infinity if it has none for this process."""
    try:
        if "WATCHDOG_USEC" not in environment or whole_number("WATCHDOG_PID", environment, pid) != pid:
            return _NEVER
        return whole_number("WATCHDOG_USEC", environment) / 1e6 or _NEVER
    except ValueError as exc:
        _logger.warning("%s: the watchdog is not told", exc)
        return _NEVER


def _summary(stats: Iterable[ServerStats]) -> str:
    """The counters of all servers in a line, for people."""
    servers = list(stats)
    counts = {
        "active": sum(one.active for one in servers),
        "connections": sum(one.accepted for one in servers),
        "datagrams": sum(one.datagrams_received for one in servers),
        "failed": sum(one.failed for one in servers),
        "refused": sum(one.refused for one in servers),
        "dropped": sum(one.datagrams_dropped for one in servers),
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items())
