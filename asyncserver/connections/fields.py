"""ConnectionFields: what a connection keeps for its hot paths, be they Python or C."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..speedups.extension import accelerate

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ..net.addresses import Address
    from ..net.poller import Poller
    from ..net.waiter import Waiter
    from ..proxy.proxy_protocol import ProxyHeader


@accelerate
class ConnectionFields:
    """What connections read and write; the classes that use these fields say more of them."""

    __slots__ = (
        "_answered",
        "_buffer",
        "_came_at",
        "_events",
        "_fd",
        "_idle_read",
        "_idle_write",
        "_message_at",
        "_message_sent",
        "_owed_until",
        "_poller",
        "_read",
        "_reading",
        "_recv",
        "_send",
        "_shared",
        "_sock",
        "_spins",
        "_tls",
        "_watching",
        "_writing",
        "bytes_received",
        "bytes_sent",
        "peer_address",
        "proxy_header",
    )

    _poller: Poller
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
        self._tls = False  # whether it is an SSLSocket
        self._events = 0  # what the poller watches for
        self._watching: bool | None = None  # whether that includes READ; None before the first time
        self._writing: Waiter | None = None
        self._spins = 0  # operations of a Stream in a row that need not wait
        self._buffer: bytearray | None = None  # taken from the kernel, but not yet by the handler
        self._came_at = -1  # `bytes_received` when something last came that held no payload yet
        # `bytes_moved` when the idle timeout was over, until a wait has raised IdleTimeout for it.
        self._idle_read = self._idle_write = -1
        self.proxy_header: ProxyHeader | None = None
        # The dialogue: dialogue.py
        self.bytes_received: int = 0
        self.bytes_sent: int = 0
        self._answered = 0  # bytes_received when we last sent
        # Where the message under way began, if a part of it came before we last sent: bytes_sent
        # at that time, and the bytes_received before the message.
        self._message_sent = self._message_at = 0
        # While draining: the bytes_received up to which we owe answers.
        self._owed_until: int | None = None
