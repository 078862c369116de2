"""Happenings: what can happen to a server, each with the promise that it tests, in the words of the documentation."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import asyncserver
import compat
from tests.crossings.ways import STYLES, WIRES, Way, ways

Cell: TypeAlias = "Callable[[Any], Awaitable[None]]"

_ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Happening:
    """One column of the table: its cells are the ways for which the promise is given."""

    name: str
    source: str
    promise: str
    run: Cell
    on: tuple[Any, ...]


HAPPENINGS: list[Happening] = []


def happening(
    source: str,
    promise: str,
    *,
    styles: tuple[str, ...] = STYLES,
    wires: tuple[str, ...] = WIRES,
    only: Callable[[Way], bool] = lambda way: True,
) -> Callable[[Cell], Cell]:
    """Put a function into the table.

    Args:
        source: where the promise is given, see `text_of`.
        promise: its words there.
        styles, wires, only: the ways that it speaks of.
    """

    def register(run: Cell) -> Cell:
        on = [way for way in ways(len(HAPPENINGS)) if way.style in styles and way.wire in wires and only(way)]
        HAPPENINGS.append(Happening(run.__name__, source, promise, run, tuple(on)))
        return run

    return register


def text_of(source: str) -> str:
    """The text of a file, or the docstring of something public, its white space made even."""
    objects = {
        "serve": asyncserver.serve,
        "serve_datagrams": asyncserver.serve_datagrams,
        "from_protocol": asyncserver.from_protocol,
        "hosted": compat.hosted,
        "Server.close": asyncserver.Server.close,
        "Server.pause": asyncserver.Server.pause,
        "DrainReport": asyncserver.DrainReport,
        "ServerStats": asyncserver.ServerStats,
    }
    text = inspect.getdoc(objects[source]) if source in objects else (_ROOT / source).read_text()
    return " ".join((text or "").split())
