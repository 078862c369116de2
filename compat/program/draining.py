"""SIGTERM under `python -m compat`: stop serving, let handlers finish, leave."""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from compat.intake.loop import beginning, live
from compat.threads import ThreadingMixIn

# Seconds in which a second signal is the same: `timeout` of GNU coreutils sends it to the program,
# then to its process group.
_ECHO = 0.1


class Drain:
    """Handles SIGTERM, unless it is ignored or the program installs a handler of its own.

    The first signal ends every `serve_forever()`. If one of them runs in the main thread the
    program goes on after it, as after `shutdown()`; otherwise SystemExit is raised in the main
    thread. If that thread has ended, the servers are closed at once. Servers that the program has
    not closed at its end are closed then. A second signal, or one while nothing is served, kills as
    always. So does the first in a child of fork, unless the child serves in its main thread (a
    daemon): a handler in Python misses a signal that comes just after the fork, or just before a
    blocking call, and a pool would wait for that worker for ever.

    Args:
        graceful_timeout: seconds, for threaded servers that have None.
    """

    def __init__(self, graceful_timeout: float) -> None:
        self.graceful_timeout = graceful_timeout
        self.servers: list[Any] = []
        self._told = 0.0  # when the first signal came
        self._forked = False  # and has not served since
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_signal)
            os.register_at_fork(before=_hold, after_in_child=self._in_child, after_in_parent=_release)
            beginning.append(self._in_main_thread)

    def _in_child(self) -> None:
        if signal.getsignal(signal.SIGTERM) == self._on_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._forked = True
        _release()

    def _in_main_thread(self) -> None:
        if self._forked and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_signal)
        self._forked = False

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        # Not those of the parent, of which a daemon has copies. list() first, in one step: other
        # threads begin and end serving meanwhile.
        loops = [serving for serving in list(live) if serving.pid == os.getpid()]
        if self.servers and time.monotonic() - self._told < _ECHO:
            return
        if self.servers or not loops:
            _die()
        self._told = time.monotonic()
        for serving in loops:
            server: Any = serving.server
            if isinstance(server, ThreadingMixIn) and server.graceful_timeout is None:
                server.graceful_timeout = self.graceful_timeout
            self.servers.append(server)
            server._BaseServer__shutdown_request = True
        main = threading.main_thread()
        if not main.is_alive():
            # The serving threads end now; the interpreter waits for them and for handlers.
            self.finish()
        elif all(serving.thread != main.ident for serving in loops):
            sys.exit(0)

    def finish(self) -> None:
        """Close what the program has left open; do not wait for handlers that cannot be woken."""
        for server in self.servers:
            with contextlib.suppress(OSError, ValueError):
                if server.fileno() >= 0:
                    server.server_close()
        # The same signal once more would meet the interpreter's end, where it kills.
        time.sleep(max(0.0, self._told + _ECHO - time.monotonic()))
        reports = (getattr(server, "close_report", None) for server in self.servers)
        if any(report is not None and report.running for report in reports):
            sys.stdout.flush()
            _die()


_held = threading.local()  # mask: the thread's signal mask before its fork


def _hold() -> None:
    """Block SIGTERM during a fork: the interpreter forgets signals that a child gets at first."""
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _die() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    if os.getpid() == 1:  # in a container: default actions do not kill it, pid_namespaces(7)
        os._exit(128 + signal.SIGTERM)
