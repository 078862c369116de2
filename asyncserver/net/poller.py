"""Poller: the readiness of all connections of a server, through one epoll and one entry in the loop.

A loop spends more on telling that a descriptor is ready than the stream spends on using it: a handle, a context and a
trip through a queue for each event; and for each connection a registration that uvloop checks with two system calls
of its own. An epoll can itself be watched: the loop sees one descriptor, and one `epoll_wait` brings a batch of those
behind it. Measured on 64 connections, CPU per 64 B echo against `loop.add_reader` for each: see CONTRIBUTING.
"""

from __future__ import annotations

import contextlib
import select
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

READ = select.EPOLLIN
WRITE = select.EPOLLOUT

# What wakes a reader or a writer: also the errors and ends that epoll reports unasked, epoll_ctl(2).
_READABLE = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
_WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR

# Connections woken in one go, before the loop sees to everything else: a millisecond at most with quick handlers. What
# is left over is reported again, after those that have waited longer (epoll goes round).
_BATCH = 128


class Watched(Protocol):
    """What has a descriptor that is watched: a Connection. Underscores, since handlers get it as their Stream."""

    def _on_readable(self) -> None: ...

    def _on_writable(self) -> None: ...


class Poller:
    """Wakes connections whose descriptors are ready.

    Args:
        loop: the loop that watches on behalf of all of them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self._epoll = select.epoll()
        self._connections: dict[int, Watched] = {}
        loop.add_reader(self._epoll.fileno(), self._on_ready)

    def watch(self, connection: Watched, fd: int, before: int, events: int) -> None:
        """Change what a descriptor is watched for: READ, WRITE, both, or (0) nothing."""
        if not before:
            self._epoll.register(fd, events)
            self._connections[fd] = connection
        elif events:
            self._epoll.modify(fd, events)
        # Before it is closed: a copy of the descriptor in some child process would keep epoll reporting it.
        elif self._connections.get(fd) is connection:  # else somebody has closed it, and it is another's now
            del self._connections[fd]
            # ValueError: the poller has been closed, since the program's end has cancelled what waited for us.
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)

    def close(self) -> None:
        """Stop watching. Every connection has been closed before."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _on_ready(self) -> None:
        connections = self._connections
        for fd, events in self._epoll.poll(0, _BATCH):
            connection = connections.get(fd)  # None: closed by one that came before it in this batch
            if connection is None:
                continue
            if events & _READABLE:
                connection._on_readable()
            if events & _WRITABLE:
                connection._on_writable()
