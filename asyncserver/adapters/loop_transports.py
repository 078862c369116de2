"""transport_for: a transport of ours, in a class that the functions of its loop accept.

The stock loop's functions ask a transport for two attributes, `loop.sendfile()` also for a class of
asyncio's; uvloop's `loop.start_tls()` takes only uvloop's own classes.
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

    from .protocol_connection import ProtocolConnection


class _AsyncioTransport(ProtocolTransport, asyncio.transports._FlowControlMixin):
    """In the class that `loop.sendfile()` of the stock loop accepts."""

    _start_tls_compatible = True
    _sendfile_compatible = asyncio.constants._SendfileMode.FALLBACK

    def __init__(self, connection: ProtocolConnection) -> None:
        self._init(connection)


@functools.cache
def _class_for(loop: type) -> Callable[[ProtocolConnection], ProtocolTransport]:
    for one in loop.__mro__:
        base: Any = getattr(sys.modules.get(one.__module__), "TCPTransport", None)
        if base is not None:
            return _class_of(base)
    return _AsyncioTransport


def _class_of(base: Any) -> Callable[[ProtocolConnection], ProtocolTransport]:
    """Make a class that is the loop's own by type, and asyncio's for programs that ask."""
    names = {
        "__init__": ProtocolTransport._init,  # not the base's: there is no handle of libuv
        # isinstance() asks for this next, Cython does not.
        "__class__": property(lambda _: _AsyncioTransport),
    }
    made: Any = type("LoopsTransport", (ProtocolTransport, base), names)
    return made  # type: ignore[no-any-return]


def transport_for(connection: ProtocolConnection) -> ProtocolTransport:
    """Make the transport of a connection, as its loop wants it."""
    kind: Any = type(connection.loop)
    return _class_for(kind)(connection)
