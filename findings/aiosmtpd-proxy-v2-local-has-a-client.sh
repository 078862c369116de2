#!/usr/bin/env bash
# aiosmtpd 1.4.6, aiosmtpd.proxy_protocol: the addresses in a health check's header are told as a
# client's, and a Unix client's path is told with its padding.
#
# Expected: with command LOCAL the receiver "must use the real connection endpoints" and discard the
# address block (PROXY protocol 2.2), since the proxy speaks for itself there; a Unix address is a
# path, ended by a zero byte in a field of 108.
# Met: `src_addr` and `src_port` are those of the LOCAL header's block, `valid` is true, and only
# `command == 0` tells them apart; a Unix `src_addr` is all the 108 bytes.
# Output seen:
#     LOCAL: valid=True command=0 client=192.0.2.1:1111
#     Unix: 108 bytes, b'/run/client\x00'...
# For us: whoever moves a handler from aiosmtpd should look at `peer_address` again: asyncserver
# gives the real endpoint for LOCAL, and the path alone.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv" || exit 2
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check aiosmtpd==1.4.6 || exit 2
cat > "$folder/try.py" <<'PYTHON'
import asyncio
import socket
import struct
import sys

from aiosmtpd.proxy_protocol import get_proxy

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


async def read(command, family, block):
    reader = asyncio.StreamReader()
    reader.feed_data(SIGNATURE + bytes([0x20 | command, family]) + struct.pack("!H", len(block)) + block)
    reader.feed_eof()
    return await get_proxy(reader)


async def main():
    addresses = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.9") + struct.pack("!HH", 1111, 25)
    local = await read(0, 0x11, addresses)
    print(f"LOCAL: valid={local.valid} command={int(local.command)} client={local.src_addr}:{local.src_port}")
    unix = await read(1, 0x31, b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0"))
    print(f"Unix: {len(unix.src_addr)} bytes, {unix.src_addr[:12]!r}...")
    return local.valid and str(local.src_addr) == "192.0.2.1" and len(unix.src_addr) == 108


sys.exit(not asyncio.run(main()))
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
