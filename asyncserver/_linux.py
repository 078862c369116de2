"""Where this package cannot run, importing it says so, in a sentence."""

import select
import sys

# Not by sys.platform: type checkers on other systems would take the rest for unreachable.
if not hasattr(select, "epoll"):
    raise ImportError(f"asyncserver needs Linux (epoll, among others), and this is {sys.platform}: use a container")
