"""Who takes part: one row per contender."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import metadata

STREAMS = frozenset({"tcp", "unix", "tls"})
PROTOCOLS = STREAMS | {"udp"}
BROADCAST = frozenset({"broadcast"})
LINES = BROADCAST | {"lines"}
LEGACY = PROTOCOLS | {"legacy-tcp", "legacy-udp"}


@dataclass(frozen=True)
class Peer:
    """A contender.

    Attributes:
        name: What `--peer` takes.
        title: What tables and charts show.
        server: The module in `servers`, or a C file there.
        kinds: The kinds of server it can be (see servers/contract.py).
        requires: Distributions whose versions are recorded, and without which it is reported as missing.
        arguments: More words for its command line.
        environment: More variables for it.
        ours: Whether charts mark it.
        quick: Whether quick mode has it, unless others are named.
    """

    name: str
    title: str
    server: str
    kinds: frozenset[str]
    requires: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    ours: bool = False
    quick: bool = True
    environment: tuple[tuple[str, str], ...] = ()

    def versions(self) -> dict[str, str]:
        """The version of each required distribution that is installed."""
        return {name: found for name in self.requires if (found := _version(name)) is not None}

    def describe(self) -> dict[str, object]:
        """What a run records of it."""
        return {"title": self.title, "ours": self.ours, "versions": self.versions(), "missing": self.missing()}

    def missing(self) -> str | None:
        """Why it cannot take part, or None."""
        absent = [name for name in self.requires if _version(name) is None]
        return f"{', '.join(absent)} not installed (make bench)" if absent else None


def _version(distribution: str) -> str | None:
    if distribution in {"asyncserver", "compat"}:  # ours, perhaps run from a clone without being installed
        if importlib.util.find_spec(distribution) is None:
            return None
        distribution = "asyncserver"
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "from this clone" if distribution == "asyncserver" else None


def _loops(name: str, title: str, server: str, kinds: frozenset[str], *requires: str, **more: object) -> list[Peer]:
    """The same server on both loops, in quick mode perhaps only on one."""
    arguments: tuple[str, ...] = more.pop("arguments", ())  # type: ignore[assignment]
    environment: tuple[tuple[str, str], ...] = more.pop("environment", ())  # type: ignore[assignment]
    ours, quick = bool(more.pop("ours", False)), more.pop("quick", ("uvloop", "asyncio"))
    return [
        Peer(
            f"{name}-{loop}",
            f"{title}, {loop}",
            server,
            kinds,
            (*requires, "uvloop") if loop == "uvloop" else requires,
            ("--loop", loop, *arguments),
            ours,
            loop in quick,  # type: ignore[operator]
            environment,
        )
        for loop in ("uvloop", "asyncio")
    ]


PEERS: tuple[Peer, ...] = (
    Peer("epoll", "C, plain epoll (the limit)", "epoll.c", BROADCAST | {"tcp", "udp", "unix"}),
    *_loops("asyncserver", "asyncserver", "asyncserver_handlers", PROTOCOLS | LINES, "asyncserver", ours=True),
    *_loops(
        "pure",
        "asyncserver without C",
        "asyncserver_handlers",
        PROTOCOLS | LINES,
        "asyncserver",
        environment=(("ASYNCSERVER_PURE", "1"),),
        ours=True,
    ),
    *_loops(
        "from-protocol",
        "asyncserver.from_protocol",
        "asyncserver_handlers",
        PROTOCOLS,
        "asyncserver",
        arguments=("--variant", "protocol"),
        ours=True,
        quick=("uvloop",),
    ),
    *_loops("protocol", "asyncio.Protocol", "asyncio_protocol", PROTOCOLS),
    Peer(
        "buffered-protocol-asyncio",
        "asyncio.BufferedProtocol, asyncio",
        "asyncio_protocol",
        STREAMS,
        (),
        ("--variant", "buffered"),
        quick=False,
    ),
    *_loops("streams", "asyncio.start_server", "asyncio_streams", STREAMS | LINES),
    *_loops(
        "aiofastnet",
        "aiofastnet Protocol",
        "asyncio_protocol",
        frozenset({"tcp", "tls"}),
        "aiofastnet",
        arguments=("--variant", "aiofastnet"),
        quick=("uvloop",),
    ),
    *_loops("anyio", "anyio", "anyio_streams", PROTOCOLS, "anyio", quick=("uvloop",)),
    Peer("trio", "trio", "trio_streams", PROTOCOLS, ("trio",)),
    Peer("gevent", "gevent", "gevent_sockets", PROTOCOLS, ("gevent",)),
    Peer("twisted", "Twisted", "twisted_protocol", PROTOCOLS, ("twisted", "pyopenssl", "service-identity")),
    *_loops("easynetwork", "EasyNetwork", "easynetwork_handlers", PROTOCOLS, "easynetwork", quick=("uvloop",)),
    Peer("socketserver", "socketserver, threads", "handler_classes", LEGACY, (), ("--variant", "socketserver")),
    Peer(
        "compat",
        "compat, threads",
        "handler_classes",
        LEGACY,
        ("compat",),
        ("--variant", "compat"),
        ours=True,
    ),
    Peer(
        "gevent-socketserver",
        "socketserver under gevent's monkey patch",
        "handler_classes",
        LEGACY,
        ("gevent",),
        ("--variant", "gevent"),
        quick=False,
    ),
)


def select(patterns: list[str], *, quick: bool = False) -> list[Peer]:
    """The peers whose names are, or begin with, one of the patterns; for none all, or those of quick mode.

    Raises:
        ValueError: A pattern names nobody.
    """
    for pattern in patterns:
        if not any(peer.name.startswith(pattern) for peer in PEERS):
            names = ", ".join(peer.name for peer in PEERS)
            raise ValueError(f"no peer is called {pattern!r}; there are: {names}")
    if patterns:
        return [peer for peer in PEERS if peer.name.startswith(tuple(patterns))]
    return [peer for peer in PEERS if peer.quick or not quick]
