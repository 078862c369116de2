"""SIGTERM under `python -m compat`: stop serving, let handlers finish, leave."""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from compat.loop import live
from compat.threads import ThreadingMixIn


class Drain:
    """Handles SIGTERM, unless it is ignored or the program installs a handler of its own.

    The first signal ends every `serve_forever()`. When one of them runs in the main thread the program goes
    on after it, as after `shutdown()`; otherwise SystemExit is raised in the main thread, unless that has
    ended; then the servers are closed at once. Servers that the program has not closed when it ends are closed.
    A second signal, or one that comes while nothing is served, kills as always.

    Args:
        graceful_timeout: for threaded servers that have None.
    """

    def __init__(self, graceful_timeout: float) -> None:
        self.graceful_timeout = graceful_timeout
        self.servers: list[Any] = []
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        # A child of fork has copies of its parent's loops: killed as always, unless it serves itself (a daemon).
        # A copy first, in one step: other threads begin and end serving meanwhile.
        loops = [serving for serving in list(live) if serving.pid == os.getpid()]
        if self.servers or not loops:
            _die()
        for serving in loops:
            server: Any = serving.server
            if isinstance(server, ThreadingMixIn) and server.graceful_timeout is None:
                server.graceful_timeout = self.graceful_timeout
            self.servers.append(server)
            server._BaseServer__shutdown_request = True
        main = threading.main_thread()
        if not main.is_alive():
            self.finish()  # the interpreter waits for the threads that serve, which end now, and for handlers
        elif all(serving.thread != main.ident for serving in loops):
            sys.exit(0)

    def finish(self) -> None:
        """Close what the program has left open at its end; do not wait for handlers that cannot be woken."""
        for server in self.servers:
            with contextlib.suppress(OSError, ValueError):
                if server.fileno() >= 0:
                    server.server_close()
        reports = (getattr(server, "close_report", None) for server in self.servers)
        if any(report is not None and report.running for report in reports):
            sys.stdout.flush()
            _die()


def _die() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
