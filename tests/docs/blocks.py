"""The blocks of code in the documentation: where they stand, and what is in them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests.kit.programs import ROOT

PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_NAME = re.compile(r"# (\w+)\.py\n")


@dataclass(frozen=True)
class Block:
    """One block, between fences.

    Attributes:
        page: the file that shows it, from the project's folder.
        line: where it begins there.
        module: what other blocks import it as: a first line `# name.py` says so.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def module(self) -> str:
        named = _NAME.match(self.text)
        return named[1] if named else re.sub(r"\W", "_", f"{self.page}_{self.line}")

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str) -> list[Block]:
    """All blocks of a language, in the order of pages."""
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of one page."""
    text, name = page.read_text(), str(page.relative_to(ROOT))
    return [
        Block(name, text.count("\n", 0, one.start()) + 1, one[2], textwrap.dedent(one[3]))
        for one in _FENCED.finditer(text)
    ]
