"""Listener: accepts connections on one socket, in batches, and survives the errors of accept(2).

The loops' own servers cannot pause, and cannot pass an accepted socket on. When descriptors run
out, uvloop's closes new connections silently, and asyncio's logs hundreds of lines.
"""

from __future__ import annotations

import array
import contextlib
import errno
import functools
import select
import socket
import struct
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from .._logger import logger as _logger
from ..net.addresses import url_of
from ..net.readers import add_reader

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from .binding import BoundSocket

# Connections accepted in one wake-up. Each starts a handler at once, so this bounds how long
# everything else waits: about a millisecond.
_BATCH = 32
# Connections accepted when the listener closes, at most, so that a stream of new clients cannot
# keep the server from closing: the default of net.core.somaxconn, the longest queue (listen(2)).
_LONGEST_QUEUE = 4096
# Seconds until accept is tried again after descriptors or memory ran out; earlier when a
# connection closes.
_BACKOFF = 0.05
# Seconds between two warnings about that.
_WARN_EVERY = 60.0

# A packet filter for a listening socket (linux/filter.h: code, two jumps, operand) that drops
# packets with TCP's SYN flag, bit 1 of byte 13 (RFC 9293, 3.1), and passes all others.
_NO_NEWCOMERS = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
)
# asm-generic/socket.h, for most architectures. The others refuse it, which does no harm.
_SO_ATTACH_FILTER = 26

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# accept(2) also reports errors of the new connection and of the firewall; the next may be fine.
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


class Arriving(Protocol):
    """What a connection becomes."""

    def _accept(self, listening: socket.socket, kind: tuple[int, int, int]) -> bool:
        """Be the next connection of a socket of this kind; false if none waits."""


AnyArriving = TypeVar("AnyArriving", bound=Arriving)


class Listener(Generic[AnyArriving]):
    """Accepts connections on one socket, which it closes.

    Args:
        connect: makes what a connection becomes. One is made ahead, before it is known whether
            there is a connection for it.
        accepted: called with each that has become one; may call `pause()`.
        failed: called each time that accept fails.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bound: BoundSocket,
        connect: Callable[[], AnyArriving],
        accepted: Callable[[AnyArriving], object],
        failed: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._bound = bound
        self._connect = connect
        self._next: AnyArriving | None = None
        self._accepted = accepted
        self._failed = failed
        self.sock: socket.socket = bound.sock
        # Read once, not for each connection as `socket.accept` does.
        self._kind = (int(self.sock.family), int(self.sock.type), self.sock.proto)
        # One at a time where other processes wait for them too, or the first to wake up gets all.
        self._batch = 1 if bound.contended else _BATCH
        self._watching = False
        self._retry: asyncio.TimerHandle | None = None
        self._warned = -_WARN_EVERY
        self._closing = False
        self._left = _LONGEST_QUEUE  # to accept at most once it closes
        self.closed: bool = False

    def resume(self) -> None:
        """Start to accept connections, or go on."""
        if not self._watching and self._retry is None:
            add_reader(self._loop, self.sock.fileno(), functools.partial(self._accept, self._batch))
            self._watching = True

    def pause(self) -> None:
        """Leave connections to the kernel's queue."""
        if self._watching:
            self._loop.remove_reader(self.sock.fileno())
            self._watching = False
        self._cancel_retry()

    def retry(self) -> None:
        """Accept again at once if accepting waits for free descriptors or memory."""
        if self._cancel_retry():
            if self._closing:
                self._empty()
            else:
                self.resume()

    def close(self) -> None:
        """Accept what is in the kernel's queue, then close; closing alone would reset it.

        Without descriptors or memory for all it goes on in the background, until `closed` or
        `abandon()`. If another process keeps the socket open, the queue is left to it.
        """
        self.pause()
        self._closing = True
        if self._bound.handed_over:
            self.abandon()
            return
        if not self._bound.given:
            _ignore_newcomers(self.sock)
        self._empty()

    def _empty(self) -> None:
        self._left -= self._accept(self._left)
        # accept(2) needs a descriptor even if the queue is empty.
        if self._retry is None or not _is_readable(self.sock):
            self.abandon()

    def abandon(self) -> None:
        """Close now; the kernel resets the connections in its queue."""
        self._cancel_retry()
        self.closed = True
        self._next = None
        self._bound.close()

    def _cancel_retry(self) -> bool:
        if self._retry is None:
            return False
        self._retry.cancel()
        self._retry = None
        return True

    def _accept(self, most: int) -> int:
        """Accept up to `most` connections, or until paused; returns how many there were."""
        for done in range(most):
            arriving = self._next or self._connect()
            try:
                if not arriving._accept(self.sock, self._kind):
                    self._next = arriving
                    return done
            except OSError as exc:
                self._failed()
                if exc.errno in _TRANSIENT:
                    continue
                self._back_off(exc)
                return done
            self._next = None
            self._accepted(arriving)
            if not (self._watching or self._closing):
                return done + 1
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


def _is_readable(sock: socket.socket) -> bool:
    """Whether a connection is queued, without a descriptor for epoll."""
    queue = select.poll()
    queue.register(sock, select.POLLIN)
    return bool(queue.poll(0))


def _ignore_newcomers(sock: socket.socket) -> None:
    """Let the kernel drop the SYN of new clients: their TCP sends it again, as after packet loss.

    Else those that connect between the last accept and the close would be reset. It holds for every
    process that has the socket open, for ever.
    """
    program = array.array("B", _NO_NEWCOMERS)
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        with contextlib.suppress(OSError):  # not allowed here: close without the filter
            sock.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, program.buffer_info()[0])
            )
