"""add_reader: as the loop's own, also where a callback runs the loop again (nest_asyncio)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


def add_reader(loop: asyncio.AbstractEventLoop, fd: int, callback: Callable[[], object]) -> None:
    """Call `callback()` whenever a descriptor is readable, until `loop.remove_reader(fd)`.

    The loop's own runs it in one context, which cannot be entered again while a handler runs the
    loop. So a loop that can be run again gets a new context each time.
    """
    if not runs_again(loop):
        loop.add_reader(fd, callback)
        return

    def call() -> None:
        loop.add_reader(fd, call)
        callback()

    loop.add_reader(fd, call)


def runs_again(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a running loop can be run again: nest_asyncio replaces `_check_running()`."""
    check = getattr(loop, "_check_running", None)
    if check is None or not loop.is_running():
        return False
    try:
        check()
    except RuntimeError:
        return False
    return True
