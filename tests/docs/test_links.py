"""Links between pages: they lead to files and headings that are there, and the index to every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES
from tests.kit.programs import ROOT

OTHER_PAGES = [
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "benchmarks/results").rglob("README.md")),
]
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    """What a page links to, without what is on the Internet."""
    return [one for one in _LINK.findall(_FENCED.sub("", page.read_text())) if "://" not in one]


def anchors(page: Path) -> set[str]:
    """Its headings as code hosts and the site name them."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file, and a heading in it."""
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_index_lists_every_page() -> None:
    """All that there is to read can be reached from docs/index.md."""
    listed = {(ROOT / "docs" / link).resolve() for link in links(ROOT / "docs/index.md")}
    assert set(PAGES) - listed - {ROOT / "README.md", ROOT / "docs/index.md"} == set()


def test_a_wrong_link_is_found() -> None:
    """Neither is a heading of that page a word in it, nor what stands in a block."""
    assert "signals" in anchors(ROOT / "docs/running.md")
    assert not {"supervisor", "docspy"} & anchors(ROOT / "docs/running.md")
