"""TCP, UDP, Unix and TLS servers for asyncio: bounded, measurable, and able to stop.

Example::

    async def upper(stream):
        async for data in stream:
            await stream.send(data.upper())

    asyncio.run(asyncserver.serve(upper, "127.0.0.1", 8080))

Whatever is public is exported here; CONTRIBUTING shows the folders, and what calls what.
"""

from __future__ import annotations

from . import _linux as _linux
from ._types import DatagramHandler, ErrorHandler, StreamHandler
from .adapters.protocols import ProtocolHandler, from_callback, from_protocol
from .datagrams.datagram import Datagram
from .exceptions import BindError, IdleTimeout
from .leaving.signals import closing_on_signals
from .listening.systemd import systemd_sockets
from .monitoring.log_format import JSONFormatter
from .monitoring.metrics import ServerCollector
from .net.addresses import Address
from .program.thread import background
from .proxy.proxy_protocol import ProxyHeader
from .proxy.tlvs import ProxyTLS
from .reports.stats import DrainReport, Durations, ServerStats
from .running import run
from .servers.server import Server
from .serving import Serving, serve, serve_datagrams
from .streams.stream import Stream
from .tls.contexts import KeyExchangeAttribute, SNIAttribute, TLSContext, tls_context

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

__version__ = "0.1.0"
