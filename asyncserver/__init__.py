"""TCP, UDP, Unix and TLS servers for asyncio: bounded, measurable, and able to stop.

Example::

    async def upper(stream):
        async for data in stream:
            await stream.send(data.upper())

    asyncserver.run(asyncserver.serve(upper, "127.0.0.1", 8080))

Whatever is public is exported here; CONTRIBUTING shows the folders, and what calls what.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import _linux as _linux
from ._types import DatagramHandler, ErrorHandler, StreamHandler
from .exceptions import BindError, IdleTimeout
from .net.addresses import Address
from .serving import Serving, serve, serve_datagrams

if TYPE_CHECKING:
    from .adapters.protocols import ProtocolHandler, from_callback, from_protocol
    from .datagrams.datagram import Datagram
    from .leaving.signals import closing_on_signals
    from .listening.systemd import systemd_sockets
    from .monitoring.log_format import JSONFormatter
    from .monitoring.metrics import ServerCollector
    from .program.thread import background
    from .proxy.proxy_protocol import ProxyHeader
    from .proxy.tlvs import ProxyTLS
    from .reports.stats import DrainReport, Durations, ServerStats
    from .running import run
    from .servers.server import Server
    from .speedups.extension import accelerated
    from .streams.stream import Stream
    from .tls.contexts import KeyExchangeAttribute, SNIAttribute, TLSContext, tls_context
else:
    # Imported when first asked for: most of the import's time, and no program needs all of it.
    _LATER = {
        "Datagram": ".datagrams.datagram",
        "DrainReport": ".reports.stats",
        "Durations": ".reports.stats",
        "JSONFormatter": ".monitoring.log_format",
        "KeyExchangeAttribute": ".tls.contexts",
        "ProtocolHandler": ".adapters.protocols",
        "ProxyHeader": ".proxy.proxy_protocol",
        "ProxyTLS": ".proxy.tlvs",
        "SNIAttribute": ".tls.contexts",
        "Server": ".servers.server",
        "ServerCollector": ".monitoring.metrics",
        "ServerStats": ".reports.stats",
        "Stream": ".streams.stream",
        "TLSContext": ".tls.contexts",
        "accelerated": ".speedups.extension",
        "background": ".program.thread",
        "closing_on_signals": ".leaving.signals",
        "from_callback": ".adapters.protocols",
        "from_protocol": ".adapters.protocols",
        "run": ".running",
        "systemd_sockets": ".listening.systemd",
        "tls_context": ".tls.contexts",
    }

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_LATER[name], __name__), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER})


__all__ = [
    "Address",
    "BindError",
    "Datagram",
    "DatagramHandler",
    "DrainReport",
    "Durations",
    "ErrorHandler",
    "IdleTimeout",
    "JSONFormatter",
    "KeyExchangeAttribute",
    "ProtocolHandler",
    "ProxyHeader",
    "ProxyTLS",
    "SNIAttribute",
    "Server",
    "ServerCollector",
    "ServerStats",
    "Serving",
    "Stream",
    "StreamHandler",
    "TLSContext",
    "accelerated",
    "background",
    "closing_on_signals",
    "from_callback",
    "from_protocol",
    "run",
    "serve",
    "serve_datagrams",
    "systemd_sockets",
    "tls_context",
]

__version__ = "0.2.0"
