"""Terminals: whether somebody could still press Ctrl-C."""

from __future__ import annotations

import os


def open_terminals() -> list[int]:
    """Which of the standard streams are a terminal. When it is closed they are one no more, and SIGHUP says so.

    Nobody could press Ctrl-C any more then: the program ends as if somebody had.
    """
    return [descriptor for descriptor in range(3) if os.isatty(descriptor)]
