"""Listener: accepts connections on one listening socket, in batches, and survives what accept(2) can say.

Our own and not the loop's, because the loops' servers cannot pause, close newcomers silently (uvloop) or log hundreds
of lines (asyncio) when descriptors run out, and cannot hand an accepted socket to anybody else.
"""

from __future__ import annotations

import array
import contextlib
import errno
import socket
import struct
from typing import TYPE_CHECKING

from .._logger import logger as _logger
from .addresses import url_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from .addresses import Address
    from .binding import BoundSocket

# Connections accepted in one wake-up. Each starts a handler at once, so this bounds what others wait: about a
# millisecond.
_BATCH = 32
# Connections accepted when the listener closes: what net.core.somaxconn lets a queue hold by default (listen(2)), so
# that clients who keep coming cannot keep the server from closing.
_LONGEST_QUEUE = 4096
# Seconds until accept is tried again after descriptors or memory ran out. A connection that closes tries earlier.
_BACKOFF = 0.05
# Seconds between two warnings about that.
_WARN_EVERY = 60.0

# A filter of packets to a listening socket (linux/filter.h: code, jumps, operand): what has TCP's SYN flag, the second
# bit of byte 13 (RFC 9293, 3.1), is dropped, all else passes.
_NO_NEWCOMERS = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
)
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h, on most architectures; on the others it is refused, which does no harm

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# accept(2) reports errors of the new connection itself, and of the firewall; the next one may be fine.
_TRANSIENT = {
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENONET,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EPROTO,
    errno.ETIMEDOUT,
}


class Listener:
    """Accepts on one socket and passes on each new one, non-blocking, with its peer's address.

    Args:
        loop: the loop that watches the socket.
        bound: a socket that listens. The listener closes it.
        accepted: called with each new socket; may call `pause()`.
        failed: called each time that accept fails.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bound: BoundSocket,
        accepted: Callable[[socket.socket, Address], object],
        failed: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._bound = bound
        self._accepted = accepted
        self._failed = failed
        self.sock: socket.socket = bound.sock
        # The properties make enums and `socket.accept` asks them anew for each connection: 2 us of about 35.
        self._kind = (int(self.sock.family), int(self.sock.type), self.sock.proto)
        self._watching = False
        self._retry: asyncio.TimerHandle | None = None
        self._warned = -_WARN_EVERY

    def resume(self) -> None:
        """Accept connections."""
        if not self._watching and self._retry is None:
            self._loop.add_reader(self.sock.fileno(), self._on_readable)
            self._watching = True

    def pause(self) -> None:
        """Leave connections to the kernel's queue."""
        if self._watching:
            self._loop.remove_reader(self.sock.fileno())
            self._watching = False
        self._cancel_retry()

    def retry(self) -> None:
        """Descriptors may be free again: if accepting waits for that, try at once."""
        if self._cancel_retry():
            self.resume()

    def close(self) -> None:
        """Accept what the kernel holds already, then close. Closing alone would reset those connections.

        Unless another process goes on with the socket: then it also goes on with what is queued.
        """
        self.pause()
        if not self._bound.handed_over:
            if not self._bound.given:
                _ignore_newcomers(self.sock)
            self._accept(_LONGEST_QUEUE)
        self._cancel_retry()
        self._bound.close()

    def _cancel_retry(self) -> bool:
        if self._retry is None:
            return False
        self._retry.cancel()
        self._retry = None
        return True

    def _on_readable(self) -> None:
        for _ in range(_BATCH):
            if not self._accept(1) or not self._watching:
                return

    def _accept(self, most: int) -> int:
        """Accept so many connections at most; returns how many there were."""
        for done in range(most):
            try:
                fd, address = self.sock._accept()  # type: ignore[attr-defined] # in typeshed for _socket.socket only
            except BlockingIOError:
                return done
            except OSError as exc:
                self._failed()
                if exc.errno in _TRANSIENT:
                    continue
                self._back_off(exc)
                return done
            sock = socket.socket(*self._kind, fileno=fd)
            sock.setblocking(False)
            self._accepted(sock, address)
        return most

    def _back_off(self, exc: OSError) -> None:
        self.pause()
        self._retry = self._loop.call_later(_BACKOFF, self.retry)
        now = self._loop.time()
        if now - self._warned >= _WARN_EVERY:
            self._warned = now
            reason = "out of descriptors or memory" if exc.errno in _EXHAUSTED else "unexpected error"
            _logger.warning(
                "accepting on %s pauses, %s (%s): connections wait in the kernel's queue and accepting is tried "
                "again every %g s and when a connection closes",
                self._bound.address,
                reason,
                exc,
                _BACKOFF,
                extra={"server": url_of(self._bound)},
            )


def _ignore_newcomers(sock: socket.socket) -> None:
    """Let the kernel ignore who wants to connect from now on: they try again, as if their packet had been lost.

    Otherwise who connects between the last accept and the close would be reset. Irrevocable for every process that has
    the socket.
    """
    program = array.array("B", _NO_NEWCOMERS)
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        with contextlib.suppress(OSError):  # not allowed here: then as without it
            sock.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, program.buffer_info()[0])
            )
