"""Lingering: deliver what was sent before the connection is closed.

A close throws nothing away by itself: the kernel sends on. But where bytes lie unread, or
arrive afterwards (the next request of a client that does not wait for answers), it resets
the connection instead (RFC 1122, 4.2.2.13), and what is unsent is lost. So if there are
unread bytes, or unsent ones, our side is ended first; then what arrives is thrown away
until the peer has ended too, or has everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import select
import socket
from typing import TYPE_CHECKING

from ..net.poller import READ, WRITE
from ..net.socket_info import unsent
from ..net.waiter import Waiter
from .connection import CHUNK
from .states import refuse_after_eof, refuse_closed, refuse_undelivered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .tls_connection import TLSConnection

# Seconds for a peer that has everything to end its side, if it may still be sending: enough for a
# retransmission (RFC 6298 starts at 1 s), and too short to hold up a drain.
_PATIENCE = 2.0
# So many times _PATIENCE may a peer take nothing of what is left: it may be out of reach for a
# while. Not in a drain, which has a deadline; idle_timeout can make it less.
_STALLS = 5
# Pieces thrown away until other tasks may run; all, where the peer is not waited for.
_TURNS = 16


class Lingering:
    """The end of one connection, as its last user has left it."""

    def __init__(self, connection: TLSConnection) -> None:
        self._connection = connection
        self._broken = connection._is_broken
        # The last send was interrupted: its rest is of little use, and not waited for long.
        self._torn = connection._is_torn
        self._notify = not (self._broken or self._torn or connection._send is refuse_after_eof)
        self._heard = False  # the peer may still be sending

    async def run(self) -> bool:
        """End our side, and wait for the peer; false if it has not got everything."""
        try:
            if self._broken:
                self._discard_leftovers()
                return True  # its user got the error
            return await self._bring_across()
        except OSError:  # broken: nothing more can be done for this peer
            self._connection._clear_errors()
            return self._broken or not self._connection._untaken()

    def _discard_leftovers(self) -> None:
        """Throw away what is here: unread it makes close() reset, and TLS's alert may be lost."""
        sock = self._connection._sock
        if self._connection._fd >= 0 and self._connection._unread():
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(BlockingIOError):
                for _ in range(_TURNS):
                    if not socket.socket.recv(sock, CHUNK):
                        return

    async def _bring_across(self) -> bool:
        connection = self._connection
        if self._notify and not await self._while_it_takes(connection._close_notify):
            return False
        if connection._fd < 0:  # closed meanwhile
            return True
        self._heard = connection._unread() > 0
        if not self._heard and not unsent(connection._fd):
            return True
        connection._sock.shutdown(socket.SHUT_WR)
        # The kernel reports only the acknowledgement of the last byte: the socket's state changes
        # then (FIN_WAIT2), which epoll reports if it is edge-triggered, epoll(7).
        connection._writing = connection._reading
        connection._set_events(READ | WRITE | select.EPOLLET)
        connection._watching = True
        return await self._while_it_takes(self._see_it_end)

    async def _while_it_takes(self, step: Callable[[], Awaitable[None]]) -> bool:
        """Repeat a step until it is done; false if the peer takes nothing for too long."""
        stalls, left = 0, math.inf
        while stalls < (1 if self._torn else math.inf if self._connection._closing.is_set() else _STALLS):
            try:
                async with asyncio.timeout(_PATIENCE) as limit:
                    await step()
                    return True
            except TimeoutError:
                if not limit.expired():
                    raise  # the kernel's, ETIMEDOUT
            before, left = left, self._connection._untaken()
            if not left:
                return True  # the peer has everything, and does not end its side
            stalls = 0 if left < before else stalls + 1
        return False

    async def _see_it_end(self) -> None:
        """Throw away what arrives until the peer ends, or has everything and is silent."""
        connection = self._connection
        for turn in itertools.count(1):
            try:
                if not socket.socket.recv(connection._sock, CHUNK):  # below TLS, if any
                    return
                self._heard = True
            except BlockingIOError:
                if not self._heard and not connection._untaken():
                    return
                await connection._readable()
            if not turn % _TURNS:
                await asyncio.sleep(0)


async def close_politely(connection: TLSConnection) -> None:
    """Close both directions, see `Stream.aclose()`, unless that has been done."""
    if connection._recv is refuse_closed:
        return
    lingering = Lingering(connection)
    connection._recv = connection._send = refuse_closed
    connection._watching = False
    connection._set_events(0)
    connection._wake_all()
    connection._reading, connection._writing = Waiter(connection._poller.get_loop, "closing"), None
    try:
        if not await lingering.run():
            connection._send = refuse_undelivered
    finally:
        connection._close()
