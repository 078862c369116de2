"""Memberships: the multicast groups that a server is asked to hear, joined and left.

    "239.1.2.3%eth0" -> Group -> join_groups() as the server binds -> Membership.leave() at its end

A membership is its socket's (ip(7), ipv6(7)). So workers that take turns on a socket keep it, and
of several sockets on one address only the first joins: the others do not hear the group.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ..exceptions import BindError
from .groups import hear_joined_only
from .packet_info import bound_to, has_ipv4
from .scopes import format_ip, interface_index, is_multicast, parse_ip

_EXPECTED = 'a multicast group, such as "239.1.2.3", "ff02::114" or "ff02::114%eth0"'

_ADVICE = {
    errno.ENOBUFS: "the socket has joined too many: raise net.ipv4.igmp_max_memberships (20 by default, of which "
    "each interface takes one for 224.0.0.1, up to ten)",
    errno.ENOMEM: "the socket has joined too many: raise net.core.optmem_max",
    errno.EINVAL: "that interface does not speak IPv6: see net.ipv6.conf.*.disable_ipv6",
    errno.EPERM: "not allowed",
}


@dataclass(frozen=True)
class Group:
    """A multicast group: what the program has written, its bytes, and the interface, or ""."""

    text: str
    packed: bytes
    interface: str

    @property
    def family(self) -> str:
        """IPv4 or IPv6."""
        return "IPv4" if len(self.packed) == 4 else "IPv6"

    def may_be_heard_on(self, host: str | None) -> bool:
        """Whether a server on this host could hear it; whoever has a name may have any address."""
        try:
            packed, _ = parse_ip(host or "")
        except ValueError:
            return True
        return len(packed) == len(self.packed) and (not any(packed) or packed == self.packed)


def parse_groups(texts: Sequence[str]) -> tuple[Group, ...]:
    """Read groups.

    Raises:
        TypeError: they are no sequence of texts.
        ValueError: one is no multicast address.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(f"groups must be a sequence of texts, each {_EXPECTED}; got {texts!r}")
    return tuple(dict.fromkeys(map(_parse_group, texts)))


def _parse_group(text: object) -> Group:
    if not isinstance(text, str):
        raise TypeError(f"groups must be texts, each {_EXPECTED}; got {text!r}")
    try:
        packed, interface = parse_ip(text)
    except ValueError:
        raise ValueError(f"expected {_EXPECTED}; got {text!r}") from None
    if not is_multicast(packed):
        raise ValueError(f"expected {_EXPECTED}, from 224.0.0.0 to 239.255.255.255 or in ff00::/8; got {text!r}")
    return Group(text, packed, interface)


@dataclass(frozen=True)
class Membership:
    """A socket that has joined a group."""

    sock: socket.socket
    packed: bytes
    index: int

    def join(self) -> None:
        """Join. Raises OSError."""
        level, option = (
            (socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP)
            if len(self.packed) == 4
            else (socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP)
        )
        self.sock.setsockopt(level, option, self._request())

    def leave(self) -> None:
        """Leave, also where others keep the socket open."""
        level, option = (
            (socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP)
            if len(self.packed) == 4
            else (socket.IPPROTO_IPV6, socket.IPV6_LEAVE_GROUP)
        )
        with contextlib.suppress(OSError):  # the socket is closed, the interface gone, or the program has left it
            self.sock.setsockopt(level, option, self._request())

    def _request(self) -> bytes:
        """Return struct ip_mreqn or ipv6_mreq; interface 0 is the one that the route chooses."""
        return struct.pack("4s4xi" if len(self.packed) == 4 else "16si", self.packed, self.index)


def join_groups(sockets: Sequence[socket.socket], groups: Sequence[Group]) -> list[Membership]:
    """Join each group on the socket that hears it; one that has been joined already stays so.

    Raises:
        BindError: it cannot be; none of them has been joined then.
    """
    joined: list[Membership] = []
    try:
        for group in groups:
            joined += _join(_hearer(sockets, group), group)
    except BaseException:
        for membership in joined:
            membership.leave()
        raise
    return joined


def _join(sock: socket.socket, group: Group) -> list[Membership]:
    hear_joined_only(sock)
    try:
        membership = Membership(sock, group.packed, interface_index(group.interface) if group.interface else 0)
        membership.join()
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            return []  # by the socket's maker, or for all hosts
        raise BindError(exc.errno, f"cannot join the group {group.text}: {_reason(exc, group)}") from exc
    return [membership]


def _reason(exc: OSError, group: Group) -> str:
    if exc.errno != errno.ENODEV:
        return _ADVICE.get(exc.errno or 0, exc.strerror or str(exc))
    names = ", ".join(name for _, name in _interfaces())
    if not group.interface:
        return f"no route leads to it: name an interface, {group.text}%NAME; there are {names}"
    return f"there is no interface {group.interface!r} that speaks {group.family}; there are {names}"


def _interfaces() -> list[tuple[int, str]]:
    try:
        return socket.if_nameindex()
    except OSError:  # netlink is not allowed
        return [(0, "some that this program may not list")]


def hears(sock: socket.socket, group: Group) -> bool:
    """Whether a socket that joins a group gets what is sent to it."""
    return _is_for(sock, group) and (not any(bound_to(sock)) or bound_to(sock) == group.packed)


def _hearer(sockets: Sequence[socket.socket], group: Group) -> socket.socket:
    for sock in sockets:
        if hears(sock, group):
            return sock
    of_family = [sock for sock in sockets if _is_for(sock, group)]
    if not of_family:
        raise BindError(
            errno.EAFNOSUPPORT,
            f"cannot join the group {group.text}: {os.strerror(errno.EAFNOSUPPORT)}: no socket of the server is for "
            f"{group.family}: serve on host=None, or on {'0.0.0.0' if group.family == 'IPv4' else '::'}, too",
        )
    bound = ", ".join(format_ip(bound_to(sock)) for sock in of_family)
    raise BindError(
        errno.EADDRNOTAVAIL,
        f"cannot join the group {group.text}: a socket on {bound} does not hear it: serve on every interface "
        f"(host=None, 0.0.0.0 or ::), or on the group's own address",
    )


def _is_for(sock: socket.socket, group: Group) -> bool:
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return False
    return has_ipv4(sock) if group.family == "IPv4" else sock.family == socket.AF_INET6 and len(bound_to(sock)) == 16
