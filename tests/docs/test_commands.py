"""The commands that README and guides show: their options exist, their targets stand in the Makefile."""

from __future__ import annotations

import ast
import re
import shlex

import pytest

from asyncserver.cli.options import make_parser, read
from tests.docs.blocks import Block, blocks
from tests.kit.programs import ROOT

SHELL = blocks("sh")


def commands(block: Block) -> list[list[str]]:
    """Return the words of each command, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [
        part.split("\0") for line in words if line for part in re.split(r"\0?(?:&&|\|)\0?", "\0".join(line)) if part
    ]


def check(command: list[str]) -> None:
    """Fail if a command of ours could not be given."""
    program, *arguments = command
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in arguments if "=" not in target)
    elif "python" in program:
        check_python(arguments)


def check_python(arguments: list[str]) -> None:
    if arguments[0] == "-c":
        ast.parse(arguments[1])
    elif arguments[:2] == ["-m", "asyncserver"]:
        read(make_parser("any"), arguments[2:])
    elif arguments[0] == "-m":
        assert arguments[1] in {"venv", "pip", "compat", "unittest", "pytest", "asyncio", "benchmarks", "build"} | {
            "asyncserver.live"
        }
    else:
        assert arguments[0].endswith(".py")


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_command_can_be_given(block: Block) -> None:
    """Each option is one of the command line, each target one of the Makefile."""
    for command in commands(block):
        check(command)


def test_a_wrong_command_is_found() -> None:
    """Commands of options, targets and modules that there are not."""
    for command in (["make", "nothing"], ["python", "-m", "asyncserver", "--nothing"], ["python", "-m", "nothing"]):
        with pytest.raises((AssertionError, SystemExit)):
            check(command)


def test_block_says_what_it_is() -> None:
    """A block has a language that tests look at, or is no code: what a program prints, another's configuration."""
    for language in ("bash", "shell", "console", "py", "pycon"):
        assert blocks(language) == [], "write python or sh"
