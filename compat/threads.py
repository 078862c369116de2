"""A thread for each live request, taken from a pool that grows as far as `max_threads`."""

import logging
import socket
import socketserver
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic, sleep
from typing import Any

from compat.intake.batches import Source, function_of
from compat.intake.overrides import trust
from compat.pool.call import Call
from compat.pool.executor import ThreadPool
from compat.pool.system_limit import threads_to_be_had
from compat.pool.threads import JoinableThreads
from compat.servers import TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer, redeclares

trust(__name__)

_logger = logging.getLogger("compat")

_making_pools = threading.Lock()

LOOK_AGAIN_SECONDS = 0.01  # a handler has reached its first blocking call by then
WAKE_UP_SECONDS = 1.0  # for handlers to end after their sockets are shut down, as in asyncserver


@dataclass(frozen=True, slots=True)
class CloseReport:
    """How the requests ended that were being handled when `server_close()` was called.

    Example::

        with compat.ThreadingTCPServer(("127.0.0.1", 8080), Handler) as server:
            server.graceful_timeout = 10
            server.serve_forever()
        print(server.close_report)

    Attributes:
        completed: ended by themselves within `graceful_timeout`.
        interrupted: ended when their socket was shut down; or had not begun, and were closed.
        running: still running when `server_close()` returned.
    """

    completed: int
    interrupted: int
    running: int


