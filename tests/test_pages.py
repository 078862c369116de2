"""Pages for newcomers: the programs in docs/faq.md, each started; the pictures and paths in docs/how-it-works.md."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import asyncserver
from tests.kit.programs import ROOT, wait_until_asleep
from tests.kit.sockets import free_port
from tests.kit.waiting import wait_until

PAGE = (ROOT / "docs" / "faq.md").read_text()
EXPLANATIONS = (ROOT / "docs" / "how-it-works.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def is_served(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda text: re.findall(r"async def (\w+)", text)[0])
def test_program_answers_and_ends_politely(program: str, tmp_path: Path) -> None:
    """Each gives back what it gets in upper case, and Ctrl-C ends it with status 0, without a warning."""
    port = free_port()
    (tmp_path / "program.py").write_text(program.replace("8080", str(port)))
    environment = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    process = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, env=environment)
    try:
        wait_until(lambda: process.poll() is not None or is_served(port))
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"hello\n")
            assert client.recv(99) == b"HELLO\n"
        if "asyncserver.run" not in program:  # whose loop wakes up
            wait_until_asleep(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_list_of_questions_names_each_of_them() -> None:
    """By the anchors that a code host and Sphinx make of headings."""
    questions = re.findall(r"^### (.*)$", PAGE, re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", question.lower()).replace(" ", "-") for question in questions]
    assert re.findall(r"\]\(#(.*?)\)", PAGE.partition("## Start and end")[0]) == anchors
    assert len(anchors) >= 20


def test_pictures_are_shown_and_well_formed() -> None:
    """Each has a text for those who do not see it, and colours for dark pages too."""
    shown = dict(re.findall(r"!\[(.*?)\]\((.*?)\)", EXPLANATIONS))
    folder = ROOT / "docs" / "pictures"
    assert {folder.parent / path for path in shown.values()} >= set(folder.glob("*.svg")) != set()
    for text, path in shown.items():
        drawing = (folder.parent / path).read_text()
        assert ET.fromstring(drawing).get("aria-label") == text
        assert "prefers-color-scheme: dark" in drawing


def test_explanations_name_modules_and_counters_that_exist() -> None:
    """A module that moves, or a counter of another name, is found here."""
    paths = re.findall(r"`((?:asyncserver|compat)/[\w/]+\.py)`", EXPLANATIONS)
    assert len(paths) >= 7
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    for counter in re.findall(r"`(datagrams_\w+|active|completed|failed|cancelled|refused)`", EXPLANATIONS + PAGE):
        assert counter in asyncserver.ServerStats.__slots__
