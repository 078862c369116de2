"""Datagrams behind a proxy: each begins with a PROXY header, and is answered to the proxy, bare.

    header + question -> ProxiedReader -> ProxiedDatagram(client's address, question)
    answer -> the proxy, which has asked, from the address that it has asked

A mixin for readers, so that datagrams without a proxy pay nothing for it.

There is no connection that a header could stand for. So each datagram needs its own, and what has
none is refused: its sender's address would be the proxy's. Which protocol a header names does not
matter, as it is the one between client and proxy: dnsdist says STREAM for a question that came to
it over HTTPS, nginx's version 1 says TCP for UDP.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import anyio

from ..exceptions import HeaderError
from .batch_reader import BatchReader, Handling
from .datagram import Datagram, NotForUs

if TYPE_CHECKING:
    from ..kernel.packet_info import Control
    from ..listening.binding import BoundSocket
    from ..net.addresses import Address
    from ..proxy.proxy_protocol import ProxyHeader, TrustedProxies
    from .datagram import Buffer, Endpoint

# Bytes of the longest header of version 2, section 2.2. They come on top of what is kept.
_LONGEST_HEADER = 16 + 0xFFFF


class Refusing(Handling, Protocol):
    """What a reader needs of its server to believe proxies."""

    _proxies: TrustedProxies | None

    def _refuse_proxied(self, counter: str, address: Address, reason: str) -> None:
        """Count and log a datagram that no handler gets."""


class WayBack(list[tuple[int, int, bytes]]):
    """The control data of an answer, and the proxy that it goes to."""

    __slots__ = ("proxy",)

    def __init__(self, proxy: Address, control: Control | None) -> None:
        super().__init__(control or ())
        self.proxy: Address = proxy


class ProxiedDatagram(Datagram):
    """A datagram that a proxy has passed on."""

    __slots__ = ("proxy_header",)

    def __init__(
        self, endpoint: Endpoint, data: bytes, header: ProxyHeader, way_back: WayBack, truncated: bool
    ) -> None:
        address = way_back.proxy if header.source is None else header.source
        super().__init__(endpoint, data, address, way_back, truncated)
        self.proxy_header: ProxyHeader | None = header

    @property
    def sender(self) -> Address:
        """See Datagram."""
        assert isinstance(self.control, WayBack)
        return self.control.proxy


class ProxiedReader(BatchReader):
    """Reads datagrams of trusted proxies; a mixin, the first of a reader's bases."""

    def __init__(self, server: Refusing, bound: BoundSocket, max_datagram_size: int, *arguments: Any) -> None:
        assert server._proxies is not None
        self._proxies = server._proxies
        self._refusing = server
        self._kept = max_datagram_size
        super().__init__(server, bound, max_datagram_size + _LONGEST_HEADER, *arguments)
        self._receive_with_header = self._receive
        self._receive = self._receive_behind

    def _receive_behind(self) -> Datagram:
        """Receive a datagram without its header; raises NotForUs if it is refused."""
        datagram = self._receive_with_header()
        proxy, whole = datagram.address, datagram.data
        if proxy not in self._proxies:
            self._refuse("proxy_untrusted", proxy, "it is none of the trusted_proxies")
        try:
            header, size = read_header(whole)
        except HeaderError as exc:
            self._refuse("proxy_invalid", proxy, str(exc))
        end = size + self._kept
        way_back = WayBack(proxy, datagram.control)
        return ProxiedDatagram(self, whole[size:end], header, way_back, datagram.truncated or len(whole) > end)

    def _refuse(self, counter: str, address: Address, reason: str) -> NoReturn:
        if self._remaining:  # a drain reads what is here, and no flood of what it refuses
            self._remaining -= 1
        self._refusing._refuse_proxied(counter, address, reason)
        raise NotForUs

    def try_send(self, data: Buffer, address: Address, control: Control | None) -> bool:
        """See Endpoint; to the proxy that has asked for this client, and to nobody else."""
        if not isinstance(control, WayBack):
            unreachable = OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
            raise anyio.BrokenResourceError(
                f"{address!r} is behind a proxy, and has not asked for so long that the proxy is forgotten"
            ) from unreachable
        return super().try_send(data, control.proxy, control or None)

    def local_address(self, control: Control | None, peer: Address) -> Address:
        """See Endpoint."""
        if isinstance(control, WayBack):
            return super().local_address(control or None, control.proxy)
        return super().local_address(control, peer)


def read_header(data: bytes) -> tuple[ProxyHeader, int]:
    """Return the header that a datagram begins with, and its length.

    Raises:
        HeaderError: there is none, or not all of it.
    """
    from ..proxy.proxy_protocol import HeaderParser  # noqa: PLC0415 - see connection.py

    parser, size = HeaderParser(), 0
    while parser.header is None:
        ahead = data[size : size + parser.wanted]
        if not ahead:
            what = f"the PROXY header is cut off: {data[:20]!r}" if data else "expected a PROXY header, got nothing"
            raise HeaderError(what)
        belonging = parser.belonging(ahead)
        parser.feed(ahead[:belonging])
        size += belonging
    return parser.header, size
