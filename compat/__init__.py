"""Every name of the standard library's `socketserver`, driven by an event loop.

`import compat as socketserver` is the whole migration of a module. Beside those names: `ThreadPool`, the
executor that threaded handlers run on, and `install`, which puts this package in `socketserver`'s place for
everything that is imported afterwards. `python -m compat script.py` does that for an unchanged program.
"""

import socketserver as _socketserver
from socketserver import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
from typing import TYPE_CHECKING, Any

from compat.forking import (
    ForkingMixIn,
    ForkingTCPServer,
    ForkingUDPServer,
    ForkingUnixDatagramServer,
    ForkingUnixStreamServer,
)
from compat.pool import ThreadPool as ThreadPool
from compat.replacement import install as install
from compat.servers import BaseServer, TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from compat.threads import CloseReport as CloseReport
from compat.threads import (
    ThreadingMixIn,
    ThreadingTCPServer,
    ThreadingUDPServer,
    ThreadingUnixDatagramServer,
    ThreadingUnixStreamServer,
)

if TYPE_CHECKING:
    from compat.hosting import hosted as hosted

# As in socketserver, for `from socketserver import *`: a program's own `install` or `hosted` must not be hidden.
__all__ = [
    "BaseRequestHandler",
    "BaseServer",
    "DatagramRequestHandler",
    "ForkingMixIn",
    "ForkingTCPServer",
    "ForkingUDPServer",
    "ForkingUnixDatagramServer",
    "ForkingUnixStreamServer",
    "StreamRequestHandler",
    "TCPServer",
    "ThreadingMixIn",
    "ThreadingTCPServer",
    "ThreadingUDPServer",
    "ThreadingUnixDatagramServer",
    "ThreadingUnixStreamServer",
    "UDPServer",
    "UnixDatagramServer",
    "UnixStreamServer",
]


def __getattr__(name: str) -> Any:
    """Find `hosted`, and what else programs find in `socketserver` (`_SocketWriter`, the modules it imports)."""
    if name == "hosted":
        from compat.hosting import hosted  # noqa: PLC0415 - brings asyncserver, which the server classes do not need

        return hosted
    try:
        return getattr(_socketserver, name)
    except AttributeError:
        raise AttributeError(f"neither module {__name__!r} nor 'socketserver' has an attribute {name!r}") from None
