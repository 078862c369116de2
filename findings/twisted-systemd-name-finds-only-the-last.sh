#!/usr/bin/env bash
# Twisted 26.10.0, `systemd:domain=INET:name=web`: of several sockets with that name the endpoint
# listens on the last one; the others are left alone without a word.
#
# Expected: all of them, or an error. One name for several is what systemd gives for a unit with two
# lines `ListenStream=`: FileDescriptorName= names "all file descriptors this socket unit
# encapsulates" (systemd.socket(5)), and without it they all bear the unit's name. Twisted's how-to
# has names choose a descriptor "reliably" out of several, where indexes cannot.
# Met: names are put into a dict, where the last descriptor replaces those before it. Clients of the
# first address are connected, since systemd's socket listens, but nobody ever accepts them.
# Output seen:
#     first socket: connected, no greeting within 2 s
#     second socket: greeting b'hello\r\n'
# For us: `systemd_sockets("web")` and `--tcp systemd:web` take every socket of that name; a unit for
# Twisted needs a .socket file for each address: docs/migration.md.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv" || exit 2
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check twisted==26.10.0 || exit 2
cat > "$folder/served.py" <<'PYTHON'
"""The program that systemd starts: greets whoever connects to its sockets "web"."""

from twisted.internet import endpoints, protocol, reactor


class Greeter(protocol.Protocol):
    def connectionMade(self):
        self.transport.write(b"hello\r\n")
        self.transport.loseConnection()


endpoint = endpoints.serverFromString(reactor, "systemd:domain=INET:name=web")
endpoint.listen(protocol.Factory.forProtocol(Greeter)).addErrback(lambda failure: reactor.stop())
reactor.run()
PYTHON
cat > "$folder/start.py" <<'PYTHON'
"""Does what systemd does for a unit with two lines ListenStream=, and asks both addresses."""

import os
import socket
import sys

opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
child = os.fork()
if not child:
    for number, sock in enumerate(opened):  # out of the way
        os.dup2(sock.fileno(), 10 + number)
    for number in range(2):
        os.dup2(10 + number, 3 + number)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="web:web")
    os.execv(sys.executable, [sys.executable, sys.argv[1]])


def greeting(sock, seconds):
    with socket.create_connection(sock.getsockname(), timeout=seconds) as client:
        try:
            return client.recv(99)
        except TimeoutError:
            return None


second = greeting(opened[1], 30)  # so long may the program take to start
first = greeting(opened[0], 2)
os.kill(child, 15)
os.waitpid(child, 0)
for name, heard in (("first", first), ("second", second)):
    print(f"{name} socket: " + (f"greeting {heard}" if heard else "connected, no greeting within 2 s"))
sys.exit((first, second) != (None, b"hello\r\n"))
PYTHON
"$folder/venv/bin/python" "$folder/start.py" "$folder/served.py"
