"""What asyncserver and compat promise themselves, as ratios within one run, and whether a run kept it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.peers import PEERS

if TYPE_CHECKING:
    from benchmarks.results import Run


def title_of(name: str) -> str:
    """The title of a peer, whether or not it took part; imports are their own titles."""
    return next((peer.title for peer in PEERS if peer.name == name), name)


@dataclass(frozen=True)
class Target:
    """One promise: a figure of `peer` in `workload`, compared, is at most `bound`.

    Attributes:
        workload, peer: Whose figure.
        bound: What the comparison may give at most.
        against: Another peer, by whose figure it is divided; `cold` for the peer's own warm figure, which divides
            its cold one; empty for the bare figure.
        minus: The figure of `against` is taken off instead.
    """

    workload: str
    peer: str
    bound: float
    against: str = ""
    minus: bool = False

    def value(self, run: Run) -> float:
        """What the run gives, NaN where something was not measured."""
        figure = run.figure(self.workload, self.peer)
        if not self.against:
            return figure
        if self.against == "cold":
            return run.figure(self.workload, self.peer, cold=True) / figure
        other = run.figure(self.workload, self.against)
        return figure - other if self.minus else figure / other

    def verdict(self, run: Run) -> str:
        """`met`, `missed` or `not measured`."""
        value = self.value(run)
        if math.isnan(value):
            return "not measured"
        return "met" if value <= self.bound else "missed"

    def wording(self, run: Run) -> str:
        """The promise in words."""
        title = title_of(self.against)
        if not self.against:
            return f"at most {self.bound:,g} {run.workloads[self.workload]['unit'].split(',')[0]}"
        if self.against == "cold":
            return f"cold at most {self.bound:g} x warm"
        if self.minus:
            return f"at most {self.bound:g} ms over {title}"
        if self.bound < 1:
            return f"at least {1 / self.bound:.3g} x faster than {title}"
        return f"at most {self.bound:g} x {title}"


# `asyncserver` is compiled where the extension is built; `pure` is what runs without it.
TARGETS: tuple[Target, ...] = (
    Target("tcp-64", "asyncserver-uvloop", 1.08, "protocol-uvloop"),
    Target("tcp-64", "pure-uvloop", 1.3, "protocol-uvloop"),
    Target("tcp-64", "asyncserver-uvloop", 1 / 1.2, "streams-uvloop"),
    Target("tcp-64", "asyncserver-asyncio", 0.75, "protocol-asyncio"),
    Target("tcp-64", "asyncserver-asyncio", 1 / 1.3, "streams-asyncio"),
    Target("tcp-64", "asyncserver-asyncio", 1.1, "cold"),
    Target("tcp-256k", "asyncserver-uvloop", 1.2, "protocol-uvloop"),
    Target("tcp-256k", "asyncserver-uvloop", 0.4, "streams-uvloop"),
    Target("tcp-256k", "asyncserver-asyncio", 1 / 1.7, "streams-asyncio"),
    Target("pipelined", "asyncserver-uvloop", 1.08, "protocol-uvloop"),
    Target("pipelined", "pure-uvloop", 1.25, "protocol-uvloop"),
    Target("tls-1k", "asyncserver-uvloop", 1.0, "protocol-uvloop"),
    Target("lines", "asyncserver-uvloop", 0.65, "streams-uvloop"),
    Target("lines", "pure-uvloop", 0.85, "streams-uvloop"),
    Target("lines", "pure-asyncio", 1.0, "streams-asyncio"),
    Target("broadcast", "asyncserver-uvloop", 0.7, "streams-uvloop"),
    Target("broadcast", "pure-uvloop", 1.0, "streams-uvloop"),
    Target("connect", "asyncserver-uvloop", 1.05, "protocol-uvloop"),
    Target("connect", "pure-uvloop", 1.25, "protocol-uvloop"),
    Target("connect", "pure-uvloop", 1.0, "streams-uvloop"),
    Target("udp-64", "asyncserver-uvloop", 1.15, "epoll"),
    Target("udp-64", "asyncserver-asyncio", 1.15, "epoll"),
    Target("udp-64", "asyncserver-uvloop", 0.8, "protocol-uvloop"),
    Target("udp-64", "asyncserver-asyncio", 0.8, "protocol-uvloop"),
    Target("memory", "asyncserver-uvloop", 1.1, "protocol-uvloop"),
    Target("memory", "pure-uvloop", 2500),
    # With the plainest handler, where the server's own cost shows, and with one that opens files on its socket.
    Target("connect", "compat", 1 / 4, "socketserver"),
    Target("legacy-connect", "compat", 1 / 3, "socketserver"),
    Target("udp-64", "compat", 1 / 8, "socketserver"),
    Target("legacy-udp", "compat", 1 / 8, "socketserver"),
    Target("legacy-messages", "compat", 1.0, "socketserver"),
    Target("legacy-idle", "compat", 1.0, "socketserver"),
    Target("shutdown", "compat", 10),
    Target("import", "import asyncserver", 20, "import asyncio", minus=True),
    Target(
        "import",
        "import asyncserver.listening.binding, asyncserver.servers.stream_server",
        20,
        "import asyncio",
        minus=True,
    ),
    Target("import", "import compat", 20, "import socketserver, asyncio", minus=True),
)


def table(run: Run) -> list[list[str]]:
    """Headings, and a row for each target whose workload was in the run."""
    rows = [["work", "who", "target", "measured", ""]]
    for target in TARGETS:
        if target.workload not in run.workloads:
            continue
        value = target.value(run)
        shown = "-" if math.isnan(value) else f"{value:,.4g}" if not target.against else f"{value:.2f}"
        who = title_of(target.peer)
        verdict = {"met": "met", "missed": "MISSED"}.get(target.verdict(run), "not measured")
        rows.append([run.workloads[target.workload]["title"], who, target.wording(run), shown, verdict])
    return rows
