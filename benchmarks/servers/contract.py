"""What every server process understands and says.

Command line:

    python -m benchmarks.servers.NAME --kind KIND [--loop asyncio|uvloop] [--variant WORD] [--path PATH]
                                      [--certificate PEM] [--port PORT] [--workers N]

The process prints one line of JSON, `{"address": "127.0.0.1:40001"}`, when it accepts connections (for
workers, when it is about to), and serves until SIGTERM. It echoes what it receives. Kinds are tcp, udp, unix,
tls, lines for handlers that read line by line, broadcast for handlers that send to all connections what begins
with BROADCAST, and legacy-tcp and legacy-udp for handler classes written for socketserver.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

HOST = "127.0.0.1"
BACKLOG = 4096
DATAGRAM_BUFFER = 1 << 20
MAX_READ = 65536
BROADCAST = b"!"
MAX_LINE = 1 << 20  # the load generator warms up with a line of 256 KiB


def arguments() -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description="An echo server to be measured.")
    parser.add_argument("--kind", required=True)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--variant", default="")
    parser.add_argument("--path")
    parser.add_argument("--certificate", help="PEM file with key and chain")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def ready(address: Any) -> None:
    """Tell the harness where we listen: a socket, a path, or a (host, port) pair."""
    if isinstance(address, socket.socket):
        address = address.getsockname()
    if not isinstance(address, str):
        address = f"{address[0]}:{address[1]}"
    print(json.dumps({"address": address}), flush=True)


def tls_context(options: argparse.Namespace, library: Any = ssl) -> Any:
    """The server's context for kind tls, from the standard library or a stand-in for it; else None."""
    if options.kind != "tls":
        return None
    context = library.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.certificate)
    return context


def datagram_socket() -> socket.socket:
    """A bound, non-blocking UDP socket with the room that every peer gets."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER)
    sock.setblocking(False)
    sock.bind((HOST, 0))
    return sock


def listening_socket(options: argparse.Namespace) -> socket.socket:
    """A listening, non-blocking TCP or Unix socket, for libraries that take one."""
    if options.kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(options.path)
    else:
        sock = socket.socket(socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((HOST, options.port))
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def run_on_loop(options: argparse.Namespace, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine on the loop that the command line names."""
    import asyncio  # noqa: PLC0415 - not every server wants it in its memory

    factory: Any = None
    if options.loop == "uvloop":
        import uvloop  # noqa: PLC0415 - optional

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner, contextlib.suppress(KeyboardInterrupt):
        runner.run(main())
