#!/usr/bin/env bash
# uvloop 0.23.0: by default a transport lets its protocol write again when 16 bytes are left, not 16 KiB.
#
# Expected: asyncio's default limits are 64 KiB and a quarter of it (`set_write_buffer_limits()` in
# CPython's documentation: low "defaults to an implementation-specific value less than or equal to
# high"; asyncio/transports.py: high // 4); uvloop documents no other.
# Met: `get_write_buffer_limits()` of a new transport is (16, 65536). So after `pause_writing()`
# nearly all has to leave before `resume_writing()`. With `set_write_buffer_limits(high=65536)`, its
# own default, the lower limit becomes 16 KiB.
# Output seen:
#     asyncio (16384, 65536)
#     uvloop (16, 65536) by default, (16384, 65536) with high=65536
# For us: transports under from_protocol() are ours and have asyncio's limits on both loops.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv" || exit 2
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check uvloop==0.23.0 || exit 2
cat > "$folder/try.py" <<'PYTHON'
import asyncio
import sys

import uvloop


async def limits():
    loop = asyncio.get_running_loop()
    accepted = loop.create_future()

    class Server(asyncio.Protocol):
        def connection_made(self, transport):
            accepted.set_result(transport)

    server = await loop.create_server(Server, "127.0.0.1", 0)
    client, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
    transport = await accepted
    default = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(high=65536)
    asked = transport.get_write_buffer_limits()
    client.close()
    transport.close()
    server.close()
    await server.wait_closed()
    return default, asked


seen = {}
for name, factory in ("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop):
    with asyncio.Runner(loop_factory=factory) as runner:
        seen[name] = runner.run(limits())
print("asyncio", seen["asyncio"][0])
print("uvloop", seen["uvloop"][0], "by default,", seen["uvloop"][1], "with high=65536")
sys.exit(seen != {"asyncio": ((16384, 65536),) * 2, "uvloop": ((16, 65536), (16384, 65536))})
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
