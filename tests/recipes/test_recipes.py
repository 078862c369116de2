"""The recipes and their page: each is small, stands alone and is told of, and the page's commands do what it says."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.programs import ROOT, Program
from tests.kit.sockets import free_port
from tests.recipes.conftest import RECIPES, Recipe, Start

NAMES = sorted(path.name for path in RECIPES.glob("*.py"))
PAGE = (ROOT / "docs/recipes.md").read_text()
BLOCKS = dict(re.findall(r"\*\*\[(\w+\.py)\].*?```sh\n(.*?)```", PAGE, re.DOTALL))
NEEDED = {"beside_fastapi.py": ("fastapi", "uvicorn")}
PORTS = ("7000", "7001", "11211", "5300", "5140", "8000", "2121")
# In the place of netcat, where that is not installed: the two ways in which the page calls it.
NETCAT = """\
import socket, sys
*options, place = sys.argv[1:]
if "-U" in options:
    client = socket.socket(socket.AF_UNIX)
    client.connect(place)
else:
    client = socket.create_connection((options[-1], int(place)), timeout=20)
client.sendall(sys.stdin.buffer.read())
client.shutdown(socket.SHUT_WR)
while data := client.recv(65536):
    sys.stdout.buffer.write(data)
"""


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_small_and_told_of(name: str) -> None:
    """Under 60 lines, with a link and commands on the page."""
    text = (RECIPES / name).read_text()
    assert text.count("\n") < 60
    assert ast.get_docstring(ast.parse(text))
    assert f"({RECIPES.name}/{name})" in PAGE
    assert f"python {name}\n" in BLOCKS[name]


def test_page_has_no_other_recipes() -> None:
    """What it links to is there."""
    assert sorted(BLOCKS) == NAMES
    assert len(NAMES) == 9


@pytest.mark.parametrize("name", NAMES)
def test_recipe_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m asyncserver chat:chat` serves its handler, too: importing it starts nothing."""
    for module in NEEDED.get(name, ()):
        pytest.importorskip(module)
    monkeypatch.syspath_prepend(str(RECIPES))
    assert runpy.run_path(str(RECIPES / name))["__name__"] != "__main__"


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_the_page(name: str, start: Start, tmp_path: Path) -> None:
    """Each does what is written behind it."""
    for module in NEEDED.get(name, ()):
        pytest.importorskip(module)
    ports = {port: str(free_port()) for port in PORTS}
    page = Page(name, start, ports, tmp_path)
    with contextlib.ExitStack() as stack:
        for line in BLOCKS[name].splitlines():
            command, _, seen = line.partition("  # ")
            here = re.sub(r"\b\d{4,5}\b", lambda found: ports.get(found[0], found[0]), command.rstrip())
            page.run(here.strip(), seen.strip(), stack)
    if name == "syslog_receiver.py":
        page.recipe.wait_for(" hello\n", 3)


class Page:
    """A reader in a folder, who types the commands for one recipe."""

    recipe: Recipe

    def __init__(self, name: str, start: Start, ports: dict[str, str], folder: Path) -> None:
        self._name, self._start, self._ports, self._folder = name, start, ports, folder
        (folder / "bin").mkdir()
        if shutil.which("nc") is None:
            (folder / "bin/nc").write_text(f"#!{sys.executable}\n{NETCAT}")
            (folder / "bin/nc").chmod(0o755)

    def run(self, command: str, seen: str, stack: contextlib.ExitStack) -> None:
        """Type a command; whatever serves goes on."""
        words = command.split()
        if words[:3] == ["python", "-m", "pip"]:
            return  # it is installed, or the test was skipped
        if words[:3] == ["python", "-m", "asyncserver"]:
            stack.enter_context(Program(words[1:], self._folder)).wait_for("serving on")
        elif words[0] == "python":
            text = (RECIPES / self._name).read_text()
            replaced = {port: self._ports[port] for port in PORTS if port in text}
            self.recipe = self._start(self._name, replaced)
            servers = text.count("asyncserver.serve")
            self.recipe.wait_for(*(("running on", 1) if "uvicorn" in text else ("serving on", servers)))
        else:
            output = self._shell(command)
            if self._name == "ticker.py":
                output, seen = re.sub(r"\d+", "0", output), re.sub(r"\d+", "0", seen)
            assert seen in output

    def _shell(self, command: str) -> str:
        for needed in ("curl", "dig", "logger", "openssl"):
            if needed in command.split() and shutil.which(needed) is None:
                pytest.skip(f"{needed} is not installed")
        path = f"{self._folder}/bin:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"],
            cwd=self._folder,
            env={"PATH": path, "HOME": str(self._folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
