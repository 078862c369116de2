"""The reference on the site: what is public and nothing else, in the words of the docstrings, each with an example."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.examples import PUBLIC, REFERENCE, docstrings, examples_in, examples_on, public_names
from tests.kit.programs import ROOT
from tests.kit.waiting import PATIENCE

# What other folders use of a public class, and the base classes of another package ask for.
INNER = {
    "Datagram": {"abort", "answer", "control", "endpoint", "packed", "replied", "unsent"},
    "Durations": {"observe"},
    "JSONFormatter": {"format"},
    "ProtocolHandler": {"make", "serve"},
    "Server": {"add_close_callback", "can_reload_tls", "measure_durations", "reading", "taking"},
    "ServerCollector": {"collect", "describe"},
    "Serving": {"hold", "open_slots", "send", "take", "throw"},
    "Stream": {
        "answer", "begin_drain", "begin_message", "bytes_moved", "draining", "has_what_it_owes", "may_end",
        "owe_at_most", "owe_more", "settle",
    },
    "TLSContext": {"sslobject_class", "sslsocket_class"},
}  # fmt: skip

_ENTRY = re.compile(r"^\.\. (auto\w+|py:\w+):: (\w+).*\n((?:   .*\n|\n)*)", re.MULTILINE)
_NESTED = re.compile(r"^   \.\. (?:auto|py:)\w+:: (\w+)", re.MULTILINE)


def entries(package: str) -> dict[str, tuple[str, str]]:
    """The names that the reference of a package documents: by which directive, and its options."""
    return {name: (how, options) for how, name, options in _ENTRY.findall(REFERENCE[package]) if how != "py:module"}


def members(options: str) -> set[str]:
    """The members that an entry lists."""
    listed = re.search(r"^   :members: ((?:.*\n)(?:    +.*\n)*)", options, re.MULTILINE)
    return set(re.findall(r"\w+", listed[1]) if listed else ()) | set(_NESTED.findall(options))


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_is_documented_and_no_other(package: str) -> None:
    """Neither does a name lack documentation, nor has one two places, nor is told of what does not exist."""
    names = [name for how, name, _ in _ENTRY.findall(REFERENCE[package]) if how != "py:module"]
    assert sorted(names) == sorted(PUBLIC[package])


@pytest.mark.parametrize("package", PUBLIC)
def test_help_says_the_same(package: str) -> None:
    """The text is the docstring's; type aliases, and the standard library's classes, have none of ours."""
    written = {name for name, (how, _) in entries(package).items() if how.startswith("py:")}
    for name in written:
        assert not getattr(getattr(importlib.import_module(package), name), "__module__", "").startswith(package)


def public_classes() -> list[tuple[str, type[Any]]]:
    """The classes that are ours."""
    return [
        (name, thing)
        for name, thing in public_names()
        if inspect.isclass(thing) and thing.__module__.startswith(("asyncserver", "compat"))
    ]


@pytest.mark.parametrize(("name", "thing"), public_classes(), ids=lambda one: one if isinstance(one, str) else "")
def test_members_are_documented(name: str, thing: type[Any]) -> None:
    """Each public member has its place: on the page, among the attributes in the docstring, or is not for users."""
    package, _, short = name.partition(".")
    listed = members(entries(package)[short][1])
    assert {one for one in listed if not hasattr(thing, one)} == set()
    if package == "compat":  # whose members are those of its namesake
        return
    text = inspect.getdoc(thing) or ""
    own = {one for base in thing.__mro__ if base.__module__.startswith(package) for one in vars(base)}
    own = {one for one in own if not one.startswith("_")}
    told = {one for one in own if re.search(rf"^    {one}: ", text, re.MULTILINE)}
    assert own - listed - told - INNER.get(short, set()) == set()
    assert INNER.get(short, set()) & listed == set()


@pytest.mark.parametrize(("name", "thing"), public_names(), ids=lambda one: one if isinstance(one, str) else "")
def test_has_an_example(name: str, thing: object) -> None:
    """In its docstring, or on its page, where the name is used."""
    package, _, short = name.partition(".")
    shown = examples_in(inspect.getdoc(thing) or "") + [
        one for one in examples_on(REFERENCE[package]) if re.search(rf"\b{short}\b", one)
    ]
    assert shown, f"{name} has no example"


def test_docstrings_mark_their_code() -> None:
    """What is indented behind a colon is code only if the colon is doubled: else the site takes it for a quotation."""
    for name, text in docstrings():
        if name.startswith(("compat", "asyncserver.Stream.extra")) or not text:
            continue
        assert not re.search(r"[^:]:\n\n +\w", text), name


def test_no_property_begins_with_a_colon() -> None:
    """The site takes what stands before a colon in the first line for the property's type."""
    for name, thing in public_classes():
        for member, value in inspect.getmembers_static(thing, lambda one: isinstance(one, property)):
            first = (inspect.getdoc(value) or "").partition("\n")[0]
            inner = member.startswith("_") or member in INNER.get(thing.__name__, ())
            assert inner or ": " not in first, f"{name}.{member}: {first}"


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="sphinx is not installed: make docs")
def test_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """What `make docs` does; no page shows where in the packages a public name lives."""
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-c", "docs", ".", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=10 * PATIENCE)
    assert done.returncode == 0, done.stderr
    for package in PUBLIC:
        shown = re.sub(r"<[^>]+>", "", (tmp_path / f"docs/reference/{package}.html").read_text())
        assert re.findall(rf"\b{package}\.[a-z_]+\.\w+", shown) == []
