"""Poller: the readiness of all connections of a server, through one epoll that the loop watches.

A loop spends more on reporting a ready descriptor than a stream spends on using it: a handle, a
context and a trip through a queue for each event, and for each connection a registration that
uvloop checks with two system calls. An epoll can itself be watched: the loop sees one descriptor,
and one `epoll_wait` returns a batch of ready connections. CONTRIBUTING has the measurements.
"""

from __future__ import annotations

import contextvars
import functools
import select
import weakref
from typing import TYPE_CHECKING, Protocol

from ..speedups.extension import accelerate
from .readers import add_reader

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLRDHUP  # the peer has ended its side; unread bytes do not matter

# Events that wake a reader or a writer. epoll always reports EPOLLHUP and EPOLLERR: epoll_ctl(2).
_READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR

# Bytes that one receive takes at most, of a peer that sends much: as many as asyncio's, after which
# more gain little.
_SCRATCH = 256 * 1024

# Connections woken before the loop runs anything else: a millisecond at most with quick handlers.
# epoll goes round: the rest is reported next, before any of these is reported again.
_BATCH = 128


class Watched(Protocol):
    """A descriptor's owner, a Connection. Private names, since handlers get it as their Stream."""

    def _on_readable(self) -> None: ...

    def _on_writable(self) -> None: ...


class Poller:
    """Wakes connections whose descriptors are ready."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self.get_loop: Callable[[], asyncio.AbstractEventLoop | None] = weakref.ref(loop)  # for waiters
        # What tasks are woken with, see waiter.py.
        self.awake: asyncio.Future[None] = loop.create_future()
        self.awake.set_result(None)
        # What stands for a task's, where none has waited yet.
        self.context: contextvars.Context = contextvars.Context()
        self._epoll = select.epoll()
        self._epoll_fd = self._epoll.fileno()
        self._connections: dict[int, Watched] = {}
        add_reader(loop, self._epoll.fileno(), self._on_ready)

    @functools.cached_property
    def scratch(self) -> memoryview:
        """Where large receives go before they are copied: memory for one connection at a time."""
        return memoryview(bytearray(_SCRATCH))

    def watch(self, connection: Watched, fd: int, before: int, events: int) -> None:
        """Change what a descriptor is watched for: any of READ, WRITE, HANGUP, or (0) nothing."""
        if not before:
            self._epoll.register(fd, events)
            self._connections[fd] = connection
        elif events:
            self._epoll.modify(fd, events)
        # Unregistered before it is closed: as long as a child process has a copy of the descriptor,
        # epoll would report it. If the handler closed it, the number may be another connection's.
        elif self._connections.get(fd) is connection:
            del self._connections[fd]
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError):  # ValueError: the program's end has cancelled the drain
                return  # either is closed already

    def close(self) -> None:
        """Stop watching. To be called when every connection has been closed."""
        self.loop.remove_reader(self._epoll_fd)
        self._epoll_fd = -1
        self._epoll.close()

    @accelerate
    def _on_ready(self) -> None:
        connections = self._connections
        for fd, events in self._epoll.poll(0, _BATCH):
            connection = connections.get(fd)
            if connection is None:  # closed by a handler that ran earlier in this batch
                continue
            if events & _READABLE:
                connection._on_readable()
            if events & _WRITABLE:
                connection._on_writable()
