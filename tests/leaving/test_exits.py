"""SystemExit in a handler: the program drains, then ends with its status."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import pytest

from tests.kit.programs import LOOPS, Program
from tests.kit.waiting import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import asyncio, atexit, logging, sys
import asyncserver

async def stream(stream):
    async for data in stream:
        print("received", data.decode(), flush=True)
        if data == b"exit":
            sys.exit(7)
        if data == b"later":
            await asyncio.sleep(0.001)
            sys.exit(7)
        if data == b"task":
            asyncio.get_running_loop().call_soon(sys.exit, 7)
            continue
        if data == b"slow":
            await stream.closing.wait()
        await stream.send(data.upper())

async def datagram(datagram):
    if datagram.data == b"exit":
        sys.exit(7)
    if datagram.data == b"later":
        await asyncio.sleep(0.001)
        sys.exit(7)

logging.basicConfig(level="INFO")
atexit.register(print, "atexit")
servings = [asyncserver.serve(stream, "127.0.0.1", 0), asyncserver.serve_datagrams(datagram, "127.0.0.1", 0)]
asyncserver.run(*servings, loop=sys.argv[1], workers=int(sys.argv[2]))
"""


def address(program: Program, scheme: str) -> tuple[str, int]:
    program.wait_for("serving on udp:")
    found = re.search(rf"serving on {scheme}://127\.0\.0\.1:(\d+)", program.errors)
    assert found is not None
    return "127.0.0.1", int(found[1])


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("kind", "word"), [("tcp", "exit"), ("tcp", "later"), ("tcp", "task"), ("udp", "exit"), ("udp", "later")]
)
def test_program_drains_and_ends_with_its_status(tmp_path: Path, loop: str, kind: str, word: str) -> None:
    """Who is being served is answered; atexit functions run; there is no traceback."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with Program(["-W", "error", "program.py", loop, "1"], tmp_path) as program:
        tcp, udp = address(program, "tcp"), address(program, "udp")
        with socket.create_connection(tcp, PATIENCE) as slow, socket.create_connection(tcp, PATIENCE) as other:
            slow.sendall(b"slow")
            program.wait_for("received slow")
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                if kind == "tcp":
                    other.sendall(word.encode())
                else:
                    sock.sendto(word.encode(), udp)
                program.wait_for("SystemExit(7): no new work, waiting for what runs")
            assert slow.recv(9) == b"SLOW"
        assert program.wait() == 7
    assert program.output.endswith("atexit\n")
    if word != "exit":  # in a task's first step, started eagerly, asyncio logs the exception too: nobody has the task
        assert "Traceback" not in program.errors


@pytest.mark.parametrize("loop", LOOPS)
def test_worker_drains_and_is_replaced(tmp_path: Path, loop: str) -> None:
    """Its status is told; the others, and its successor, serve on."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with Program(["-W", "error", "program.py", loop, "2"], tmp_path) as program:
        program.wait_for("2 workers serve on")
        found = re.search(r"tcp://127\.0\.0\.1:(\d+)", program.errors)
        assert found is not None
        tcp = ("127.0.0.1", int(found[1]))
        with socket.create_connection(tcp, PATIENCE) as client:
            client.sendall(b"exit")
            program.wait_for("received exit")
            program.wait_for("ended with status 7")
        with socket.create_connection(tcp, PATIENCE) as client:
            client.sendall(b"hello")
            assert client.recv(9) == b"HELLO"
        program.process.terminate()
        assert program.wait() == 0
