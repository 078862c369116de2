"""A program's own threads, which keep it from ending: Python waits for them without a limit."""

from __future__ import annotations

import atexit
import sys
import threading

from .._logger import logger as _logger
from .executor import GRACE
from .exits import exit_now


def watch_end(status: int | None = None) -> None:
    """At a program's end: log which threads still run after GRACE seconds; with a status, exit.

    Python first joins threads that are not daemonic, then runs `atexit` functions; to exit with a
    status skips both, but flushes logs and the standard streams. With None the program may go on
    before it ends, and then wait for its threads.
    """
    if threading.current_thread() is threading.main_thread() and _others():
        joined = threading.Event()
        atexit.register(joined.set)
        threading.Thread(target=_watch, args=(joined, status), name="asyncserver-end", daemon=True).start()


def _others() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]


def _watch(joined: threading.Event, status: int | None) -> None:
    if status is None:
        threading.main_thread().join()
    if joined.wait(GRACE) or not (others := _others()):
        return
    what = "are left behind" if status is not None else "still run, and Python waits for them"
    _logger.warning("threads of the program %s: %s", what, ", ".join(map(described, others)))
    if status is not None:
        exit_now(status)


def described(thread: threading.Thread) -> str:
    """Show a thread's name, and where it is."""
    if (frame := sys._current_frames().get(thread.ident or 0)) is None:
        return f"{thread.name!r}"
    code = frame.f_code
    return f"{thread.name!r} in {code.co_qualname}() ({code.co_filename}:{frame.f_lineno})"
