"""A handler that ignores its cancellation does not keep a program from ending."""

from __future__ import annotations

import re
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.kit.programs import LOOPS, Program
from tests.kit.waiting import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import asyncio, importlib, logging, signal, sys
import asyncserver

async def ignore(source):
    if isinstance(source, asyncserver.Stream):
        await source.receive()
    print("begun", flush=True)
    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass

logging.basicConfig(level="INFO")
asyncserver.Server._cancel_grace = 0.1  # the handler ignores the end of it, too
serve = asyncserver.serve if sys.argv[3] == "stream" else asyncserver.serve_datagrams
serving = serve(ignore, "127.0.0.1", 0, drain_timeout=0.1)

async def main():
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    async with serving as server:
        logging.info("serving on %s", server.label)
        await asked.wait()

if sys.argv[2] == "run":
    asyncserver.run(serving, loop=sys.argv[1])
else:
    with asyncio.Runner(loop_factory=importlib.import_module(sys.argv[1]).new_event_loop) as runner:
        runner.run(main())
print("returned", flush=True)
"""


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("way", ["run", "runner"])
@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_program_ends(tmp_path: Path, loop: str, way: str, kind: str) -> None:
    """The log says which handler it was, once."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with Program(["-W", "error", "program.py", loop, way, kind], tmp_path) as program:
        program.wait_for("serving on")
        found = re.search(r"serving on \w+://127\.0\.0\.1:(\d+)", program.errors)
        assert found is not None
        kinds = socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kinds) as client:
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", int(found[1])))
            client.send(b"question")
            program.wait_for("begun")
            program.tell(signal.SIGTERM)
            assert program.wait() == 0
    assert program.output.endswith("returned\n")
    assert program.errors.count("ignored its cancellation") == 1
    assert "Task was destroyed" not in program.errors
