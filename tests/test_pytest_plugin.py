"""pytest's plugin: its fixture `serving`, and that nobody notices it who does not ask for that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import asyncserver
from pytest_asyncserver import StartServing
from pytest_asyncserver import serving as serving
from tests.kit.handlers import upper
from tests.kit.programs import ROOT
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


def install(folder: Path) -> None:
    """Let Python find what a wheel of this project says of itself; the environment's own may be older."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [line for group, points in groups.items() for line in (f"[{group}]", *map(" = ".join, points.items()))]
    about = folder / "asyncserver-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: asyncserver\nVersion: 0\n")
    (about / "RECORD").write_text("asyncserver/__init__.py,,\ncompat/__init__.py,,\npytest_asyncserver.py,,\n")
    (about / "entry_points.txt").write_text("\n".join(lines))


def run(folder: Path, source: str, *options: str) -> str:
    """Run somebody's tests where this project is installed; returns what pytest says."""
    install(folder)
    (folder / "test_it.py").write_text(source)
    (folder / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


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
    printed = run(tmp_path, source)
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
    assert "1 passed in" in run(tmp_path, source)


def test_plugin_can_be_left_out(tmp_path: Path) -> None:
    """By the name of its entry point."""
    source = "def test_it(serving): pass"
    assert "fixture 'serving' not found" in run(tmp_path, source, "-p", "no:asyncserver")
