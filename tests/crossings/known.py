"""Known: the cells in which a promise does not hold yet. Each has to fail; one that begins to hold tells so."""

from __future__ import annotations

from dataclasses import dataclass

from tests.crossings.datagrams import DatagramWay
from tests.crossings.ways import STYLES, WIRES, Way
from tests.kit.datagrams import FAMILIES


@dataclass(frozen=True)
class Known:
    """Cells of one happening that fail for one reason."""

    happening: str
    reason: str
    styles: tuple[str, ...] = STYLES
    wires: tuple[str, ...] = (*WIRES, *FAMILIES)
    loops: tuple[str, ...] = ("asyncio", "uvloop")


KNOWN: tuple[Known, ...] = ()


def reason_of(happening: str, way: Way | DatagramWay, loop: str) -> str | None:
    """Why a cell is known to fail, or None."""
    for one in KNOWN:
        if one.happening == happening and way.style in one.styles and way.wire in one.wires and loop in one.loops:
            return one.reason
    return None
