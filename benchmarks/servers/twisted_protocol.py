"""Twisted protocols on its epoll reactor."""

from pathlib import Path
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any

from twisted.internet import protocol, reactor, ssl

from benchmarks.servers.contract import BACKLOG, DATAGRAM_BUFFER, HOST, arguments, ready


class Echo(protocol.Protocol):
    def connectionMade(self) -> None:  # noqa: N802 - Twisted's name
        self.transport.registerProducer(self.transport, True)  # stop reading while the peer does not read
        if options.kind != "unix":
            self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        self.transport.write(data)


class DatagramEcho(protocol.DatagramProtocol):
    def datagramReceived(self, data: bytes, address: Any) -> None:  # noqa: N802 - Twisted's name
        self.transport.write(data, address)


def main() -> None:
    loop: Any = reactor
    factory = protocol.Factory.forProtocol(Echo)
    if options.kind == "udp":
        port = loop.listenUDP(0, DatagramEcho(), interface=HOST)
        port.socket.setsockopt(SOL_SOCKET, SO_RCVBUF, DATAGRAM_BUFFER)
    elif options.kind == "unix":
        port = loop.listenUNIX(options.path, factory, backlog=BACKLOG)
    elif options.kind == "tls":
        certificate = ssl.PrivateCertificate.loadPEM(Path(options.certificate).read_bytes())
        port = loop.listenSSL(0, factory, certificate.options(), backlog=BACKLOG, interface=HOST)
    else:
        port = loop.listenTCP(0, factory, backlog=BACKLOG, interface=HOST)
    ready(port.socket)
    loop.run()


if __name__ == "__main__":
    options = arguments()
    main()
