"""What holds of every server, whatever is done to it."""

from __future__ import annotations

from typing import Any

import pytest

import asyncserver


def is_balanced(server: asyncserver.Server) -> bool:
    """Whether each accepted connection is in exactly one of the counters."""
    now = server.stats()
    ended = now.completed + now.failed + now.cancelled + now.timed_out
    return now.accepted == now.entering + now.active + now.refused + ended


def is_idle(server: asyncserver.Server) -> bool:
    """Whether no handler runs, and no connection is in its handshake or header."""
    now = server.stats()
    return not (now.active or now.entering)


def is_balanced_for_datagrams(server: asyncserver.Server) -> bool:
    """Whether each datagram is in exactly one of the counters, and each completed one too."""
    now = server.stats()
    return (
        now.datagrams_received == now.active + now.completed + now.failed + now.cancelled
        and now.completed == now.datagrams_answered + now.datagrams_silent
    )


def records(caplog: pytest.LogCaptureFixture, name: str = "asyncserver") -> list[Any]:
    """The records of one logger, but for the line at the end of each server."""
    return [one for one in caplog.records if one.name == name and not one.getMessage().startswith("closed ")]


def errors_in(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """The records of the package's own logger that tell of an error."""
    return [one for one in records(caplog) if one.levelname == "ERROR"]