@redeclares
class ThreadingMixIn(socketserver.ThreadingMixIn):
    """Handle each request in a thread of its own; threads are reused and end with the server.

    Example::

        class Server(compat.ThreadingMixIn, compat.TCPServer):
            max_threads = 100
            graceful_timeout = 10

    `daemon_threads` and `block_on_close` mean the same as in the stdlib. Programs may set
    these attributes at any time:

    Attributes:
        max_threads: how many requests are handled at a time. When it is reached, no
            request is taken until one has ended: the backlog and the kernel's buffer hold
            the others, and one warning is logged. None is no bound; the default is what
            the system can hold, and is used too if this is no number of threads (a
            program may use the name for something else).
        reuse_threads: False for a new thread for each request, as in the stdlib. Otherwise a thread
            is used again if the handler has left it as new: docs/compat.md says what is looked at.
        graceful_timeout: None waits as the stdlib does. Otherwise the seconds that
            `server_close()` gives handlers, daemonic or not; then their sockets are shut
            down, which wakes a blocked `recv`.
        close_report: what `server_close()` did because of `graceful_timeout`.
        times_full: how often `max_threads` was reached.
    """

    max_threads: int | None = threads_to_be_had()
    reuse_threads: bool = True
    graceful_timeout: float | None = None
    close_report: CloseReport | None = None
    times_full: int = 0

    _threads: Any
    _compat_batching = 0
    _compat_pool: ThreadPool | None = None
    _compat_was_full = False
    _compat_misread = False  # max_threads is no number of threads, and that has been logged
    _compat_unwarned = True  # it has not been logged yet that max_threads was reached

    def process_request(self, request: Any, client_address: Any) -> None:
        """Let a thread call `process_request_thread`."""
        pool = self._compat_threads()
        if not hasattr(self, "_compat_loops"):
            # `class S(compat.ThreadingMixIn, http.server.HTTPServer)`: the stdlib's loop takes the
            # requests, and does not look for room.
            while self._compat_full() and not vars(self).get("_BaseServer__shutdown_request"):
                sleep(LOOK_AGAIN_SECONDS)
        pool.add(self.process_request_thread, request, client_address)
        if self._compat_batching != threading.get_ident():
            self._compat_hand_over()

    def _compat_take(self, source: Source, poll: Callable[[int], Any], count: int) -> bool:
        server: Any = self
        if function_of(self.process_request) is not ThreadingMixIn.process_request:
            return False
        pool, call, state = self._compat_threads(), self.process_request_thread, vars(self)
        for number in range(min(count, pool.room())):
            try:
                request = source.take()
            except OSError as error:
                if not number or not isinstance(error, BlockingIOError):
                    server._compat_error = error
                break
            try:
                pool.add(call, *request)
            except Exception:  # closed meanwhile, or no memory
                server._compat_proceed(*request)
            if state.get("_BaseServer__shutdown_request") or (number < source.looks and not poll(0)):
                break
        return True

    def _compat_limit(self) -> int | None:
        limit = self.max_threads
        if limit is None or (type(limit) is int and limit > 0):
            return limit
        if not self._compat_misread:
            self._compat_misread = True
            _logger.warning(
                "%s.max_threads is %r, expected a number of threads or None; the default is used, %d",
                type(self).__name__,
                limit,
                ThreadingMixIn.max_threads,
            )
        return ThreadingMixIn.max_threads

    def handle_request(self) -> None:
        """Take one request, as soon as `max_threads` allows it; `timeout` starts anew then."""
        server: Any = self
        if self._compat_wait_for_room():
            super().handle_request()  # type: ignore[misc]  # a server's
        else:
            server.handle_timeout()

    def server_close(self) -> None:
        """Close the listener; with `block_on_close` wait for non-daemonic threads.

        See also `graceful_timeout`.

        Raises:
            RuntimeError: called by one of the threads that it has to wait for, as in the stdlib.
        """
        pool = self._compat_pool
        if pool is not None:
            pool.shutdown(wait=False)
        # The stdlib's server_close may come next, and must not wait yet.
        threads = vars(self).pop("_threads", None)
        super().server_close()
        self._compat_hand_over()  # once more, for requests that have found no thread
        if pool is not None and self.graceful_timeout is not None:
            self.close_report = self._compat_close(pool, self.graceful_timeout)
        elif threads is not None:
            threads.join()

    # The pool.

    def _compat_threads(self) -> ThreadPool:
        pool = self._compat_pool
        if pool is None or pool.closed or pool.daemon != self.daemon_threads:
            with _making_pools:  # several threads may serve at once: only one pool
                pool = self._compat_fitting_pool()
        pool.max_threads = self._compat_limit()
        pool.reuse_threads = self.reuse_threads
        if self.block_on_close and not self.daemon_threads:
            vars(self).setdefault("_threads", JoinableThreads())
            pool.on_start = self._threads.append
        else:
            pool.on_start = None
        return pool

    def _compat_fitting_pool(self) -> ThreadPool:
        pool = self._compat_pool
        if pool is not None:
            if not pool.closed and pool.daemon == self.daemon_threads:
                return pool
            pool.shutdown(wait=False)
        pool = ThreadPool(self._compat_limit(), name=type(self).__name__, daemon=self.daemon_threads)
        # Weakly: a program that drops the server expects its port to be free.
        pool.on_starved = partial(_wake, weakref.ref(self))
        self._compat_pool = pool
        return pool

    def _compat_hand_over(self) -> bool:
        server: Any = self  # the mix-in's other half has the hooks
        pool = self._compat_pool
        if pool is None:
            return True
        try:
            pool.wake()
        except (RuntimeError, MemoryError):
            # No thread lives that could take them later: as in the stdlib, an error of the request.
            for call in pool.take_back():
                server.handle_error(*call.args)
                server.shutdown_request(call.args[0])
        return not (pool.starved and pool.waiting)

    def _compat_look(self) -> None:
        if self._compat_pool is not None:
            self._compat_pool.look()

    def _compat_full(self) -> bool:
        server: Any = self
        pool, limit = self._compat_pool, self._compat_limit()
        if pool is None or pool.closed:  # server_close() waits for it, and needs on_room
            return False
        pool.max_threads = limit
        waited_for, pool.on_room = pool.on_room, None
        full = not pool.has_room()
        if full:
            pool.on_room = getattr(server, "_compat_wake", None)  # the stdlib's servers have none
            full = not pool.has_room()  # once more: a call may have ended before on_room was set
        if waited_for and not full and len(server._compat_loops) > 1:
            waited_for()  # another serving thread's, which may have missed the end of a call
        if full and not self._compat_was_full:
            self.times_full += 1
        self._compat_was_full = full
        if full and self._compat_unwarned:
            self._compat_warn(pool.calls())
        return full

    def _compat_wait_for_room(self) -> bool:
        """Wait until a request may be taken; false when the time of `handle_request()` is over."""
        server: Any = self
        limits = [limit for limit in (server.socket.gettimeout(), server.timeout) if limit is not None]
        deadline = monotonic() + min(limits) if limits else None
        while self._compat_full():
            if deadline is not None and monotonic() >= deadline:
                return False
            sleep(LOOK_AGAIN_SECONDS)  # `on_room` belongs to the loops, which may serve meanwhile
        return True

    def _compat_warn(self, calls: list[Call]) -> None:
        """Warn once, and a moment late: the handlers of a burst show no useful stack at first."""
        oldest = max(calls, key=Call.age, default=None)
        if oldest is None or (oldest.age() < LOOK_AGAIN_SECONDS and self.times_full == 1):
            return
        self._compat_unwarned = False
        _logger.warning(
            "%s on %s handles %d requests, which is its max_threads: no more are taken until one ends"
            " (told once, counted in times_full). The oldest, from %r, has run for %.1f s and is here:\n%s",
            type(self).__name__,
            getattr(self, "server_address", None),
            len(calls),
            oldest.args[1],
            oldest.age(),
            oldest.stack(),
        )

    # graceful_timeout

    def _compat_close(self, pool: ThreadPool, seconds: float) -> CloseReport:
        server: Any = self
        begun = len(_others(pool))
        late = _wait(pool, seconds)
        for call in pool.take_back():
            server.shutdown_request(call.args[0])
        for call in late:
            _shut_down(call.args[0])
        running = len(_wait(pool, WAKE_UP_SECONDS)) if late else 0
        report = CloseReport(begun - len(late), len(late) - running, running)
        _logger.log(logging.WARNING if late else logging.INFO, "%s closed: %s", type(self).__name__, report)
        return report


