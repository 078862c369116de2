#!/usr/bin/env bash
# Twisted 26.10.0, twisted.protocols.haproxy.proxyEndpoint: the short form of a PROXY v1 header for
# a client that the proxy cannot name is refused.
#
# Expected: "PROXY UNKNOWN\r\n" is a whole header. The PROXY protocol's text (2.1) lets senders omit
# the rest of the line, and has receivers ignore whatever stands there.
# Met: only the long form, with four made-up fields behind UNKNOWN, gets through; after the short one
# the connection is closed without a word in the log.
# Output seen:
#     with addresses: 'question'
#     short form: closed
# For us: a proxy that is tested against Twisted may send the long form. asyncserver takes both.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv" || exit 2
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check twisted==26.10.0 || exit 2
cat > "$folder/try.py" <<'PYTHON'
import socket
import sys
import threading

from twisted.internet import endpoints, protocol, reactor
from twisted.protocols.haproxy import proxyEndpoint


class Echo(protocol.Protocol):
    def dataReceived(self, data):
        self.transport.write(data)
        self.transport.loseConnection()


def ask(port, header):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(header + b"question")
        try:
            return client.recv(100)
        except ConnectionResetError:
            return b""


def judge(port):
    long = ask(port, b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n")
    short = ask(port, b"PROXY UNKNOWN\r\n")
    print("with addresses:", repr(long.decode()))
    print("short form:", repr(short.decode()) if short else "closed")
    verdict.append(long == b"question" and short == b"")
    reactor.callFromThread(reactor.stop)


verdict = []
listening = proxyEndpoint(endpoints.TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"))
listening.listen(protocol.Factory.forProtocol(Echo)).addCallback(
    lambda port: threading.Thread(target=judge, args=(port.getHost().port,)).start()
)
reactor.run()
sys.exit(not verdict[0])
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
