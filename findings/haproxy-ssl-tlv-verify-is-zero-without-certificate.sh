#!/usr/bin/env bash
# HAProxy 2.6.12 and 3.2.26, `send-proxy-v2-ssl`: the SSL TLV says verify = 0 for a TLS client that has shown no
# certificate, and comes for clients that speak no TLS, too.
#
# Expected: verify "will be zero if the client presented a certificate and it was successfully
# verified, and non-zero otherwise" (PROXY protocol, 2.2.6); and no SSL TLV without TLS.
# Met: the four bytes are zero without a certificate; plain clients get the TLV with client = 0.
# Output seen, of both versions:
#     TLS client without certificate: client=1 verify=0
#     plain client: client=0 verify=0
# For us: `proxy_header.tls` is None without the bit 0x01 of `client`, and its `verified` needs the
# bits of a certificate as well as the zero (proxy/tlvs.py).
set -euo pipefail
PATH=$PATH:/usr/sbin
command -v haproxy >/dev/null && command -v openssl >/dev/null || exit 2
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 2 \
    -keyout "$folder/key.pem" -out "$folder/cert.pem" 2>/dev/null
cat "$folder/cert.pem" "$folder/key.pem" >"$folder/both.pem"
haproxy -v | sed -n 1p
cat > "$folder/try.py" <<'PYTHON'
import contextlib
import pathlib
import socket
import ssl
import struct
import subprocess
import sys
import time

folder = pathlib.Path(sys.argv[1])


def ssl_tlv(header):
    """(client, verify) of the SSL TLV behind the addresses of a version 2 header."""
    rest = header[16 + 12 : 16 + struct.unpack("!H", header[14:16])[0]]
    while rest:
        kind, length = struct.unpack("!BH", rest[:3])
        if kind == 0x20:
            return struct.unpack("!BI", rest[3:8])
        rest = rest[3 + length :]
    return None


with contextlib.ExitStack() as stack:
    back = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    back.settimeout(10)
    free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
    plain, secure = (sock.getsockname()[1] for sock in free)
    for sock in free:
        sock.close()
    (folder / "haproxy.cfg").write_text(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 5s\n timeout server 5s\n"
        f"listen one\n bind 127.0.0.1:{plain}\n bind 127.0.0.1:{secure} ssl crt {folder}/both.pem\n"
        f" server back 127.0.0.1:{back.getsockname()[1]} send-proxy-v2-ssl\n"
    )
    haproxy = subprocess.Popen(["haproxy", "-q", "-db", "-f", str(folder / "haproxy.cfg")])
    stack.callback(haproxy.wait)
    stack.callback(haproxy.terminate)
    context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    found = []
    for name, port in (("TLS client without certificate", secure), ("plain client", plain)):
        for _ in range(100):
            with contextlib.suppress(ConnectionRefusedError):
                client = socket.create_connection(("127.0.0.1", port))
                break
            time.sleep(0.1)  # not up yet
        else:
            sys.exit(2)
        if port == secure:
            client = context.wrap_socket(client)
        client.sendall(b"hello")
        connection, _ = back.accept()
        header = b""
        while len(header) < 16 or len(header) < 16 + struct.unpack("!H", header[14:16])[0]:
            header += connection.recv(999)
        found.append(ssl_tlv(header))
        print(f"{name}: client={found[-1][0]} verify={found[-1][1]}" if found[-1] else f"{name}: no SSL TLV")
        client.close()
        connection.close()
sys.exit(found != [(1, 0), (0, 0)])
PYTHON
"${PYTHON:-python3}" "$folder/try.py" "$folder"
