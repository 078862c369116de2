"""ConnectionFields: what a connection keeps for its hot paths, be they Python or C."""

from __future__ import annotations

from ..speedups.extension import accelerate


@accelerate
class ConnectionFields:
    """What receiving and sending read and write; Dialogue and Connection say what each of it is."""

    __slots__ = (
        "_answered",
        "_buffer",
        "_events",
        "_fd",
        "_idle_read",
        "_message_start",
        "_poller",
        "_reading",
        "_recv",
        "_send",
        "_shared",
        "_spins",
        "_watching",
        "bytes_received",
        "bytes_sent",
    )
