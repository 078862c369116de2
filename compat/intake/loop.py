"""The loop that waits on behalf of one server, inside one call of its `serve_forever()`.

The stock event loop only waits: its callbacks note what happened and stop it. Hooks and handlers
run after `run_forever()` has returned, outside any running loop, so they may themselves call
`asyncio.run`. Entering the loop again costs about 4 us, shared by a batch.

What is polled is kept in user space (`PollSelector`): a forked child shares no kernel
state with us, and a listener that another thread closes is not reported for ever through
a duplicate of its descriptor.
"""

import asyncio
import contextlib
import errno
import logging
import os
import select
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compat.intake.batches import plain_source
from compat.intake.event_loop import Loop, SelectAsPoll, may_handle_signals
from compat.intake.handshake import Acceptors, Handshake, without_handshake
from compat.intake.overrides import is_ours, is_tls_listener, needs_acceptors

if TYPE_CHECKING:
    from compat.intake.overrides import HookedServer

_logger = logging.getLogger("compat")

BATCH = 64  # requests between two looks at everything else; more gains nothing measurable
RETRY_SECONDS = 0.05  # until the next attempt to get what the system refused
FAILURES_IN_A_ROW = 10  # an override may mean to refuse so many clients in a row
BREATH_SECONDS = 0.001  # after more: no busy loop, and no long wait for clients behind them
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Errors that the next attempt would get as well: no resources, no listener.
LASTING = EXHAUSTED | {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}
HOOKS = ("get_request", "verify_request", "process_request", "service_actions", "_handle_request_noblock")

live: "set[ServingLoop]" = set()  # all that serve in this process
# By process and inode: how many loops serve the listener, and whether it was blocking.
_borrowed: dict[tuple[int, int], tuple[int, bool]] = {}
_borrowing = threading.Lock()
beginning: list[Callable[[], object]] = []  # called as a loop begins in the main thread


