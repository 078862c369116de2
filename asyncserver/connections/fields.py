"""ConnectionFields: what both Python and C read and write of a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..speedups.extension import accelerate

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ..net.addresses import Address
    from ..net.waiter import Waiter


@accelerate
class ConnectionFields:
    """What a connection keeps for them; the classes that use these fields say more of them."""

    __slots__ = (
        "_answered",
        "_buffer",
        "_fd",
        "_message_at",
        "_message_sent",
        "_owed_until",
        "_read",
        "_reading",
        "_recv",
        "_send",
        "_shared",
        "_sock",
        "_watching",
        "bytes_received",
        "bytes_sent",
        "peer_address",
    )

    _reading: Waiter
    # Those of a connection that has come in: accepted.py
    _sock: socket.socket
    _read: Callable[[int], bytes]
    _recv: Callable[[int], bytes]
    _send: Callable[[Any], int]
    peer_address: Address

    def __init__(self) -> None:
        self._fd = -1  # the descriptor, until it is closed or given away
        self._shared = False  # whether the program has got at the socket, and may close it
        self._watching: bool | None = None  # whether the poller watches for READ; None before the first time
        self._buffer: bytearray | None = None  # taken from the kernel, but not yet by the handler
        # The dialogue: dialogue.py
        self.bytes_received: int = 0
        self.bytes_sent: int = 0
        self._answered = 0  # bytes_received when we last sent
        # Where the message under way began, if a part of it came before we last sent: bytes_sent
        # at that time, and the bytes_received before the message.
        self._message_sent = self._message_at = 0
        # While draining: the bytes_received up to which we owe answers.
        self._owed_until: int | None = None
