"""Exits: SystemExit that is raised in a handler drains first, then ends the program; exit_now."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Exits:
    """Runs a program's main coroutine to its end, also when a handler or task raises SystemExit.

    asyncio lets SystemExit out of the loop wherever it is raised, and cancels what is left. Here
    `leave`, set by the main coroutine, is called with it, and the loop runs on until that coroutine
    has ended; then the first SystemExit is raised. While `leave` is None, it ends the program at
    once.
    """

    def __init__(self) -> None:
        self.leave: Callable[[SystemExit], object] | None = None
        self._task: asyncio.Task[Any] | None = None

    def run(self, runner: asyncio.Runner, main: Coroutine[Any, Any, None]) -> None:
        """Run it. Raises what it raises, or SystemExit."""
        interrupt = signal.getsignal(signal.SIGINT)
        try:
            runner.run(self._known(main))
        except SystemExit as exc:
            if self.leave is None or self._task is None or self._task.done():
                raise
            runner.get_loop().call_soon(self.leave, exc)
            while not self._task.done():
                with contextlib.suppress(SystemExit):  # the first one counts
                    runner.run(self._ended(self._task))
            # The main coroutine has put back the handler of the first run, which has ended.
            if interrupt is signal.default_int_handler and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)
            raise

    async def _known(self, main: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.current_task()
        await main

    @staticmethod
    async def _ended(task: asyncio.Task[Any]) -> None:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not log it: SystemExit says more


def exit_now(status: int) -> NoReturn:
    """End this process without what Python waits for and runs at its end, but flush its output."""
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
