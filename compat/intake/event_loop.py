"""The stock event loop as used here: with what eventlet leaves of `select`, without a log line."""

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
        """Polls as if no loop ran: the program's signal handlers may call `asyncio.run`."""

        def select(self, timeout: float | None = None) -> Any:
            asyncio._set_running_loop(None)
            return super().select(timeout)

    return _Poll


def _selector() -> Any:
    """A selector that polls; or that selects, after eventlet's monkey_patch() has removed that."""
    return _selector_class(getattr(selectors, "PollSelector", selectors.SelectSelector))()


class SelectAsPoll:
    """What is needed of `select.poll()`, where eventlet has removed that."""

    def __init__(self) -> None:
        self._descriptors: set[int] = set()

    def register(self, descriptor: int, _: int) -> None:
        """Wait until it is readable."""
        self._descriptors.add(descriptor)

    def unregister(self, descriptor: int) -> None:
        """Stop that."""
        self._descriptors.discard(descriptor)

    def poll(self, milliseconds: int) -> list[int]:
        """Return those that can be read."""
        return select.select(self._descriptors, (), (), milliseconds / 1000)[0]


def _is_not_about_us(record: logging.LogRecord) -> bool:
    """Keep the "Using selector: _Poll" of our own loops out of the program's log."""
    return record.args != ("_Poll",)


class Loop(asyncio.SelectorEventLoop):
    """The stock loop, over a selector in user space, without a log line."""

    def __init__(self) -> None:
        logging.getLogger("asyncio").addFilter(_is_not_about_us)  # once, however often
        try:
            super().__init__(_selector())
        except OSError:  # no descriptors are left
            self._closed = True  # it is half made, and its __del__ would fail
            raise


def may_handle_signals() -> bool:
    """Ask the interpreter too: for `threading` the main thread is the one that first imports it."""
    if threading.current_thread() is not threading.main_thread():  # or a greenlet in it
        return False
    try:
        signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)
    except ValueError:
        return False
    return True
