"""KeptConnection: a connection whose peer's host may vanish: its silence, and its end by that.

A server with `keepalive` asks each of its connections, see servers/keepalive.py.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ..net.socket_info import unanswered
from .connection import Connection
from .states import at_end

if TYPE_CHECKING:
    from collections.abc import Callable


class KeptConnection(Connection):
    """A connection that the server's keepalive can end."""

    __slots__ = ()

    def _unanswered(self, probes: int) -> float:
        """Say for how long the peer's host has answered nothing, see `unanswered()`."""
        if self._loan is not None:
            return self._loan.unanswered(probes)
        return 0.0 if self._fd < 0 or self._is_broken else unanswered(self._sock, probes)

    def _vanish(self, exc: OSError) -> Callable[[], bool]:
        """Break, as the peer's host is gone; returns what tells whether the handler knows it."""
        if self._loan is not None:
            return self._loan.vanish()
        self._reset_on_close()
        waits = self._reading.busy or (self._writing is not None and self._writing.busy)
        news = News(waits or bool(self._departure))
        self._broken(exc)
        self._recv, self._send = news.before(self._recv), news.before(self._send)
        return news.has_come

    def _break_off(self, exc: OSError) -> None:
        """Break, by an error that the kernel has reported here instead of to a receive."""
        if self._recv is not at_end:  # what is sent meets an error of its own
            self._broken(exc)


class News:
    """Whether a task of the handler has learned that its connection is broken.

    Args:
        has_come: one waits for the connection, and is about to get the error.
    """

    def __init__(self, has_come: bool) -> None:
        self._has_come = has_come

    def before(self, state: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Make a state that notes its call, then does what `state` does."""
        return functools.partial(self._come, state)  # a partial, as what is broken has: `_is_broken`

    def _come(self, state: Callable[[Any], Any], argument: Any) -> Any:
        self._has_come = True
        return state(argument)

    def has_come(self) -> bool:
        """Whether it has."""
        return self._has_come
