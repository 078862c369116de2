"""The examples in docstrings: blocks behind `Example::`, or behind another line that ends so."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import asyncserver
import compat

_EXAMPLE = re.compile(r"^( *)\S.*::\n\n((?:\1    .*\n|\n)+)", re.MULTILINE)


def public_names() -> list[tuple[str, Any]]:
    """What is public: as it is written, and the thing."""
    packages = [("asyncserver", asyncserver.__all__), ("compat", [*compat.__all__, "ThreadPool", "hosted", "install"])]
    modules = {"asyncserver": asyncserver, "compat": compat}
    return [(f"{package}.{name}", getattr(modules[package], name)) for package, names in packages for name in names]


def docstrings() -> Iterator[tuple[str, str]]:
    """The packages' docstrings, those of public names, and of their public members."""
    for module in (asyncserver, compat):
        yield module.__name__, inspect.getdoc(module) or ""
    for name, thing in public_names():
        yield name, inspect.getdoc(thing) or ""
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if not member.startswith("_"):
                yield f"{name}.{member}", inspect.getdoc(value) or ""


def examples() -> dict[str, str]:
    """Every example, by a name for it as a module."""
    found = {}
    for name, text in docstrings():
        for number, one in enumerate(_EXAMPLE.finditer(text + "\n")):
            found[re.sub(r"\W", "_", f"{name}_{number}")] = textwrap.dedent(one[2])
    return found
