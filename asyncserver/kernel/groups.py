"""Multicast groups: a socket on every address hears the groups it has joined, and no others."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import socket
import struct
from typing import TYPE_CHECKING

from .features import tell_missing
from .packet_info import has_ipv4, is_for_every_address

if TYPE_CHECKING:
    from collections.abc import Iterator

# By default a socket hears every group that any program of the host has joined: ip(7), and since
# Linux 4.20 IPv6 too. Numbers from linux/in.h and linux/in6.h; Python has no names for them.
_IP_MULTICAST_ALL, _IPV6_MULTICAST_ALL = 49, 29
# The groups of all hosts, which no program joins: RFC 1112, 4; RFC 4291, 2.7.1.
_ALL_HOSTS = "224.0.0.1"
_ALL_NODES = ("ff01::1", "ff02::1")
# A socket may join 20 groups of IPv4 (igmp_max_memberships of ip(7)): half is left to the program.
_MOST_INTERFACES = 10
_SIOCGIFADDR = 0x8915  # netdevice(7)


def hear_own_groups(sock: socket.socket, *, first: bool) -> None:
    """Hear the groups that a socket joins; on the first one of a port those of all hosts, too."""
    if not is_for_every_address(sock):
        return  # a socket bound to a group is to hear it
    if hear_joined_only(sock) and first:
        _join_all_hosts(sock)


def hear_joined_only(sock: socket.socket) -> bool:
    """Hear no groups but those that the socket itself joins; returns whether the kernel can."""
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
        if has_ipv4(sock):
            sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
    except OSError:
        tell_missing("IP_MULTICAST_ALL", "groups that other programs have joined are answered too")
        return False
    return True


def _join_all_hosts(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        for group in _ALL_NODES:
            _join_all_nodes(sock, socket.inet_pton(socket.AF_INET6, group))
    if has_ipv4(sock):
        for index in itertools.islice(_ipv4_interfaces(), _MOST_INTERFACES):
            joined = struct.pack("4s4xi", socket.inet_aton(_ALL_HOSTS), index)
            with contextlib.suppress(OSError):  # joined already, by the socket's maker
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)


def _join_all_nodes(sock: socket.socket, group: bytes) -> None:
    """Join on one interface, which is enough: for IPv6 Linux compares groups, not interfaces."""
    for index, _ in _interfaces():
        try:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, struct.pack("16si", group, index))
        except OSError:  # no IPv6 there
            continue
        return


def _ipv4_interfaces() -> Iterator[int]:
    """The numbers of interfaces that have an IPv4 address; 0 is the one that the route chooses."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for index, name in _interfaces():
                with contextlib.suppress(OSError):
                    fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("40s", name.encode()))
                    yield index
    except OSError:  # not allowed
        yield 0


def _interfaces() -> list[tuple[int, str]]:
    """Return all interfaces: numbers and names."""
    try:
        return socket.if_nameindex()
    except OSError:  # it asks by netlink, which RestrictAddressFamilies= of systemd may forbid
        return [(1, "lo")]  # the first in every network
