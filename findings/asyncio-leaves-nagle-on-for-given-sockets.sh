#!/usr/bin/env bash
# CPython 3.11 to 3.15, asyncio: connections accepted from a listening socket that the program made
# with `socket.create_server()` and gave to `create_server(sock=...)` have Nagle's algorithm on.
#
# Expected: TCP_NODELAY "is now set for all TCP transports by default" (What's New in Python 3.6; the
# page on transports says the same), and `sock=` only says which socket listens; uvloop does so.
# Met: it is set where `proto` of the accepted socket is IPPROTO_TCP, and that is a copy of what the
# listener was made with: 0 from `create_server()` or `fromfd()`. The same listener made anew from its
# number, `socket.socket(fileno=...)`, asks the kernel and gets it. An answer in two writes waits for
# the client's acknowledgement, here some 40 ms.
# Output seen:
#     asyncio, host and port: TCP_NODELAY=1, two writes arrive within 0 ms
#     asyncio, socket.create_server(): TCP_NODELAY=0, two writes arrive within 44 ms
#     asyncio, the same by its number: TCP_NODELAY=1, two writes arrive within 0 ms
#     uvloop, socket.create_server(): TCP_NODELAY=1, two writes arrive within 0 ms
# For us: the option is set on listening sockets, also on those that were given, and Linux hands it
# down to what they accept (listening/binding.py); the benchmarks do so for their contenders, too.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv" || exit 2
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check uvloop==0.23.0 || exit 2
cat > "$folder/try.py" <<'PYTHON'
import asyncio
import socket
import statistics
import sys
import time

import uvloop


async def answer(reader, writer):
    while await reader.readexactly(1):
        writer.write(b"head")
        await asyncio.sleep(0)  # the body is another write
        writer.write(b"body")


def ask(address):
    """How many ms later than the question a whole answer is there, in the middle of 21 rounds."""
    rounds = []
    with socket.create_connection(address) as client:
        for _ in range(21):
            start = time.perf_counter()
            client.sendall(b"?")
            got = 0
            while got < 8:
                got += len(client.recv(8 - got))
            rounds.append(time.perf_counter() - start)
    return statistics.median(rounds) * 1000


async def see(**where):
    options = []

    async def connected(reader, writer):
        sock = writer.get_extra_info("socket")
        options.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        try:
            await answer(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()

    async with await asyncio.start_server(connected, **where) as server:
        waited = await asyncio.to_thread(ask, server.sockets[0].getsockname())
    return options[0], waited


def made():
    return socket.create_server(("127.0.0.1", 0))


def by_number():
    return socket.socket(fileno=made().detach())


seen = []
for name, factory, where in (
    ("asyncio, host and port", asyncio.new_event_loop, lambda: {"host": "127.0.0.1", "port": 0}),
    ("asyncio, socket.create_server()", asyncio.new_event_loop, lambda: {"sock": made()}),
    ("asyncio, the same by its number", asyncio.new_event_loop, lambda: {"sock": by_number()}),
    ("uvloop, socket.create_server()", uvloop.new_event_loop, lambda: {"sock": made()}),
):
    with asyncio.Runner(loop_factory=factory) as runner:
        option, waited = runner.run(see(**where()))
    seen.append(option)
    print(f"{name}: TCP_NODELAY={option}, two writes arrive within {waited:.0f} ms")
sys.exit(seen != [1, 0, 1, 1])
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
