"""The line of the log when a server has closed: one for each, with its numbers as fields."""

from __future__ import annotations

import json
import logging
import re
import signal
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from tests.kit.clients import Client
from tests.kit.handlers import upper
from tests.kit.programs import LOOPS, Program
from tests.kit.sockets import connect

PROGRAM = """
import logging, sys
import asyncserver

handler = logging.StreamHandler()
handler.setFormatter(asyncserver.JSONFormatter())
logging.basicConfig(level=logging.INFO, handlers=[handler])

async def upper(stream):
    async for data in stream:
        await stream.send(data.upper())

asyncserver.run(
    asyncserver.serve(upper, "127.0.0.1", 0), loop=sys.argv[1], workers=int(sys.argv[2]), metrics="127.0.0.1:0"
)
"""


async def test_server_tells_of_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """How the handlers that ran at its close have ended, and what it has counted."""
    server = await asyncserver.serve(upper, "127.0.0.1", 0).start()
    async with Client.connect(server.addresses[0]) as client:
        await client.ask(b"hello")
    async with Client.connect(server.addresses[0]) as client:
        await client.ask(b"hello")
        with caplog.at_level(logging.INFO, "asyncserver"):
            report = await server.close()
    (record,) = caplog.records
    fields: dict[str, Any] = vars(record)
    assert re.fullmatch(
        rf"closed {re.escape(server.label)}: 1 completed, 0 cancelled, 0 aborted in \d+\.\d s", record.getMessage()
    )
    assert fields["server"] == server.label
    assert (fields["completed"], fields["cancelled"], fields["aborted"]) == (report.completed, 0, 0)
    assert fields["duration"] >= 0
    assert fields["total_accepted"] == fields["total_completed"] == 2


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("loop", LOOPS)
def test_program_has_one_line_for_each_server(loop: str, workers: int, tmp_path: Path) -> None:
    """Also with workers, whose numbers are added up; none for the one that serves metrics."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with Program(["-W", "error", "program.py", loop, str(workers)], tmp_path) as program:
        program.wait_for("serving on" if workers == 1 else "workers serve on")
        place = re.findall(r"127\.0\.0\.1(?:', |:)(\d+)", program.errors)[-1]
        with connect(("127.0.0.1", int(place))) as client:
            client.sendall(b"hello")
            assert client.recv(99) == b"HELLO"
            assert program.end(signal.SIGTERM) == 0
        program.wait()
    lines = [json.loads(line) for line in program.errors.splitlines()]
    assert {next(iter(line)) for line in lines} == {"time"}
    (closed,) = [line for line in lines if line["message"].startswith("closed ")]
    assert closed["message"].startswith(f"closed tcp://127.0.0.1:{place}: 1 completed, 0 cancelled, 0 aborted in ")
    assert (closed["level"], closed["completed"], closed["total_accepted"]) == ("INFO", 1, 1)
    assert not any("ServerStats(" in line["message"] for line in lines)
