"""gevent's own servers: a greenlet per connection, blocking-style sockets."""

from typing import Any

from gevent import socket, ssl
from gevent.server import DatagramServer, StreamServer

from benchmarks.servers.contract import (
    MAX_READ,
    arguments,
    datagram_socket,
    listening_socket,
    ready,
    tls_context,
)


def echo(sock: Any, _address: Any) -> None:
    try:
        while data := sock.recv(MAX_READ):
            sock.sendall(data)
    except ConnectionError:
        pass
    finally:
        sock.close()


class DatagramEcho(DatagramServer):
    def handle(self, data: bytes, address: Any) -> None:
        self.socket.sendto(data, address)


def main() -> None:
    plain = datagram_socket() if options.kind == "udp" else listening_socket(options)
    sock = socket.socket(plain.family, plain.type, fileno=plain.detach())
    if options.kind == "udp":
        server = DatagramEcho(sock)
    elif context := tls_context(options, ssl):
        server = StreamServer(sock, echo, ssl_context=context)
    else:
        server = StreamServer(sock, echo)
    ready(sock.getsockname())
    server.serve_forever()


if __name__ == "__main__":
    options = arguments()
    main()
