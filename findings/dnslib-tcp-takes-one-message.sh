#!/usr/bin/env bash
# dnslib 0.9.26, dnslib.server over TCP: one query for each connection, whose first segment has to
# hold the whole length field.
#
# Expected: a TCP connection carries any number of messages, each behind two bytes of length, and a
# server takes further queries without waiting (RFC 1035 4.2.2, RFC 7766 6.2.1.1). Where segments
# begin and end means nothing: servers "MUST NOT close a connection simply because the first "read"
# from the TCP layer does not contain the entire DNS message" (RFC 7766 8).
# Met: of two queries in one segment the second is dropped and the connection closed; a length that
# arrives a byte at a time is "Request Truncated", and no answer comes.
# Output seen:
#     one query: 1 answer(s)
#     two queries in one segment: 1 answer(s)
#     length in two segments: 0 answer(s)
# For us: it is the handler's doing, so it is the same under socketserver, compat and hosted.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv" || exit 2
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check dnslib==0.9.26 || exit 2
cat > "$folder/try.py" <<'PYTHON'
import socket
import struct
import sys
import time

import dnslib
from dnslib.server import BaseResolver, DNSLogger, DNSServer


class One(BaseResolver):
    def resolve(self, request, handler):
        reply = request.reply()
        reply.add_answer(*dnslib.RR.fromZone("host.example 60 A 192.0.2.1"))
        return reply


def answers(*pieces):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
            time.sleep(0.2)  # so that the pieces do arrive as two segments
        received = b""
        try:
            while data := client.recv(4096):
                received += data
        except ConnectionResetError:
            pass  # it closes with our second query unread
    count = 0
    while received:
        received, count = received[2 + struct.unpack("!H", received[:2])[0] :], count + 1
    return count


quiet = DNSLogger("-request,-reply,-recv,-send,-truncated,-data,-error")
server = DNSServer(One(), address="127.0.0.1", port=0, tcp=True, logger=quiet)
server.start_thread()
port = server.server.server_address[1]
query = dnslib.DNSRecord.question("host.example").pack()
message = struct.pack("!H", len(query)) + query
seen = {
    "one query": answers(message),
    "two queries in one segment": answers(message + message),
    "length in two segments": answers(message[:1], message[1:]),
}
server.stop()
for what, count in seen.items():
    print(f"{what}: {count} answer(s)")
sys.exit(list(seen.values()) != [1, 1, 0])
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
