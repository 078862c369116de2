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


@functools.cache
def _class_for(loop: type) -> Callable[[ProtocolConnection], ProtocolTransport]:
    for one in loop.__mro__:
        base: Any = getattr(sys.modules.get(one.__module__), "TCPTransport", None)
        if base is not None:
            # isinstance() asks for `__class__` next, Cython does not. The base's `__init__` is not
            # called: there is no handle of libuv.
            names = {"__class__": property(lambda _: _AsyncioTransport)}
            made: Any = type("LoopsTransport", (ProtocolTransport, base), names)
            return made  # type: ignore[no-any-return]
    return _AsyncioTransport


def transport_for(connection: ProtocolConnection) -> ProtocolTransport:
    """Make the transport of a connection, as its loop wants it."""
    kind: Any = type(connection.loop)
    return _class_for(kind)(connection)
