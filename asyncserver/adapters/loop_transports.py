"""transport_for: a transport of ours in the class that the functions of its loop insist on.

`loop.sendfile()` and `loop.start_tls()` of the stock loop ask a transport for two attributes, and the former that it
is of a class of asyncio's; `loop.start_tls()` of uvloop takes objects of uvloop's own classes only.
"""

from __future__ import annotations

import asyncio
import asyncio.constants
import functools
import sys
from typing import TYPE_CHECKING, Any

from .transports import ProtocolTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from .transports import Served


class _AsyncioTransport(ProtocolTransport, asyncio.transports._FlowControlMixin):
    """Of the class that `loop.sendfile()` of the stock loop insists on."""

    _start_tls_compatible = True
    _sendfile_compatible = asyncio.constants._SendfileMode.FALLBACK

    def __init__(self, connection: Served) -> None:
        self._init(connection)


@functools.cache
def _class_for(loop: type) -> Callable[[Served], ProtocolTransport]:
    for one in loop.__mro__:
        base: Any = getattr(sys.modules.get(one.__module__), "TCPTransport", None)
        if base is not None:
            return _class_of(base)
    return _AsyncioTransport


def _class_of(base: Any) -> Callable[[Served], ProtocolTransport]:
    """Make a class that is the loop's own by type, and says that it is asyncio's, for programs that ask."""
    names = {
        "__init__": ProtocolTransport._init,  # not the base's: there is no handle of libuv
        "__class__": property(lambda _: _AsyncioTransport),  # what isinstance() asks next, and Cython does not
    }
    made: Any = type("LoopsTransport", (ProtocolTransport, base), names)
    return made  # type: ignore[no-any-return]


def transport_for(connection: Served) -> ProtocolTransport:
    """Make the transport of a connection, as its loop wants it."""
    kind: Any = type(connection.loop)
    return _class_for(kind)(connection)
