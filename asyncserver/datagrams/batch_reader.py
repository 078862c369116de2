"""BatchReader: an endpoint that is read in batches, pauses, and is read to its end in a drain.

    resume() -> [readable -> places left? -> take, take, ... until there is none] ... -> drain()

The loop says readable once for many datagrams. Derived classes take and handle them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .._logger import logger as _logger
from ..net.addresses import url_of
from ..net.readers import add_reader
from .datagram import Datagram, Endpoint, NotForUs

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine
    from contextvars import Context

    from ..listening.binding import BoundSocket

# Datagrams taken in one wake-up: enough to save trips through the loop, and with quick handlers
# other tasks wait only a fifth of a millisecond.
_BATCH = 32


Run: TypeAlias = "Callable[[Datagram], Coroutine[Any, Any, object]]"


class Handling(Protocol):
    """What a reader needs of its server, which admits datagrams and settles them."""

    label: str  # for the log
    _loop: asyncio.AbstractEventLoop
    _context: Context  # for handlers, each of which gets a copy
    _run: Run  # what is to be called; may change between two batches

    def _tell_change(self) -> None:
        """Wake the task that waits for the end of the drain."""

    def _places_left(self) -> int:
        """How many more handlers may begin: while the server does not pause, at least one."""

    def _start(self, handler: Run, source: Datagram) -> None:
        """Run a handler in a task of its own."""

    def _keep(self, task: asyncio.Task[object], source: Datagram) -> None:
        """Keep a handler that waits until it ends."""

    def _settle(self, source: Datagram, exc: BaseException | None, result: object) -> None:
        """Count how a handler has ended, and send what it returned."""

    def _count_answered(self, number: int) -> None:
        """Settle `number` handlers whose answers have been sent."""


class BatchReader(Endpoint, ABC):
    """Reads datagrams for a server. The other arguments are Endpoint's."""

    def __init__(self, server: Handling, bound: BoundSocket, max_datagram_size: int) -> None:
        super().__init__(server._loop, bound, max_datagram_size)
        self._server = server
        self._watching = False
        self._left = 0  # to take in this batch; none while it pauses
        self._remaining: int | None = None  # while draining: how many datagrams to read at most

    def resume(self) -> None:
        """Receive datagrams."""
        if not self._watching and self._remaining != 0:
            add_reader(self._loop, self._fd, self._on_readable)
            self._watching = True
            if self._remaining is not None:  # there may be none, and so no event
                self._loop.call_soon(self._on_readable)

    def pause(self) -> None:
        """Leave datagrams in the kernel's buffer."""
        if self._watching:
            self._loop.remove_reader(self._fd)
            self._watching = False
        self._left = 0

    def _on_readable(self) -> None:
        if self._watching:
            self._left = min(_BATCH, self._server._places_left())
            if self._remaining is not None:
                self._left = min(self._left, self._remaining)
            self._serve_batch()
            if self._remaining == 0:
                self.pause()
                self._server._tell_change()
            elif self._remaining is not None:  # that may have been the last one: no more events
                self._loop.call_soon(self._on_readable)

    @abstractmethod
    def _serve_batch(self) -> None:
        """Take datagrams until there is none, and run their handlers. For I/O callbacks only."""

    def _take(self) -> Datagram | None:
        """Receive a datagram; None if there is none, or the batch is over, or reading pauses."""
        while self._left:
            self._left -= 1
            try:
                datagram = self._receive()
            except BlockingIOError:
                self._left = 0
                if self._remaining is not None:
                    self._remaining = 0
            except NotForUs:
                continue
            except OSError as exc:
                self._log_error(exc)
            else:
                self._received += 1
                if self._remaining is not None:
                    self._remaining -= 1
                    self._left = min(self._left, self._remaining)
                return datagram
        return None

    def _log_error(self, exc: OSError) -> None:
        """Log an ICMP error for a datagram we sent; the next call goes on."""
        _logger.debug("receiving on %s: %s", self._bound.address, exc, extra={"server": url_of(self._bound)})

    @property
    def unfinished(self) -> bool:
        """Whether something is still to be done before the end of a drain."""
        return bool(self._remaining)

    def drain(self) -> None:
        """Pause; after `resume()` read what the kernel holds now, then no more. Sending goes on.

        If another process takes over the socket, that process reads it.
        """
        self.pause()
        if self._bound.handed_over:
            self._remaining = 0
            self._stop_counting()
        else:
            self._remaining = self._queued_at_most()

    def close(self) -> None:
        """See Endpoint."""
        self.pause()
        super().close()
