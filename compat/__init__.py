"""Every name of the standard library's `socketserver`, driven by an event loop.

`import compat as socketserver` is the whole migration of a module. Beside those names:
`ThreadPool`, the executor that threaded handlers run on, and `install`, which puts this package in
`socketserver`'s place for everything that is imported afterwards. `python -m compat script.py` does
that for an unchanged program.

Example::

    import compat as socketserver

    class Upper(socketserver.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                self.wfile.write(line.upper())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 8080), Upper) as server:
        server.serve_forever()
"""

import socketserver as _socketserver
import sys as _sys
from functools import partial as _partial
from socketserver import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
from types import ModuleType
from typing import TYPE_CHECKING, Any

from compat import linux as _linux  # noqa: F401 - raises where we cannot run
from compat.forking import (
    ForkingMixIn,
    ForkingTCPServer,
    ForkingUDPServer,
    ForkingUnixDatagramServer,
    ForkingUnixStreamServer,
)
from compat.patching import install as install
from compat.pool.executor import ThreadPool as ThreadPool
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
    from collections.abc import Callable

    from compat.hosting.handler import hosted as hosted

# As in socketserver, for `from socketserver import *`: it must not hide a program's own `install`.
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


class _Package(ModuleType):
    """Imports `hosted` when it is asked for, after the `__getattr__` below has found nothing."""

    def __getattr__(self, name: str) -> Any:
        if name == "hosted":
            from compat.hosting.handler import hosted  # noqa: PLC0415 - brings all of asyncserver

            return hosted
        raise AttributeError(f"neither module {__name__!r} nor 'socketserver' has an attribute {name!r}")


_sys.modules[__name__].__class__ = _Package
# What else programs find in `socketserver`: `_SocketWriter`, the modules it imports. Without a
# frame of ours, because its warnings (of `__version__`, from Python 3.15 on) count frames to find
# the program's line.
__getattr__: "Callable[[str], Any]" = _partial(getattr, _socketserver)
