"""Where this package cannot run, importing it says so, in a sentence."""

import sys

# Not by `select.epoll`, which eventlet takes away. Not sys.platform itself: type checkers on other
# systems would take the rest for unreachable.
_SYSTEM: str = sys.platform

if not _SYSTEM.startswith("linux"):
    raise ImportError(f"compat needs Linux (epoll, among others), and this is {_SYSTEM}: use a container")
