"""Terminals: whether Ctrl-C can still come from one."""

from __future__ import annotations

import os


def open_terminals() -> list[int]:
    """Which of the standard streams are a terminal. A closed one no longer is, and sends SIGHUP.

    Ctrl-C cannot come from it any more, so the program ends as if it had come.
    """
    return [descriptor for descriptor in range(3) if os.isatty(descriptor)]
