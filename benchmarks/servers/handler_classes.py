"""Handler classes as written for socketserver, a thread each.

`--variant` says who runs them: `socketserver`, `compat`, or `gevent` (socketserver under gevent's monkey patch,
which makes its threads greenlets). The legacy kinds answer line by line through files, as old handlers do; the
others echo whatever a socket receives.
"""

import importlib
import socket
import ssl
import sys
from typing import Any

from benchmarks.servers.contract import (
    BACKLOG,
    DATAGRAM_BUFFER,
    HOST,
    MAX_READ,
    arguments,
    ready,
    tls_context,
)


def library() -> Any:
    """The module that `--variant` names."""
    if options.variant == "gevent":
        from gevent import monkey  # noqa: PLC0415 - optional

        monkey.patch_all()
        return importlib.import_module("socketserver")
    return importlib.import_module(options.variant)


def handlers(base: Any) -> dict[str, Any]:
    """The handler class for each kind."""

    class Echo(base.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(MAX_READ):
                self.request.sendall(data)

    class EchoLines(base.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(line)

    class EchoDatagram(base.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(data, self.client_address)

    class EchoDatagramFile(base.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.read())

    return {"legacy-tcp": EchoLines, "legacy-udp": EchoDatagramFile, "udp": EchoDatagram} | dict.fromkeys(
        ("tcp", "unix", "tls"), Echo
    )


def server_class(base: Any) -> Any:
    """The threading server class for the kind, with the settings that every peer gets."""
    datagrams = options.kind.endswith("udp")
    name = {"unix": "ThreadingUnixStreamServer"}.get(
        options.kind, "ThreadingUDPServer" if datagrams else "ThreadingTCPServer"
    )

    class Server(getattr(base, name)):
        daemon_threads = True
        request_queue_size = BACKLOG
        disable_nagle_algorithm = True
        context: ssl.SSLContext | None = None

        def server_bind(self) -> None:
            if datagrams:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER)
            elif options.kind != "unix":
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            super().server_bind()

        def finish_request(self, request: Any, client_address: Any) -> None:
            if self.context is None:
                super().finish_request(request, client_address)
                return
            with self.context.wrap_socket(request, server_side=True) as secured:  # in the handler's thread
                super().finish_request(secured, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    return Server


def main() -> None:
    base = library()
    address = options.path if options.kind == "unix" else (HOST, options.port)
    with server_class(base)(address, handlers(base)[options.kind]) as server:
        server.context = tls_context(options)
        ready(server.server_address)
        server.serve_forever()


if __name__ == "__main__":
    options = arguments()
    main()
