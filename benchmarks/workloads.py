"""What the contenders do: one row per workload."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.load import LoadError

CPU = "us of server CPU per operation"
WALL = "us of wall time per operation"
QUICK_IDLE = 2000  # connections whose memory quick mode measures


@dataclass(frozen=True)
class Workload:
    """One kind of work.

    Attributes:
        name: What `--workload` takes.
        title: What tables and charts show; `{connections}` stands for their number.
        kind: The kind of server it needs; `program` for those that run by themselves.
        mode: The load generator's mode, or the program's name.
        unit: Of the figure that is compared; less is better, always.
        connections, size, depth: As load.c has them.
        workers: Server processes.
        quick: Whether quick mode runs it (all that have a target do).
        fresh: It wants servers that nothing else has used.
        only, not_for: Beginnings of the names of the peers that do it, or that leave it to another workload.
    """

    name: str
    title: str
    kind: str
    mode: str
    unit: str = CPU
    connections: int = 1
    size: int = 64
    depth: int = 1
    workers: int = 1
    quick: bool = True
    fresh: bool = False
    only: tuple[str, ...] = ()
    not_for: tuple[str, ...] = ()

    def suits(self, peer: str) -> bool:
        """Whether a peer of this name does it, given the right kind of server."""
        return (not self.only or peer.startswith(self.only)) and not peer.startswith(self.not_for or ("-",))

    def sample(self, figures: dict[str, float]) -> dict[str, float]:
        """What is kept of the load generator's figures, under `value` the one that is compared.

        Raises:
            LoadError: Not one operation was completed.
        """
        if not figures["operations"]:
            raise LoadError("not one operation was completed")
        if self.mode == "idle":
            return {"value": figures["bytes_per_connection"], **figures}
        operations, wall = figures["operations"], figures["seconds"]
        sample = {
            "value": figures["server_cpu"] / operations * 1e6,
            "cpu_us": figures["server_cpu"] / operations * 1e6,
            "per_second": operations / wall,
            "p50_us": figures["p50_us"],
            "p99_us": figures["p99_us"],
            "lost_percent": 100 * figures["lost"] / (operations + figures["lost"]),
            "server_busy": figures["server_cpu"] / wall,
            "load_busy": figures["load_cpu"] / wall,
            "operations": operations,
        }
        if self.mode == "burst":
            sample["value"] = sample["lost_percent"]
        if self.unit == WALL:
            sample["value"] = wall / operations * 1e6
        return sample

    @property
    def group(self) -> tuple[str, str, int]:
        """Workloads of one group are measured on the same server processes."""
        return self.kind, self.name if self.fresh else "", self.workers


_THREADED = ("socketserver", "compat", "gevent-socketserver")
_MEMORY = "bytes per idle connection"

WORKLOADS: tuple[Workload, ...] = (
    Workload("tcp-64", "TCP echo, 64 B, 64 connections", "tcp", "tcp", connections=64),
    Workload("tcp-64-1", "TCP echo, 64 B, 1 connection", "tcp", "tcp", quick=False),
    Workload("tcp-64-1000", "TCP echo, 64 B, 1,000 connections", "tcp", "tcp", connections=1000, quick=False),
    Workload("tcp-1k", "TCP echo, 1 KiB, 64 connections", "tcp", "tcp", connections=64, size=1024, quick=False),
    Workload("tcp-256k", "TCP echo, 256 KiB, 8 connections", "tcp", "tcp", connections=8, size=262144),
    Workload("pipelined", "TCP echo, 16 x 64 B pipelined, 64 connections", "tcp", "tcp", connections=64, depth=16),
    Workload("lines", "TCP echo line by line, 64 B, 64 connections", "lines", "tcp", connections=64),
    Workload("broadcast", "Broadcast of 64 B to 1,000 connections", "broadcast", "broadcast", connections=1000),
    Workload("connect", "Connect, echo, close; 32 clients", "tcp", "connect", connections=32),
    Workload(
        "memory",
        "Memory, {connections} idle connections",
        "tcp",
        "idle",
        _MEMORY,
        5000,
        fresh=True,
        not_for=_THREADED,
    ),
    Workload("tls-1k", "TLS echo, 1 KiB, 64 connections", "tls", "tls", connections=64, size=1024),
    Workload("unix-64", "Unix stream echo, 64 B, 64 connections", "unix", "unix", connections=64, quick=False),
    Workload("udp-64", "UDP echo, 64 B, 64 sockets", "udp", "udp", connections=64),
    Workload("udp-burst", "UDP burst, 1,000 at once", "udp", "burst", "% lost", connections=10, depth=1000),
    Workload("legacy-connect", "Legacy handler: connect, line, close", "legacy-tcp", "connect", connections=32),
    Workload("legacy-messages", "Legacy handler: lines on 64 connections", "legacy-tcp", "tcp", connections=64),
    Workload("legacy-udp", "Legacy handler: datagrams, 64 sockets", "legacy-udp", "udp", connections=64),
    Workload(
        "legacy-idle",
        "Legacy handler: memory, {connections} idle connections",
        "legacy-tcp",
        "idle",
        _MEMORY,
        1000,
        fresh=True,
    ),
    Workload("shutdown", "shutdown() of an idle server", "program", "shutdown", "ms, median of 5"),
    Workload("import", "Import time", "program", "import", "ms of CPU"),
    *(
        Workload(
            f"workers-{number}",
            f"TCP echo, 64 B, {number} worker{'s' * (number > 1)}",
            "tcp",
            "tcp",
            WALL,
            64,
            workers=number,
            quick=False,
            fresh=True,
            only=("asyncserver-",),
        )
        for number in (1, 2)
    ),
)


def select(names: list[str], *, quick: bool) -> list[Workload]:
    """The workloads of these names, as quick mode has them or in full; for none, all of either.

    Raises:
        ValueError: A name is unknown.
    """
    known = {workload.name: workload for workload in WORKLOADS}
    for name in names:
        if name not in known:
            raise ValueError(f"no workload is called {name!r}; there are: {', '.join(known)}")
    # In the table's order, which keeps workloads of one group together.
    chosen = [each for each in WORKLOADS if (each.name in names if names else each.quick or not quick)]
    return [_sized(each, quick=quick) for each in chosen]


def _sized(workload: Workload, *, quick: bool) -> Workload:
    """The workload with the number of connections that a run really opens, also in its title."""
    number = workload.connections
    if quick and workload.mode == "idle":
        number = min(number, QUICK_IDLE)
    title = workload.title.format(connections=f"{number:,}")
    return replace(workload, connections=number, title=title)
