#!/usr/bin/env bash
# nginx 1.22.1 and 1.30.6, stream module: `proxy_protocol on` writes "TCP4" for UDP, and only before
# the first datagram of a session.
#
# Expected: "UNKNOWN", since other protocols than TCP over IPv4 and IPv6 must be reported so (PROXY
# protocol 2.1), or an error for `listen ... udp`; and, if it writes headers, one in each datagram,
# as a datagram's receiver knows no sessions.
# Met: the line says TCP4. The second datagram of a client comes without one, from the same port.
# Output seen:
#     one: b'PROXY TCP4 127.0.0.1 127.0.0.1 51234 5300\r\none'
#     two: b'two'
# For us: serve_datagrams(..., proxy_protocol=True) does not look at the protocol that a header
# names, and nginx needs `proxy_requests 1`, which makes each datagram a session: docs/proxy.md.
set -euo pipefail
PATH=$PATH:/usr/sbin
command -v nginx >/dev/null || exit 2
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PYTHON'
import contextlib
import pathlib
import re
import socket
import subprocess
import sys
import time

folder = pathlib.Path(sys.argv[1])
with contextlib.ExitStack() as stack:
    back, client, free = (stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(3))
    for sock in (back, client, free):
        sock.bind(("127.0.0.1", 0))
    back.settimeout(1)
    front = free.getsockname()
    free.close()
    (folder / "nginx.conf").write_text(
        "include /etc/nginx/modules-enabled/*.conf;\n"
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"stream {{ server {{ listen {front[0]}:{front[1]} udp; proxy_protocol on; "
        f"proxy_pass 127.0.0.1:{back.getsockname()[1]}; }} }}\n"
    )
    command = ["nginx", "-e", "stderr", "-c", str(folder / "nginx.conf")]
    if subprocess.run([*command, "-t"], capture_output=True).returncode:
        sys.exit(2)  # without the stream module
    nginx = subprocess.Popen(command)
    stack.callback(nginx.wait)
    stack.callback(nginx.terminate)
    got = {}
    for word in (b"one", b"two"):
        for _ in range(10):
            client.sendto(word, front)
            with contextlib.suppress(TimeoutError):
                got[word] = back.recv(999)
                break
            time.sleep(0.1)  # not up yet
        print(f"{word.decode()}: {got.get(word)}")
    if len(got) < 2:
        sys.exit(2)
sys.exit(not (re.fullmatch(rb"PROXY TCP4 .*\r\none", got[b"one"]) and got[b"two"] == b"two"))
PYTHON
"${PYTHON:-python3}" "$folder/try.py" "$folder"
