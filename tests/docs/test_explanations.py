"""Answers and explanations: docs/faq.md lists its questions; what docs/how-it-works.md names and shows is there."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import asyncserver
from tests.kit.programs import ROOT

QUESTIONS = (ROOT / "docs" / "faq.md").read_text()
EXPLANATIONS = (ROOT / "docs" / "how-it-works.md").read_text()


def test_list_of_questions_names_each_of_them() -> None:
    """In their order, by the anchors that code hosts and the site make of headings."""
    questions = re.findall(r"^### (.*)$", QUESTIONS, re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", question.lower()).replace(" ", "-") for question in questions]
    assert re.findall(r"\]\(#(.*?)\)", QUESTIONS.partition("\n## ")[0]) == anchors
    assert len(anchors) >= 20


def test_pictures_are_shown_and_well_formed() -> None:
    """Each has a text for those who do not see it, and colours for dark pages too."""
    shown = dict(re.findall(r"!\[(.*?)\]\(pictures/(.*?)\)", EXPLANATIONS))
    assert set(shown.values()) == {path.name for path in (ROOT / "docs" / "pictures").iterdir()}
    for text, name in shown.items():
        drawing = (ROOT / "docs" / "pictures" / name).read_text()
        assert ET.fromstring(drawing).get("aria-label") == text
        assert "prefers-color-scheme: dark" in drawing


def test_modules_and_counters_that_are_named_exist() -> None:
    """A module that has moved, or a counter of another name, is found."""
    paths = re.findall(r"`((?:asyncserver|compat)/[\w/]+\.py)`", EXPLANATIONS)
    assert len(paths) >= 7
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    counters = set(re.findall(r"`(datagrams_\w+|active|completed|failed|cancelled|refused)`", EXPLANATIONS + QUESTIONS))
    assert {"datagrams_dropped", "refused"} <= counters <= set(asyncserver.ServerStats.__slots__)
