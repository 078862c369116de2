"""The loop that waits on behalf of one server, inside one call of its `serve_forever()`.

The stock event loop does nothing but wait: its callbacks only note what happened and stop it. Hooks and
handlers run after `run_forever()` has returned, outside any running loop, so they may themselves call
`asyncio.run`. Re-entering the loop costs about 4 us, which batches share out.

What is polled is kept in user space (`PollSelector`): a forked child shares no kernel state with us, and a
listener that another thread closes is not reported for ever through a duplicate of its descriptor.
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

from compat.intake.event_loop import Loop, SelectAsPoll, may_handle_signals
from compat.intake.handshake import Acceptors, Handshake, without_handshake
from compat.intake.overrides import is_ours, is_tls_listener, needs_acceptors

if TYPE_CHECKING:
    from compat.intake.overrides import HookedServer

_logger = logging.getLogger("compat")

BATCH = 64  # requests between two looks at everything else; more gains nothing measurable
RETRY_SECONDS = 0.05  # until a request or a thread that the system refused is tried again: no spin, no long wait
FAILURES_IN_A_ROW = 10  # an override may refuse so many clients one after the other, and mean it
BREATH_SECONDS = 0.001  # after more of them: no busy loop, and no long wait for those behind a thousand of them
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Errors that the next attempt would meet as well: no resources, no listener.
LASTING = EXHAUSTED | {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}
HOOKS = ("get_request", "verify_request", "process_request", "service_actions", "_handle_request_noblock")

live: "set[ServingLoop]" = set()  # all that serve in this process
_borrowed: dict[tuple[int, int], tuple[int, bool]] = {}  # process and inode: how many serve it, whether it blocked
_borrowing = threading.Lock()
beginning: list[Callable[[], object]] = []  # called as a loop begins in the main thread


class ServingLoop:
    """Serves until the server's shutdown is requested.

    Args:
        server: whose `fileno()` is watched and whose hooks are called.
        poll_interval: seconds between two calls of `service_actions()`, when somebody has overridden it;
            None is for ever.

    Raises:
        OSError: too few descriptors are left, of which it needs two, and two more in the main thread.
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
        """Serve. What hooks raise beyond `Exception`, or `get_request` beyond `OSError`, comes out."""
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
        self.loop.set_exception_handler(None)  # it holds us, and we the server, whose end closes its socket
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
        """Give the numbers of the signals to the descriptor where the program itself wants them."""
        numbers = end.recv(4096)
        if self._program_wakeup >= 0:
            with contextlib.suppress(OSError):  # full or closed: as the interpreter, which does not care either
                os.write(self._program_wakeup, numbers)

    def _keeps_from_blocking(self, descriptor: int) -> bool:
        """Keep `accept()` from blocking when another thread or process takes the connection that woke us.

        Below the socket object, which still calls itself blocking and whose accepted sockets are. Not for
        datagrams: handlers send through the same descriptor. Not for a `fileno()` that is no listener's, nor
        for a `get_request()` that may accept twice; except one that blocks a thread of the acceptors.
        """
        listener = getattr(self.server, "socket", None)
        if not isinstance(listener, socket.socket) or listener.type != socket.SOCK_STREAM or descriptor < 0:
            return False
        known = is_ours(self.server.get_request) or needs_acceptors(self.server)
        return known and listener.fileno() == descriptor and listener.gettimeout() is None

    # For other threads.

    def _borrow(self, descriptor: int) -> None:
        """Note how the listener came to us; several servers may have copies of one."""
        self._borrowed = (self.pid, os.fstat(descriptor).st_ino)
        blocking = os.get_blocking(descriptor) or self.server._compat_has_made(descriptor)
        with _borrowing:
            borrowers, blocking = _borrowed.get(self._borrowed, (0, blocking))
            _borrowed[self._borrowed] = (borrowers + 1, blocking)

    def restore_blocking(self) -> None:
        """Give the listener back as it was, when the last of us that serves it does: others may hold it as well."""
        if self._borrowed is None or self.pid != os.getpid():  # a child shares the setting, and may close its copy
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
        """Whether the calling thread is the one that would have to end the loop, or its copy in a child."""
        return self.thread == threading.get_ident() or self.pid != os.getpid()

    # For what goes on beside the listener; serving thread only.

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
        """Whether the last attempt to get a request failed; hold when the next would or might fail as well."""
        error, self.server._compat_error = self.server._compat_error, None
        if error is None:
            self._failures = 0
            return False
        self._failures += 1
        if error.errno in LASTING:
            self.hold(RETRY_SECONDS)
            self._warn(error)
        elif self._failures >= FAILURES_IN_A_ROW:
            self.hold(BREATH_SECONDS)
        return True

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            warn_of_waiting(self.server, error)

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
        """What to watch, -1 for nothing at the moment: held, full, or closed by another thread."""
        held = self.loop.time() < self._hold_until
        if self.server._compat_full():
            held = True
            self._look_later()
            if self.server._compat_unwarned:
                self.loop.call_later(RETRY_SECONDS, self.loop.stop)  # when the handlers' stacks can be told
        if held or (self.acceptors is not None and self.acceptors.full()):
            return -1
        return self._open_descriptor()

    def _open_descriptor(self) -> int:
        try:
            descriptor: int = self.server.fileno()
        except (OSError, ValueError, AttributeError):  # an override that does not answer -1 once it is closed
            return -1
        return descriptor

    def _on_readable(self) -> None:
        self._readable = True
        self.loop.stop()

    def _wait(self) -> None:
        interval = self.poll_interval if self.server._compat_ticks() else None
        timer = self.loop.call_later(interval, self.loop.stop) if interval is not None else None
        if self._signals:
            self._program_wakeup = self._divert_signals(self._signals[1].fileno())
        try:
            self.loop.run_forever()
        finally:
            if self._signals:
                self._divert_signals(self._program_wakeup)
            if timer is not None:
                timer.cancel()
        if self._raised is not None:
            error, self._raised = self._raised, None
            raise error

    def _divert_signals(self, descriptor: int) -> int:
        """Have a byte written there for each signal; only while waiting, as hooks may have own loops."""
        return signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)

    def _keep_exception(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Hold on to what a signal handler raised while one of our callbacks ran: it has to come out."""
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
        """See after a moment whether a thread can be had, or one of those at the bound has been lost."""
        if self._look is None:
            self._look = self.loop.call_later(RETRY_SECONDS, self._look_now)

    def _look_now(self) -> None:
        self._look = None
        self.soon(self.server._compat_look)

    def _take_batch(self) -> None:
        """Take what has arrived; workers are woken after it, unless somebody else's hook might block."""
        server = self.server
        descriptor = self._watched
        nonblocking = self._keeps_from_blocking(descriptor)
        batched = all(is_ours(getattr(server, hook)) for hook in HOOKS)
        take = self._how_to_take()
        server._compat_batching = self.thread if batched else 0
        try:
            for _ in range(BATCH if batched else 1):
                if server._compat_full():
                    break
                if nonblocking:  # each time, as who serves it in another process may have given it back
                    os.set_blocking(descriptor, False)
                take()
                if self.failed() or server._compat_stopping() or not self._poll.poll(0):
                    break
        finally:
            server._compat_batching = 0
            server._compat_hand_over()  # also when a hook has raised: what came before it is owed an answer

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
    """Tell that a server cannot go on for the moment."""
    _logger.warning(
        "%s on %s cannot get requests (%s); they wait, and it tries again every %d ms",
        type(server).__name__,
        server.server_address,
        error,
        RETRY_SECONDS * 1000,
    )
