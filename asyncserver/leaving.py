"""How a program ends that nobody has told to: by SystemExit in a handler; and what can keep it from ending: threads."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from ._logger import logger as _logger
from .net.executor import GRACE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Exits:
    """Runs a program's main coroutine to its end, also when SystemExit is raised beside it: in a handler, a task.

    asyncio lets SystemExit out of the loop wherever it is raised, and cancels what is left. Here the main
    coroutine is told, and the loop runs on until that has come to its end; then the first of them is raised.

    Attributes:
        leave: what tells the main coroutine, set by it; until then SystemExit ends the program at once.
    """

    def __init__(self) -> None:
        self.leave: Callable[[SystemExit], object] | None = None
        self._task: asyncio.Task[Any] | None = None

    def run(self, runner: asyncio.Runner, main: Coroutine[Any, Any, None]) -> None:
        """Run it. Raises what it raises, or SystemExit."""
        try:
            runner.run(self._known(main))
        except SystemExit as exc:
            if self.leave is None or self._task is None or self._task.done():
                raise
            runner.get_loop().call_soon(self.leave, exc)
            while not self._task.done():
                with contextlib.suppress(SystemExit):  # the first one counts
                    runner.run(self._ended(self._task))
            raise

    async def _known(self, main: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.current_task()
        await main

    @staticmethod
    async def _ended(task: asyncio.Task[Any]) -> None:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # SystemExit tells more


def watch_end(status: int | None = None) -> None:
    """Called at a program's end: where threads go on for GRACE seconds, say in the log which; with a status, leave.

    Python joins threads that are not daemonic first and runs `atexit` functions then; to leave with a
    status skips both, except that logs and the standard streams are flushed.

    Args:
        status: the one that the program is about to end with, if its end is ours; else it may go on before it
            ends, and then waits for them.
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
    _logger.warning("threads of the program %s: %s", what, ", ".join(map(_described, others)))
    if status is not None:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _described(thread: threading.Thread) -> str:
    if (frame := sys._current_frames().get(thread.ident or 0)) is None:
        return f"{thread.name!r}"
    code = frame.f_code
    return f"{thread.name!r} in {code.co_qualname}() ({code.co_filename}:{frame.f_lineno})"
