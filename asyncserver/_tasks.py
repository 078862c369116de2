"""start_task: how handlers start."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from contextvars import Context

_Result = TypeVar("_Result")

if sys.version_info >= (3, 12):

    def start_task(
        coroutine: Coroutine[Any, Any, _Result], loop: asyncio.AbstractEventLoop, context: Context
    ) -> asyncio.Task[_Result]:
        """Start a task, in a copy of a context, and run it to its first wait.

        An answer that needs no wait costs no trip through the loop. By hand, because asyncio's eager_task_factory
        breaks on uvloop 0.23 with CPython 3.13.0; and a factory that the program has set is used.
        """
        if loop.get_task_factory() is None:
            return asyncio.Task(coroutine, loop=loop, eager_start=True, context=context.copy())
        return context.copy().run(loop.create_task, coroutine)  # a copy: it may be entered just now

else:

    def start_task(
        coroutine: Coroutine[Any, Any, _Result], loop: asyncio.AbstractEventLoop, context: Context
    ) -> asyncio.Task[_Result]:
        """Start a task in a copy of a context."""
        return context.copy().run(loop.create_task, coroutine)  # a copy: it may be entered just now
