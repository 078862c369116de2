#!/usr/bin/env bash
# Linux 6.18, CPython 3.13: a socket that has joined an IPv6 group on one interface also gets what
# is sent to that group on another, where a second socket has joined it; for IPv4 it does not.
#
# Expected: nothing, for the membership names an interface (RFC 3493, 5.2: "join a multicast group
# on a specified local interface"), and IPV6_MULTICAST_ALL is off.
# Met: what a socket hears is compared by group alone; the interface only says what the host joins.
# Output seen (memberships on "one", sent on "two"):
#     IPv4: nothing
#     IPv6: b'hello'
# For us: `groups=["ff02::114%eth0"]` is no filter for interfaces: docs/datagrams.md says so.
set -euo pipefail
command -v ip >/dev/null && unshare -Urn true 2>/dev/null || exit 2
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PYTHON'
import socket
import struct
import subprocess
import sys
import time

for name in ("one", "two"):
    for command in (
        ["link", "add", name, "type", "veth", "peer", f"{name}-end"],
        ["link", "set", f"{name}-end", "up"],
        ["link", "set", name, "up", "multicast", "on"],
        ["addr", "add", f"192.0.2.{ord(name[0])}/32", "dev", name],
    ):
        subprocess.run(["ip", *command], check=True)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
one, two = map(socket.if_nametoindex, ("one", "two"))
IPV6_MULTICAST_ALL, IP_MULTICAST_ALL = 29, 49  # linux/in6.h, linux/in.h


def heard(family):
    """What a member on `one` gets of what is sent on `two`, where another is a member."""
    wide = family == socket.AF_INET6
    group = "ff02::114" if wide else "239.1.2.3"
    members = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(2)]
    for sock, index in zip(members, (one, two)):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if wide:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0)
            sock.bind(("::", 5300))
            joined = socket.inet_pton(family, group) + struct.pack("@I", index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, joined)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
            sock.bind(("0.0.0.0", 5300))
            joined = socket.inet_aton(group) + socket.inet_aton("0.0.0.0") + struct.pack("@i", index)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        sock.settimeout(1)
    sender = socket.socket(family, socket.SOCK_DGRAM)
    if wide:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, two)
    else:
        option = socket.inet_aton("0.0.0.0") * 2 + struct.pack("@i", two)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, option)
    for _ in range(50):  # until the interface has its address
        try:
            sender.sendto(b"hello", (group, 5300))
            if members[1].recv(99) == b"hello":
                break
        except OSError:
            time.sleep(0.1)
    else:
        sys.exit(2)
    try:
        return members[0].recv(99)
    except TimeoutError:
        return None


four, six = heard(socket.AF_INET), heard(socket.AF_INET6)
print(f"IPv4: {four or 'nothing'}\nIPv6: {six or 'nothing'}")
sys.exit((four, six) != (None, b"hello"))
PYTHON
unshare -Urn "${PYTHON:-python3}" "$folder/try.py"
