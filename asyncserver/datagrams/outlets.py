"""Outlets: by which socket of a server a datagram leaves that the program sends to whom it likes.

    address -> sockets of its family -> those of `local_address`, or of the route -> Way -> sent

An IPv4 address goes by a socket for IPv4, or by one for both; an IPv6 one by a socket for IPv6.
From a socket on every interface the source is set as that of an answer is: kernel/packet_info.py.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

import anyio

from ..kernel.packet_info import bound_to, has_ipv4, is_ours, source_by_route, source_control
from ..kernel.scopes import format_ip, interface_index, parse_ip
from ..net.addresses import url_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..kernel.packet_info import Control
    from ..net.addresses import Address
    from .datagram import Buffer, Endpoint

_INTERNET = {socket.AF_INET, socket.AF_INET6}
# Datagrams sent before the loop has a turn: as many as a batch that is received.
_BATCH = 32
# What the kernel says of addresses between which there is no way, in words of its own for each.
_NO_WAY = {errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO}


class Place(NamedTuple):
    """An Internet address: of 4 or 16 bytes, on an interface or 0 for any, with a port."""

    packed: bytes
    interface: int
    port: int
    flow: int = 0

    @property
    def family(self) -> str:
        """IPv4 or IPv6."""
        return "IPv4" if len(self.packed) == 4 else "IPv6"


class Way(NamedTuple):
    """What a datagram is sent with."""

    endpoint: Endpoint
    address: Address
    control: Control | None


class Outlet:
    """A socket, as a way out.

    Attributes:
        endpoint: the socket's.
        family: the socket's own, an AF_ number.
        sends: the families of the addresses that it sends to.
        packed: the address that it is bound to, in bytes; none if it has no IP address.
        port: the port that it is bound to.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint: Endpoint = endpoint
        sock = endpoint.sock
        self.sends: set[str] = set()
        self.packed: bytes = b""
        self.port: int = 0
        self.family: int = sock.family
        self._scope = 0
        if sock.family in _INTERNET:
            _, self.port, *more = sock.getsockname()
            self._scope = more[1] if more else 0
            self.packed = bound_to(sock)
            self.sends = {"IPv4"} if has_ipv4(sock) else set()
            self.sends |= {"IPv6"} if len(self.packed) == 16 else set()

    @property
    def for_every_address(self) -> bool:
        """Whether it is bound to none in particular."""
        return not any(self.packed)

    def is_on(self, place: Place) -> bool:
        """Whether it is bound to this very address."""
        return self.packed == place.packed and 0 in {place.interface, self._scope, place.interface - self._scope}

    def sends_from(self, source: Place, place: Place) -> bool:
        """Whether it may send from this address to that place, as far as the server knows."""
        fits = self.for_every_address and any(source.packed) and source.family == place.family
        return source.port in {0, self.port} and (self.is_on(source) or fits)

    def way_to(self, place: Place, source: Place | None) -> Way:
        """Find what to send with. `source` is None for what the route chooses."""
        chosen = source.packed if source is not None and self.for_every_address else b""
        host = format_ip(place.packed)
        address: Address
        if len(place.packed) == 16:
            # A link-local source is valid on its own link only.
            scope = place.interface or (source.interface if source is not None else 0)
            address = host, place.port, place.flow, scope
            return Way(self.endpoint, address, source_control(chosen, 0) if any(chosen) else None)
        address = (host, place.port) if self.family == socket.AF_INET else (f"::ffff:{host}", place.port, 0, 0)
        if not any(chosen) and not place.interface:
            return Way(self.endpoint, address, None)
        return Way(self.endpoint, address, source_control(chosen if any(chosen) else bytes(4), place.interface))