def _wake(reference: "weakref.ref[Any]") -> bool:
    """Let the server's loops look after its pool; false if it has none, as the stdlib's have."""
    wake = getattr(reference(), "_compat_wake", None)
    return wake is not None and bool(wake())


def _others(pool: ThreadPool) -> list[Call]:
    """The calls to wait for: not the one that the calling thread is in."""
    return [call for call in pool.calls() if call.worker is not threading.current_thread()]


def _wait(pool: ThreadPool, seconds: float) -> list[Call]:
    """Wait until the calls have ended, and return those that have not."""
    ended = threading.Event()
    pool.on_room = ended.set
    deadline = monotonic() + seconds
    while (calls := _others(pool)) and (left := deadline - monotonic()) > 0:
        ended.wait(left)
        ended.clear()
    return calls


def _shut_down(request: object) -> None:
    if isinstance(request, socket.socket):
        with suppress(OSError):  # closed already
            socket.socket.shutdown(request, socket.SHUT_RDWR)  # below TLS, if any


class ThreadingTCPServer(ThreadingMixIn, TCPServer, socketserver.ThreadingTCPServer):
    """A TCP server with a thread for each connection."""


class ThreadingUDPServer(ThreadingMixIn, UDPServer, socketserver.ThreadingUDPServer):
    """A UDP server with a thread for each datagram that is being handled."""


class ThreadingUnixStreamServer(ThreadingMixIn, UnixStreamServer, socketserver.ThreadingUnixStreamServer):
    """A Unix stream server with a thread for each connection."""


class ThreadingUnixDatagramServer(ThreadingMixIn, UnixDatagramServer, socketserver.ThreadingUnixDatagramServer):
    """A Unix datagram server with a thread for each datagram that is being handled."""
