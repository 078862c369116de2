"""What a server tells about itself: ServerStats at any time, DrainReport when it has closed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import anyio

from .exceptions import IdleTimeout, Refused

__all__ = ["DrainReport", "ServerStats"]

# How the end of its connection looks to a handler that does not care to catch it: not the handler's error.
_ENDED = (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError)


@dataclass(frozen=True, slots=True)
class DrainReport:
    """How the handlers that ran when `close()` was called have ended.

    Attributes:
        completed: handlers that ended by themselves.
        cancelled: handlers that ended because they were cancelled at the deadline.
        aborted: handlers that had not ended a second after that; their connections were reset.
    """

    completed: int = 0
    cancelled: int = 0
    aborted: int = 0


@dataclass(frozen=True, slots=True)
class ServerStats:
    """Counters since the server started.

    Connections: `accepted = active + refused + completed + failed + cancelled + timed_out`.
    Datagrams: what reached the host = `datagrams_received + datagrams_dropped` (and what the kernel still holds), and
    `datagrams_received = active + completed + failed + cancelled`, `completed = datagrams_answered + datagrams_silent`.

    Attributes:
        accepted: connections taken from the kernel's queue.
        active: connections, or datagrams, whose handlers run.
        refused: connections closed before a handler saw them: over the limit per host, or failed in the handshake.
        completed: handlers that ended without an error of their own, also because the peer broke the connection.
        failed: handlers that raised.
        cancelled: handlers that ended because they were cancelled.
        timed_out: handlers that let `IdleTimeout` end them.
        accept_errors: how often accept(2) failed.
        bytes_received: payload bytes received over connections.
        bytes_sent: payload bytes sent over connections.
        datagrams_received: datagrams given to a handler.
        datagrams_sent: datagrams sent by handlers.
        datagrams_answered: datagrams whose handler sent at least one.
        datagrams_silent: datagrams whose handler ended without sending one.
        datagrams_dropped: datagrams that no handler saw, dropped by the kernel (its buffer was full) or by us (on an
            abrupt close).
    """

    accepted: int = 0
    active: int = 0
    refused: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = 0
    accept_errors: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    datagrams_received: int = 0
    datagrams_sent: int = 0
    datagrams_answered: int = 0
    datagrams_silent: int = 0
    datagrams_dropped: int = 0


def outcome_of(exc: BaseException | None) -> str:
    """Which counter of ServerStats a handler's end belongs to, by what it raised."""
    if exc is None:
        return "completed"
    if isinstance(exc, asyncio.CancelledError):
        return "cancelled"
    if isinstance(exc, IdleTimeout):
        return "timed_out"
    if isinstance(exc, Refused):
        return "refused"
    if isinstance(exc, BaseExceptionGroup):  # of a task group in the handler
        rest = exc.split(_ENDED)[1]
        if rest is not None and rest.split(IdleTimeout)[1] is None:
            return "timed_out"
        return "completed" if rest is None else "failed"
    return "completed" if isinstance(exc, _ENDED) else "failed"
