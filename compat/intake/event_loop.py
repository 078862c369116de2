"""The stock event loop as it waits for us: with what eventlet leaves of `select`, and unnoticed by the program."""

import asyncio
import functools
import logging
import select
import selectors
import signal
import threading
from typing import Any


@functools.cache
def _selector_class(base: type[Any]) -> type[Any]:
    class _Poll(base):  # type: ignore[misc]
        """Polls as if no loop ran: signal handlers of the program are called meanwhile, and may `asyncio.run`."""

        def select(self, timeout: float | None = None) -> Any:
            asyncio._set_running_loop(None)
            return super().select(timeout)

    return _Poll


def _selector() -> Any:
    """One that polls; or what eventlet leaves, which takes the others away, when its monkey_patch() has been called."""
    return _selector_class(getattr(selectors, "PollSelector", selectors.SelectSelector))()


class SelectAsPoll:
    """What is needed of `select.poll()`, where eventlet has taken that away."""

    def __init__(self) -> None:
        self._descriptors: set[int] = set()

    def register(self, descriptor: int, _: int) -> None:
        """Wait for its reading side."""
        self._descriptors.add(descriptor)

    def unregister(self, descriptor: int) -> None:
        """Wait for it no more."""
        self._descriptors.discard(descriptor)

    def poll(self, milliseconds: int) -> list[int]:
        """Return those that can be read."""
        return select.select(self._descriptors, (), (), milliseconds / 1000)[0]


def _is_not_about_us(record: logging.LogRecord) -> bool:
    """Keep the "Using selector: _Poll" of our own loops out of the log of a program that knows nothing of them."""
    return record.args != ("_Poll",)


class Loop(asyncio.SelectorEventLoop):
    """The stock loop, over a selector in user space, without a word in the log.

    Raises:
        OSError: no descriptors are left.
    """

    def __init__(self) -> None:
        logging.getLogger("asyncio").addFilter(_is_not_about_us)  # once, however often
        try:
            super().__init__(_selector())
        except OSError:
            self._closed = True  # without descriptors it is half made, and its __del__ would stumble over that
            raise


def may_handle_signals() -> bool:
    """Ask the interpreter too: `threading` takes the thread that first imports it for the main one."""
    if threading.current_thread() is not threading.main_thread():  # may be a greenlet of that thread, one of several
        return False
    try:
        signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)
    except ValueError:
        return False
    return True