class Outlets:
    """The sockets of a server, as ways out."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._outlets = [Outlet(endpoint) for endpoint in endpoints]
        self._urls = ", ".join(url_of(endpoint) for endpoint in endpoints)
        self._sent = 0  # since the loop had a turn

    async def send(self, data: Buffer, address: Address, local_address: Address) -> None:
        """Send as soon as there is room; see `Server.sendto()`."""
        endpoint, to, control = self._way(address, local_address)
        self._sent += 1
        if self._sent > _BATCH:  # a program that sends to thousands keeps no others waiting
            self._sent = 1
            await asyncio.sleep(0)
        try:
            try:
                await endpoint.send(data, to, control)
            except PermissionError:
                if endpoint.sock.family not in _INTERNET:
                    raise
                # So the kernel refuses broadcasts until they are asked for, ip(7). They are.
                endpoint.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                await endpoint.send(data, to, control)
        except anyio.BrokenResourceError as exc:
            raise anyio.BrokenResourceError(
                f"sendto(): nobody reads at {address!r}: {exc.__cause__}"
            ) from exc.__cause__
        except OSError as exc:
            if exc.errno not in _NO_WAY:
                raise
            if control and local_address is not None and not is_ours(_source(local_address).packed):
                raise ValueError(f"sendto(): local_address={local_address!r}: no interface of ours has it") from exc
            source = "" if local_address is None else f" from {local_address!r}"
            raise OSError(
                exc.errno,
                f"sendto(): no way{source} to {address!r} ({os.strerror(exc.errno)}): is there a route, and one from "
                f"where the server is, {self._urls}?",
            ) from exc

    def _way(self, address: Address, local_address: Address) -> Way:
        first = self._outlets[0]
        if first.family not in _INTERNET:
            return self._other_way(first, address, local_address)
        place = _place(address, "address")
        if not place.port:
            raise ValueError(f"sendto() needs the peer's port, from 1 to 65535; got {address!r}")
        able = [outlet for outlet in self._outlets if place.family in outlet.sends]
        if not able:
            raise ValueError(f"sendto() to {address!r}: no socket of the server is for {place.family}: {self._urls}")
        if local_address is None:
            return self._by_route(able, place)
        source = _source(local_address)
        of_it = [outlet for outlet in able if outlet.sends_from(source, place)]
        if not of_it:
            raise ValueError(
                f"sendto() to {address!r}: local_address={local_address!r} is no {place.family} address of the "
                f"server: {self._urls}"
            )
        return max(of_it, key=lambda outlet: outlet.is_on(source)).way_to(place, source)

    def _by_route(self, able: list[Outlet], place: Place) -> Way:
        if len(able) == 1:
            return able[0].way_to(place, None)
        way = able[0].way_to(place, None)
        source = source_by_route(able[0].family, way.address)
        best = max(able, key=lambda outlet: (outlet.packed == source, outlet.for_every_address))
        return best.way_to(place, None)

    def _other_way(self, outlet: Outlet, address: Address, local_address: Address) -> Way:
        """The way from a Unix socket, or of a family that we know nothing of."""
        if outlet.family == socket.AF_UNIX and not isinstance(address, str | bytes | os.PathLike):
            raise TypeError(f"sendto() from {self._urls} takes the path of a peer's socket; got {address!r}")
        if not address:
            raise ValueError(f"sendto() needs the path of a peer's socket; got {address!r}: it has no name")
        own = outlet.endpoint.sock.getsockname()
        if local_address is not None and local_address != own:
            raise ValueError(f"sendto(): local_address={local_address!r} is no address of the server: {own!r}")
        return Way(outlet.endpoint, os.fspath(address) if isinstance(address, os.PathLike) else address, None)


def _source(local_address: object) -> Place:
    source = _place((local_address, 0) if isinstance(local_address, str) else local_address, "local_address")
    if isinstance(local_address, tuple) and not source.port:
        raise ValueError(f"sendto(): local_address needs the server's port, or none at all; got {local_address!r}")
    return source


def _place(address: object, name: str) -> Place:
    """Read (host, port), or IPv6's with flow and scope. Raises TypeError, ValueError."""
    expected = f"sendto(): {name} must be (host, port), an IP address and a number"
    if not isinstance(address, tuple):
        raise TypeError(f"{expected}; got {address!r}")
    if not 2 <= len(address) <= 4:
        raise ValueError(f"{expected}; got {address!r}")
    host, numbers = address[0], (*address[1:], 0, 0)[:3]
    if not isinstance(host, str) or any(isinstance(one, bool) or not isinstance(one, int) for one in numbers):
        raise TypeError(f"{expected}; got {address!r}")
    port, flow, scope = numbers
    if not (0 <= port <= 65535 and 0 <= flow < 1 << 20 and 0 <= scope < 1 << 31):
        raise ValueError(f"{expected}, the port from 1 to 65535; got {address!r}")
    try:
        packed, interface = parse_ip(host)
    except ValueError:
        raise ValueError(f"{expected}; got {address!r}: look names up with loop.getaddrinfo()") from None
    try:
        index = interface_index(interface) if interface else scope
    except OSError:
        raise ValueError(f"sendto(): {name}={address!r}: there is no interface {interface!r}") from None
    return Place(packed, index, port, flow)
