"""TCP, UDP, Unix and TLS servers for asyncio: bounded, measurable, and able to stop.

    async def upper(stream):
        async for data in stream:
            await stream.send(data.upper())

    asyncio.run(asyncserver.serve(upper, "127.0.0.1", 8080))

Reading order of the package, from what you call to what it stands on: `serving` (serve, serve_datagrams), `server`
with `stream_server` and `datagram_server` (handlers, limits, drain), `stream` and `datagram` (what a handler gets),
`adapters` (existing protocols and callbacks), `listener` and `binding` (sockets), `tls`, `proxy_protocol`, `systemd`,
`running` (the program), `metrics` (what Prometheus is told).
"""

from __future__ import annotations

from ._types import DatagramHandler, ErrorHandler, StreamHandler
from .adapters import ProtocolHandler, from_callback, from_protocol
from .addresses import Address
from .datagram import Datagram
from .exceptions import BindError, IdleTimeout
from .metrics import ServerCollector
from .proxy_protocol import ProxyHeader
from .reports import DrainReport, Durations, ServerStats
from .running import run
from .server import Server
from .serving import Serving, serve, serve_datagrams
from .stream import Stream
from .systemd import systemd_sockets
from .tls import KeyExchangeAttribute, SNIAttribute, TLSContext, tls_context

__all__ = [
    "Address",
    "BindError",
    "Datagram",
    "DatagramHandler",
    "DrainReport",
    "Durations",
    "ErrorHandler",
    "IdleTimeout",
    "KeyExchangeAttribute",
    "ProtocolHandler",
    "ProxyHeader",
    "SNIAttribute",
    "Server",
    "ServerCollector",
    "ServerStats",
    "Serving",
    "Stream",
    "StreamHandler",
    "TLSContext",
    "from_callback",
    "from_protocol",
    "run",
    "serve",
    "serve_datagrams",
    "systemd_sockets",
    "tls_context",
]

__version__ = "0.1.0"