class ServingLoop:
    """Serves until the server's shutdown is requested.

    `poll_interval` are seconds between two calls of `service_actions()` if that is overridden;
    None: it is called only when the loop wakes up anyway. Raises OSError if too few descriptors are
    left: it needs two, and two more in the main thread.
    """

    def __init__(self, server: "HookedServer", poll_interval: float | None) -> None:
        self.server = server
        self.poll_interval = poll_interval
        self.thread: int = threading.get_ident()
        self.pid: int = os.getpid()
        self.loop: asyncio.SelectorEventLoop = Loop()
        self.loop.set_exception_handler(self._keep_exception)
        self.handshakes: set[Handshake] = set()
        self.acceptors: Acceptors | None = None
        self._watched = -1
        self._poll: Any = getattr(select, "poll", SelectAsPoll)()
        self._readable = False
        self._borrowed: tuple[int, int] | None = None
        self._steps: deque[Callable[[], object]] = deque()
        self._hold_until = 0.0
        self._failures = 0
        self._warned = False
        self._raised: BaseException | None = None
        self._look: asyncio.TimerHandle | None = None
        self._signals: tuple[socket.socket, ...] = ()
        self._program_wakeup = -1
        if may_handle_signals():
            self._signals = self._listen_for_signals()
            for call in beginning:
                call()
        live.add(self)

    def run(self) -> None:
        """Serve. BaseExceptions of hooks, and what `get_request` raises but OSError, come out."""
        descriptor = self.server.fileno()
        if descriptor < 0:
            raise ValueError(f"Invalid file descriptor: {descriptor}")
        self._borrow(descriptor)
        while not self.server._compat_stopping():
            self._watch()
            self._wait()
            if self.server._compat_stopping():
                break
            self._work()

    def close(self) -> None:
        """Close what has not become a request yet, and the loop."""
        live.discard(self)
        self.restore_blocking()
        for handshake in list(self.handshakes):
            handshake.fail()
        if self.acceptors is not None:
            self.acceptors.close()
        # It holds us, and we hold the server, whose socket is closed when it is not referenced.
        self.loop.set_exception_handler(None)
        self.loop.close()
        for end in self._signals:
            end.close()

    def _listen_for_signals(self) -> tuple[socket.socket, socket.socket]:
        """A pair whose second end wakes the loop, for a signal that comes just before a poll."""
        try:
            ends = socket.socketpair()
        except OSError:
            self.loop.close()
            raise
        for end in ends:
            end.setblocking(False)
        self.loop.add_reader(ends[0], self._pass_signals_on, ends[0])
        return ends

    def _pass_signals_on(self, end: socket.socket) -> None:
        """Write the numbers of the signals to the program's own wake-up descriptor."""
        numbers = end.recv(4096)
        if self._program_wakeup >= 0:
            with contextlib.suppress(OSError):  # full or closed: ignored, as by the interpreter
                os.write(self._program_wakeup, numbers)

    def _keeps_from_blocking(self, descriptor: int) -> bool:
        """Whether to keep `accept()` from blocking if others take the connection that woke us.

        On the descriptor: the socket object still calls itself blocking, and accepted sockets are.
        Not for datagrams: handlers send through the same descriptor. Not for a `fileno()` of
        something else, nor for a `get_request()` that may accept twice, unless it blocks only a
        thread of the acceptors.
        """
        listener = getattr(self.server, "socket", None)
        if not isinstance(listener, socket.socket) or listener.type != socket.SOCK_STREAM or descriptor < 0:
            return False
        known = is_ours(self.server.get_request) or needs_acceptors(self.server)
        return known and listener.fileno() == descriptor and listener.gettimeout() is None

    # For other threads.

    def _borrow(self, descriptor: int) -> None:
        """Note how the listener was; several servers may have copies of one."""
        self._borrowed = (self.pid, os.fstat(descriptor).st_ino)
        blocking = os.get_blocking(descriptor) or self.server._compat_has_made(descriptor)
        with _borrowing:
            borrowers, blocking = _borrowed.get(self._borrowed, (0, blocking))
            _borrowed[self._borrowed] = (borrowers + 1, blocking)

    def restore_blocking(self) -> None:
        """The last loop on a listener restores its blocking mode, for others that hold it."""
        # A child shares the setting, and may close its copy.
        if self._borrowed is None or self.pid != os.getpid():
            return
        with _borrowing:
            borrowers, blocking = _borrowed.pop(self._borrowed)
            if borrowers > 1:
                _borrowed[self._borrowed] = (borrowers - 1, blocking)
            else:
                descriptor = self._open_descriptor()
                if self._keeps_from_blocking(descriptor):
                    os.set_blocking(descriptor, blocking)
            self._borrowed = None

    def wake(self) -> None:
        """Make the serving thread look at its state, from any thread and from signal handlers."""
        if self.pid == os.getpid():  # a forked child shares the pipe that would wake its parent
            try:
                self.loop.call_soon_threadsafe(self.loop.stop)
            except RuntimeError:
                _logger.debug("woken after the end of serve_forever()")

    def is_mine(self) -> bool:
        """Whether the calling thread runs this loop, or is a copy of that thread in a child."""
        return self.thread == threading.get_ident() or self.pid != os.getpid()

    # For work besides the listener; serving thread only.

    def soon(self, step: Callable[[], object]) -> None:
        """Run a step outside the running loop."""
        self._steps.append(step)
        self.loop.stop()

    def hold(self, seconds: float) -> None:
        """Take no request from the listener for so long."""
        self._hold_until = self.loop.time() + seconds
        self.loop.call_later(seconds, self.loop.stop)

    def go_on(self) -> None:
        """End a `hold`."""
        self._hold_until = 0.0

    def failed(self) -> bool:
        """Whether the last attempt to get a request failed; hold, if the next may fail as well."""
        error, self.server._compat_error = self.server._compat_error, None
        if error is None:
            self._failures = 0
            return False
        self._failures += 1
        if error.errno in LASTING:
            self.hold(RETRY_SECONDS)
            if not self._warned:
                self._warned = True
                warn_of_waiting(self.server, error)
        elif self._failures >= FAILURES_IN_A_ROW:
            self.hold(BREATH_SECONDS)
        return True

    # One turn.

    def _watch(self) -> None:
        descriptor = self._descriptor()
        if descriptor == self._watched:
            return
        if self._watched >= 0:
            self.loop.remove_reader(self._watched)
            self._poll.unregister(self._watched)
        if descriptor >= 0:
            self.loop.add_reader(descriptor, self._on_readable)
            self._poll.register(descriptor, 1)  # POLLIN
        self._watched = descriptor

    def _descriptor(self) -> int:
        """Return what to watch; -1 for nothing now: held, full, or closed by another thread."""
        held = self.loop.time() < self._hold_until
        if self.server._compat_full():
            held = True
            self._look_later()
            if self.server._compat_unwarned:  # the warning needs the handlers' stacks
                self.loop.call_later(RETRY_SECONDS, self.loop.stop)
        if held or (self.acceptors is not None and self.acceptors.full()):
            return -1
        return self._open_descriptor()

    def _open_descriptor(self) -> int:
        try:
            descriptor: int = self.server.fileno()
        except (OSError, ValueError, AttributeError):  # a closed server's override may raise
            return -1
        return descriptor

    def _on_readable(self) -> None:
        self._readable = True
        self.loop.stop()

    def _wait(self) -> None:
        interval = self.poll_interval if self.server._compat_ticks() else None
        timer = self.loop.call_later(interval, self.loop.stop) if interval is not None else None
        if self._signals:  # they write a byte there only while we wait: hooks may have loops of their own
            self._program_wakeup = signal.set_wakeup_fd(self._signals[1].fileno(), warn_on_full_buffer=False)
        try:
            self.loop.run_forever()
        finally:
            if self._signals:
                signal.set_wakeup_fd(self._program_wakeup, warn_on_full_buffer=False)
            if timer is not None:
                timer.cancel()
        if self._raised is not None:
            error, self._raised = self._raised, None
            raise error

    def _keep_exception(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Keep what a signal handler raised while one of our callbacks ran: it has to come out."""
        self._raised = context.get("exception")
        self.loop.stop()

    def _work(self) -> None:
        if self._readable:
            self._readable = False
            self._take_batch()
        while self._steps:
            self._steps.popleft()()
        if self.acceptors is not None:
            self.acceptors.deliver()
        if not self.server._compat_hand_over():
            self._look_later()
        self.server.service_actions()

    def _look_later(self) -> None:
        """Look later whether a thread can start now, or one of those at the bound has been lost."""
        if self._look is None:
            self._look = self.loop.call_later(RETRY_SECONDS, self._look_now)

    def _look_now(self) -> None:
        self._look = None
        self.soon(self.server._compat_look)

    def _take_batch(self) -> None:
        """Take what has arrived, then wake workers; only one request if a hook might block."""
        server = self.server
        batched = all(is_ours(getattr(server, hook)) for hook in HOOKS)
        server._compat_batching = self.thread if batched else 0
        try:
            source = plain_source(server, self._watched) if batched else None
            if source is None or not server._compat_take(source, self._poll.poll, BATCH):
                self._take_with_hooks(BATCH if batched else 1)
            else:
                self.failed()
        finally:
            server._compat_batching = 0
            server._compat_hand_over()  # also if a hook has raised: for the requests before it

    def _take_with_hooks(self, count: int) -> None:
        server = self.server
        descriptor = self._watched
        nonblocking = self._keeps_from_blocking(descriptor)
        take = self._how_to_take()
        for _ in range(count):
            if server._compat_full():
                break
            if nonblocking:  # each time: a loop in another process may have restored it
                os.set_blocking(descriptor, False)
            take()
            if self.failed() or server._compat_stopping() or not self._poll.poll(0):
                break

    def _how_to_take(self) -> Callable[[], None]:
        server = self.server
        one: Callable[[], None] = server._handle_request_noblock
        if not is_ours(one):
            return one
        if is_tls_listener(server):
            return self._begin_handshake
        if needs_acceptors(server):
            if self.acceptors is None:
                self.acceptors = Acceptors(self)
            return self.acceptors.start
        return one

    def _begin_handshake(self) -> None:
        try:
            request, client_address = without_handshake(self.server)
        except OSError as error:
            self.server._compat_error = error
        else:
            Handshake(self, request, client_address).step()


def warn_of_waiting(server: Any, error: OSError) -> None:
    """Warn that a server cannot take requests for the moment."""
    _logger.warning(
        "%s on %s cannot get requests (%s); they wait, and it tries again every %d ms",
        type(server).__name__,
        server.server_address,
        error,
        RETRY_SECONDS * 1000,
    )
