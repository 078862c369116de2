"""AskedAddresses: which of our addresses a peer has asked, for answers that name only the peer.

A protocol answers with `sendto(data, addr)`, perhaps much later: from a task, a timer or a queue.
Code that runs because of a datagram runs in a context made from the datagram's, so that datagram is
known. For other code, such as a task that existed before, the peer's last datagram counts. Behind
a proxy the same tells which proxy a client is answered through.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from ..kernel.packet_info import Control
    from ..net.addresses import Address
    from .datagram import Datagram

# Peers that are remembered; the answer to a forgotten one comes from the route's address, and
# behind a proxy cannot be sent.
_MOST_PEERS = 1024

_Peer: TypeAlias = "tuple[object, ...]"
_Asked: TypeAlias = "tuple[AskedAddresses, _Peer, Control]"

_asked: ContextVar[_Asked | None] = ContextVar("asyncserver: the datagram that is answered", default=None)


class AskedAddresses:
    """The asked addresses of one socket; empty where it is bound to one address."""

    def __init__(self) -> None:
        self._last: dict[_Peer, Control] = {}

    def enter(self, datagram: Datagram) -> Token[_Asked | None]:
        """Answer a datagram that has control data, from now on in this context."""
        assert datagram.control is not None
        peer = _peer(datagram.address)
        self._last.pop(peer, None)  # so that it becomes the newest
        self._last[peer] = datagram.control
        if len(self._last) > _MOST_PEERS:
            del self._last[next(iter(self._last))]
        return _asked.set((self, peer, datagram.control))

    def leave(self, token: Token[_Asked | None]) -> None:
        """Go back to what was set before `enter()`."""
        _asked.reset(token)

    def find(self, address: Address) -> Control | None:
        """The control data for an answer to this peer."""
        if not self._last:
            return None
        peer = _peer(address)
        asked = _asked.get()
        if asked is not None and asked[0] is self and asked[1] == peer:
            return asked[2]
        return self._last.get(peer)


def _peer(address: Address) -> _Peer:
    """Host, port and scope, also of an IPv6 address that was shortened to host and port."""
    if not isinstance(address, tuple):  # a Unix client's, behind a proxy
        return (address,)
    return (*address[:2], *address[3:]) if len(address) == 4 and address[3] else tuple(address[:2])
