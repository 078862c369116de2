"""Departure: tasks that wait until their peer is gone; News: whether any task knows that it is.

The poller reports a peer's end apart from its bytes (EPOLLRDHUP), so this needs no receive: what
lies unread stays where it is, and does not wake anything. Where a task receives at the same time,
it is woken first, and takes what is left; the end is reported again when nothing waits for bytes.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from ..net.poller import HANGUP
from ..net.socket_info import has_hung_up
from .states import refuse_closed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from ..net.poller import Poller


class Connected(Protocol):
    """A Connection, as it is used here."""

    _events: int
    _fd: int
    _poller: Poller
    _recv: Callable[[int], bytes]
    _send: Callable[[Any], int]

    @property
    def _is_broken(self) -> bool: ...

    def _set_events(self, events: int) -> None: ...


class Departure:
    """Where tasks wait for the end of one connection's peer."""

    __slots__ = ("_connection", "_waiting")

    def __init__(self, connection: Connected) -> None:
        self._connection = connection
        self._waiting: set[asyncio.Future[None]] = set()

    def __bool__(self) -> bool:
        """Whether any task waits."""
        return bool(self._waiting)

    async def wait(self) -> None:
        """See `Stream.wait_disconnected()`."""
        connection = self._connection
        if connection._recv is refuse_closed:
            refuse_closed(None)
        if connection._is_broken:
            with contextlib.suppress(anyio.BrokenResourceError):
                connection._send(b"")  # so that it counts as told
            return
        future = connection._poller.loop.create_future()
        self._waiting.add(future)
        connection._set_events(connection._events | HANGUP)
        try:
            await future
        finally:
            self._waiting.discard(future)
            if not self._waiting and connection._fd >= 0:
                connection._set_events(connection._events & ~HANGUP)
        if connection._recv is refuse_closed:
            refuse_closed(None)

    def look(self) -> None:
        """Wake the tasks, if the peer is gone or we have closed the connection."""
        connection = self._connection
        if not self._waiting:
            return
        if connection._recv is refuse_closed or connection._is_broken or has_hung_up(connection._fd):
            for future in self._waiting:
                if not future.done():
                    future.set_result(None)


class News:
    """Whether a task of the handler has learned that its connection is broken.

    Args:
        has_come: one waits for the connection, and is about to get the error.
    """

    def __init__(self, has_come: bool) -> None:
        self._has_come = self._had_come = has_come

    def before(self, state: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Make a state that notes its call, then does what `state` does."""
        return functools.partial(self._come, state)  # a partial, as what is broken has: `_is_broken`

    def _come(self, state: Callable[[Any], Any], argument: Any) -> Any:
        self._had_come, self._has_come = self._has_come, True
        return state(argument)

    def went_astray(self) -> None:
        """Take back the last call: it was for a post, of whichever task, which learns nothing."""
        self._has_come = self._had_come

    def has_come(self) -> bool:
        """Whether it has."""
        return self._has_come
