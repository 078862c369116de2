"""pytest's plugin: its fixture `serving`, and that nobody notices it who does not ask for that."""

from __future__ import annotations

import re
from pathlib import Path

import asyncserver
from pytest_asyncserver import StartServing
from pytest_asyncserver import serving as serving
from tests.kit.handlers import upper
from tests.kit.pytest_runs import run_pytest
from tests.kit.sockets import ask_once

HEAD = """
import asyncio, socket
import pytest
import asyncserver

async def upper(stream):
    async for data in stream:
        if data == b"raise":
            raise ValueError("the handler's own mistake")
        await stream.send(data.upper())

def ask(server, question=b"hello"):
    with socket.create_connection(server.addresses[0], timeout=20) as client:
        client.sendall(question)
        return client.recv(99)
"""


def run_source(folder: Path, source: str, *options: str) -> str:
    (folder / "test_it.py").write_text(source)
    return run_pytest(folder, *options)


def test_serving_starts_a_server(serving: StartServing) -> None:
    """It is what the entry point of this project's own metadata gives, too."""
    server = serving(asyncserver.serve(upper, "127.0.0.1", 0))
    assert ask_once(server.addresses[0]) == b"HELLO"
    first, second = serving(asyncserver.serve(upper, "127.0.0.1", 0), asyncserver.serve(upper, "127.0.0.1", 0))
    assert first.addresses != second.addresses


def test_tests_of_every_kind_use_it(tmp_path: Path) -> None:
    """Those of pytest-asyncio and of anyio's plugin, too. A handler's error fails a test that does not expect it."""
    source = (
        HEAD
        + """
def test_fails(serving):
    assert ask(serving(asyncserver.serve(upper, "127.0.0.1", 0)), b"raise") == b""

def test_expects_it(serving):
    assert ask(serving(asyncserver.serve(upper, "127.0.0.1", 0), raise_errors=False), b"raise") == b""

async def talk(server):
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    writer.write(b"hello")
    assert await reader.read(99) == b"HELLO"
    writer.close()
    await writer.wait_closed()

@pytest.mark.asyncio
async def test_pytest_asyncio(serving):
    await talk(serving(asyncserver.serve(upper, "127.0.0.1", 0)))

@pytest.mark.anyio
async def test_anyio(serving, anyio_backend_name):
    await talk(serving(asyncserver.serve(upper, "127.0.0.1", 0)))

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
    )
    printed = run_source(tmp_path, source)
    assert "4 passed, 1 error" in printed
    assert "ERROR at teardown of test_fails" in printed
    assert re.search(r"ValueError: the handler's own mistake\n.*in the handler of 127\.0\.0\.1:\d+ on tcp://", printed)


def test_who_does_not_use_it_does_not_notice_it(tmp_path: Path) -> None:
    """Nothing of asyncserver is imported, and nothing warns."""
    source = """
import sys
def test_not_imported():
    assert "pytest_asyncserver" in sys.modules
    assert not {"asyncserver", "compat"} & sys.modules.keys()
"""
    assert "1 passed in" in run_source(tmp_path, source)


def test_plugin_can_be_left_out(tmp_path: Path) -> None:
    """By the name of its entry point."""
    source = "def test_it(serving): pass"
    assert "fixture 'serving' not found" in run_source(tmp_path, source, "-p", "no:asyncserver")
