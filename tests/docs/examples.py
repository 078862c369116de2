"""The examples in docstrings and in the reference, and what is public."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import asyncserver
import compat
from tests.kit.programs import ROOT

# Of compat, names that `from compat import *` leaves alone, as they are not socketserver's, are public too.
_BESIDE = ["CloseReport", "ThreadPool", "hosted", "install"]
PUBLIC = {"asyncserver": asyncserver.__all__, "compat": [*compat.__all__, *_BESIDE]}
REFERENCE = {package: (ROOT / f"docs/reference/{package}.rst").read_text() for package in PUBLIC}

# A block of code stands behind `::`, or behind reST's directive.
_IN_DOCSTRING = re.compile(r"^( *)\S.*::\n\n((?:\1    .*\n|\n)+)", re.MULTILINE)
_IN_PAGE = re.compile(r"^( *)\.\. code-block:: python\n\n((?:\1   .*\n|\n)+)", re.MULTILINE)

# What an example need not say.
PRELUDE = """
import asyncio, logging, socket, socketserver, threading
import anyio, prometheus_client
import asyncserver, compat
from asyncserver import *
stream: asyncserver.Stream
server: asyncserver.Server
datagram: asyncserver.Datagram
async def handler(stream: asyncserver.Stream) -> None: ...
async def push_news(stream: asyncserver.Stream) -> None: ...
class Handler(socketserver.StreamRequestHandler): ...
async def example() -> None:
"""


def public_names() -> list[tuple[str, Any]]:
    """What is public: as it is written, and the thing."""
    modules = {"asyncserver": asyncserver, "compat": compat}
    return [
        (f"{package}.{name}", getattr(modules[package], name)) for package, names in PUBLIC.items() for name in names
    ]


def docstrings() -> Iterator[tuple[str, str]]:
    """The packages' docstrings, those of public names, and of their public members."""
    for module in (asyncserver, compat):
        yield module.__name__, inspect.getdoc(module) or ""
    for name, thing in public_names():
        yield name, inspect.getdoc(thing) or ""
        for member, value in inspect.getmembers_static(thing) if inspect.isclass(thing) else ():
            if not member.startswith("_"):
                yield f"{name}.{member}", inspect.getdoc(value) or ""


def examples_in(text: str) -> list[str]:
    """The examples in a docstring."""
    return [textwrap.dedent(one[2]).strip() for one in _IN_DOCSTRING.finditer(text + "\n")]


def examples_on(page: str) -> list[str]:
    """The examples on a page of the reference."""
    return [textwrap.dedent(one[2]).strip() for one in _IN_PAGE.finditer(page + "\n")]


def examples() -> dict[str, str]:
    """Every example as a module that can be checked, by a name for it."""
    found = [(name, examples_in(text)) for name, text in docstrings()]
    found += [(f"reference of {package}", examples_on(page)) for package, page in REFERENCE.items()]
    return {
        re.sub(r"\W", "_", f"{name}_{number}"): PRELUDE + textwrap.indent(one, "    ") + "\n"
        for name, texts in found
        for number, one in enumerate(texts)
    }
