"""Server: what a program holds of a running server, and how the server ends.

   serving -> close(): nothing new -> handlers are notified -> they end
            -> deadline: the others are cancelled -> a second later: aborted

This is the same for connections and for datagrams. For how handlers run, see handlers.py.

Theory of the end. Many tasks may call `close()`, also handlers, and each may be cancelled. So
nothing happens in the caller:

* The first call starts `_drain`, a task that is never cancelled; all callers wait for it (`join`).
  It ends when all handlers have ended, or those left at the deadline were cancelled and aborted.
* A caller that is a handler would wait for itself. `_callers` holds such tasks: the drain neither
  waits for them nor cancels them. They do not count for limits either, or connections that wait in
  the kernel would wait for ever.
* `_clean`, a second task, starts as the drain ends. It gives those callers until the deadline, and
  a second at least, then cancels them too, and releases the sockets. Then the server is closed.
* A caller that is cancelled in `close()` makes the deadline now (`_hurry`), a later call with a
  shorter timeout makes it earlier (`_hasten`); nothing moves it back.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

from .._logger import logger as _logger
from ..adapters.checks import check_close_callback
from ..net.addresses import format_address, label_of
from ..net.tasks import Progress, join, require_loop
from ..reports.logs import about, closed
from ..reports.stats import Account, DrainReport

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from ..datagrams.batch_reader import BatchReader
    from ..listening.binding import BoundSocket
    from ..listening.listener import Listener
    from ..net.addresses import Address


class Server(Account, ABC):
    """A running server, made by `serve()` or `serve_datagrams()`.

    Its attributes, `stats()` and `connections` may be read in any thread. Methods that act raise
    RuntimeError in another thread than the loop's, with what to write there.

    Attributes:
        addresses: where clients reach it, an address for each socket.
        label: the same as a text, as metrics and log records have it: "tcp://127.0.0.1:8080".
        idle_timeout: seconds of silence that a connection may keep, or None.
        durations: how long handlers took, while the server's metrics are asked for; else None.
        loop: the event loop that it runs in.
    """

    _end_level = logging.INFO  # of the line in the log when it has closed
    _cancel_grace = 1.0  # seconds between cancelling a handler and taking its connection away

    def __init__(self, loop: asyncio.AbstractEventLoop, bound: list[BoundSocket], drain_timeout: float) -> None:
        super().__init__(bound[0].sock.type)
        self.loop: asyncio.AbstractEventLoop = loop
        self._loop = loop
        self._bound = bound
        self.addresses: tuple[Address, ...] = tuple(one.address for one in bound)
        self.label: str = label_of(bound)
        self.idle_timeout: float | None = None
        self._drain_timeout = drain_timeout
        self._intakes: Sequence[Listener[Any] | BatchReader] = ()  # where work comes in
        self._begun = False
        self._paused = False  # by `pause()`
        self._full = False  # the limit of handlers is reached
        self._closing = asyncio.Event()
        self._closed = asyncio.Event()
        self._drainer: asyncio.Task[DrainReport] | None = None
        self._cleaner: asyncio.Task[None] | None = None
        self._close_callbacks: list[Callable[[], object]] = []
        self._callers: set[asyncio.Task[Any] | None] = set()
        self._deadline = 0.0
        self._kept_errors: list[BaseException] | None = None  # those of handlers, if somebody wants them
        progress = Progress(loop)
        self._tell_change, self._until = progress.notify, progress.until

    def __repr__(self) -> str:
        """Show the state and the addresses."""
        state = "closed" if self._closed.is_set() else "closing" if self._closing.is_set() else "serving"
        # As the kernel gives them, but names as people write them.
        places = [str(one) if isinstance(one, tuple) else format_address(one) for one in self.addresses]
        return f"<{type(self).__name__} {state} on {', '.join(places)}>"

    def __del__(self, _warn: Callable[..., object] = warnings.warn) -> None:
        """Warn about a server that was never closed, as asyncio's transports do."""
        if getattr(self, "_begun", False) and self._drainer is None:
            _warn(f"unclosed server {self!r}: write `await server.close()`", ResourceWarning, source=self)
            for one in self._bound:
                one.sock.close()  # and leave a Unix socket's file: another process may use it after a fork

    # -- for the caller

    async def __aenter__(self) -> Self:
        """Return the server, which runs already; for one that `start()` has returned."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Drain and close; returns when the last handler has ended or was given up."""
        await self._end()

    def add_close_callback(self, callback: Callable[[], object]) -> None:
        """Call `callback()` when the last handler has ended and the sockets are being closed.

        What it raises is logged.

        Raises:
            TypeError: it cannot be called so, or is async.
        """
        check_close_callback(callback)
        self._close_callbacks.append(callback)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The sockets it listens on; none once it closes."""
        return () if self._closing.is_set() else tuple(one.sock for one in self._bound)

    @property
    @abstractmethod
    def connections(self) -> frozenset[Any]:
        """A snapshot of the connections whose handlers run now, Streams or what stands for them.

        A connection whose PROXY header or TLS handshake is not complete is not among
        them: nothing may be sent on it yet.
        """

    def broadcast(self, data: bytes | bytearray | memoryview, *, but: Any = None) -> int:
        """Post the same bytes to every connection in `connections`, see `Stream.post()`.

        Args:
            data: any bytes-like object; one copy serves all connections.
            but: a Stream that does not get it, such as the sender's.

        Returns:
            to how many it is on its way.

        Raises:
            TypeError: it is not bytes-like, or `but` no Stream; or the server has no streams: it
                serves a protocol, or datagrams.
        """
        raise TypeError(f"broadcast() posts to streams; {self!r} serves datagrams")

    async def sendto(
        self, data: bytes | bytearray | memoryview, address: Address, local_address: Address = None
    ) -> None:
        """Send a datagram to anyone, from a socket of this server.

        It counts in `datagrams_sent`, and as no datagram's answer. Waits while the socket is full.
        Cancelled, it has not sent. In a drain it still sends, until the server has closed.

        Args:
            data: any bytes-like object.
            address: (host, port), the host an IP address: with % and an interface for one of a
                link (ipv6(7)), or for a group of either family that has to leave by that interface.
                Of IPv6 also with flow and scope, as `datagram.address` is. A Unix peer's path. To a
                broadcast address the socket may send from then on (SO_BROADCAST, ip(7)). To groups
                the kernel sends on this link only, unless IP_MULTICAST_TTL of the socket is raised.
            local_address: the address of this server that it comes from, (host, port) or the host's
                text; None for the one that the route chooses.

        Raises:
            TypeError: not bytes, or no address of that kind; this server serves connections, or is
                behind a proxy, where clients are reached by `datagram.reply()` only.
            ValueError: an address that no socket of this server sends to, or not from.
            OSError: the system refuses; with errno EMSGSIZE the data is too large for one datagram.
            anyio.ClosedResourceError: the server has been closed.
            anyio.BrokenResourceError: the Unix peer is gone, or has read nothing for 5 seconds.
        """
        raise TypeError(f"sendto() sends datagrams; {self!r} serves connections: use stream.send() or post()")

    @property
    def taking(self) -> bool:
        """Whether it takes new work: it has begun, and been neither paused nor closed."""
        return self._begun and self._drainer is None and not self._paused

    @property
    def closed(self) -> bool:
        """Whether the last handler has ended, or been given up."""
        return self._closed.is_set()

    @property
    def can_reload_tls(self) -> bool:
        """Whether `reload_tls()` has files to read."""
        return False

    @abstractmethod
    def measure_durations(self) -> None:
        """Measure from now on how long handlers take, which costs 0.6 us per handler."""

    def pause(self) -> None:
        """Take nothing new; the kernel queues connections and datagrams, until its limits.

        Handlers go on.

        Raises:
            RuntimeError: the server has been closed.
        """
        self._require_open("pause")
        self._paused = True
        self._apply_pause()

    def resume(self) -> None:
        """Undo `pause()`.

        Raises:
            RuntimeError: the server has been closed.
        """
        self._require_open("resume")
        self._paused = False
        self._apply_pause()

    def reload_tls(self, context: ssl.SSLContext | None = None) -> None:
        """Use new certificates for new connections; those that are open keep theirs.

        Args:
            context: the context to use from now on; None reads again the files given to
                `tls_context()`.

        Raises:
            RuntimeError: the server does not speak TLS or has been closed, or the context was not
                made by `tls_context()` and no new one is given.
            TypeError: the context is not one for the server side.
            OSError: a file cannot be read, or holds something else; the old context stays in use.
        """
        self._require_open("reload_tls")
        raise RuntimeError(f"{self!r} does not speak TLS: there is nothing to reload")

    async def close(self, drain_timeout: float | None = None) -> DrainReport:
        """Stop, politely: no new work, then wait for the handlers, then insist.

        * Nothing new is taken. Connections and datagrams that the kernel holds already
          are still served.
        * Every handler is notified (`stream.closing`). A connection that is between two messages
          comes to its end of stream, one that has just begun half a second later; one in a message
          goes on until it has answered.
        * Handlers that still run after `drain_timeout` seconds are cancelled, and a
          second later aborted.

        Called again, it waits for the same end, sooner if the new timeout says so. Called from
        inside a handler it does not wait for that handler, which has until the deadline, and at
        least a second, to end (but in a task that the handler waits for, it does); its place goes
        to one that waits for the others to make room. If the caller is cancelled while it waits,
        the deadline is now: close() ends within about a second, then CancelledError is raised.

        Args:
            drain_timeout: seconds; None for the server's own.

        Returns:
            how many handlers completed, were cancelled, were aborted.
        """
        require_loop(self._loop, "server.close()", coroutine=True)
        deadline = self._loop.time() + (self._drain_timeout if drain_timeout is None else drain_timeout)
        if self._drainer is None:
            self._deadline = deadline
            # Not by the loop's factory: an eager task would begin before we are known to call it.
            self._drainer = asyncio.Task(self._drain(self._handlers_ended()), loop=self._loop)
        elif drain_timeout is not None:
            self._hasten(deadline)
        caller = self._handler_of(asyncio.current_task())
        self._callers.add(caller)
        self._take_waiting()
        self._tell_change()
        try:
            return await join(self._drainer, self._hurry)
        finally:
            self._callers.discard(caller)
            self._tell_change()

    async def wait_closed(self) -> None:
        """Wait until the server has closed and the last handler has ended, or been given up."""
        require_loop(self._loop, "server.wait_closed()", coroutine=True)
        await self._closed.wait()

    def _begin(self) -> None:
        """Take new work from now on: until then it is in the kernel. Nothing, once closed."""
        if self._drainer is None:
            self._begun = True
            self._apply_pause()

    async def _end(self) -> None:
        """Close, and wait until the last handler has ended."""
        try:
            await self.close()
        finally:
            if self._cleaner is not None:
                # None if the program's end has cancelled the drain before its first step.
                await join(self._cleaner, self._hurry)

    def _apply_pause(self) -> None:
        for intake in self._intakes:
            if self._paused or self._full or not self._begun:
                intake.pause()
            else:
                intake.resume()

    # -- what derived classes do with handlers and sockets

    @abstractmethod
    def _stop(self) -> None:
        """Take what the kernel holds already, then nothing more."""

    @abstractmethod
    def _take_waiting(self) -> None:
        """Start handlers for what waits, as far as there are places."""

    @abstractmethod
    def _begin_drains(self) -> None:
        """Begin the drain of each source whose handler runs."""

    @abstractmethod
    def _unfinished(self) -> bool:
        """Whether the drain has anything to wait for, apart from `_callers`."""

    @abstractmethod
    def _busy(self) -> bool:
        """Whether any handler runs, or anything is being closed."""

    @abstractmethod
    def _handlers_ended(self) -> int:
        """How many handlers have ended so far."""

    @abstractmethod
    async def _insist(self) -> tuple[int, int]:
        """Cancel the handlers that are left, then abort; returns how many ended by each."""

    @abstractmethod
    def _drop_waiting(self) -> None:
        """Close what was taken from the kernel and has no handler yet."""

    @abstractmethod
    def _release_sockets(self) -> None:
        """Close the sockets that handlers needed until their end."""

    def _handler_of(self, task: asyncio.Task[Any] | None) -> asyncio.Task[Any] | None:
        """The handler that a task belongs to: itself, unless derived classes know better."""
        return task

    # -- closing

    def _require_open(self, what: str) -> None:
        require_loop(self._loop, f"server.{what}")
        if self._drainer is not None:
            raise RuntimeError(f"{what}(): {self!r} has been closed; start another with serve()")

    def _hurry(self) -> None:
        self._hasten(self._loop.time())

    def _hasten(self, deadline: float) -> None:
        self._deadline = min(self._deadline, deadline)
        self._tell_change()

    async def _drain(self, before: int) -> DrainReport:
        begun = self._loop.time()
        try:
            if self._begun:
                self._stop()
            else:
                self._drop_waiting()  # what handlers need may not be there
            self._closing.set()
            self._begin_drains()
            self._take_waiting()  # a handler that has called close() has made a place
            await self._until(lambda: not self._unfinished(), lambda: self._deadline)
            cancelled, aborted = await self._insist()
            completed = max(0, self._handlers_ended() - before - cancelled - aborted)
            self._drained = DrainReport(completed, cancelled, aborted)
            closed(self.label, self._drained, self._loop.time() - begun, self._counters(), self._end_level)
            return self._drained
        finally:
            self._cleaner = asyncio.Task(self._clean(), loop=self._loop)

    async def _clean(self) -> None:
        """Wait for handlers that called close() themselves, then release the sockets."""
        try:
            end = max(self._deadline, self._loop.time() + self._cancel_grace)
            await self._until(lambda: not self._busy(), lambda: end)
            self._callers.clear()
            await self._insist()
        finally:
            for callback in (self._release_sockets, *self._close_callbacks):
                try:
                    callback()
                except Exception:
                    _logger.exception("%r failed as the server closed", callback, extra=about(self))
            self._closed.set()
