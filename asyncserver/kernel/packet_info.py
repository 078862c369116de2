"""Where a datagram was sent to, and from where its answer comes.

A socket on one address answers from that address. On every interface the kernel would choose one by
the route back, and from a broadcast address or a multicast group no answer can come: there each
datagram has to come with its destination, by IP_PKTINFO (ip(7)) or IPV6_PKTINFO (RFC 3542, 6).
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any, TypeAlias

from .features import tell_missing
from .scopes import is_multicast

Control: TypeAlias = "list[tuple[int, int, bytes]]"

#: Bytes for control data: room for both kinds, as sockets for IPv4 and IPv6 at once get them.
CONTROL_SIZE = 128

# The kernel's form of control data, cmsg(3): each has this header, and is aligned to its length.
_HEADER = struct.Struct("@Nii")
_ALIGNMENT = struct.calcsize("@N")

_IP_PKTINFO = 8  # linux/in.h; in `socket` from Python 3.14 on
_INTERNET = {socket.AF_INET, socket.AF_INET6}
_MAPPED = bytes(10) + b"\xff\xff"  # how sockets for IPv6 and IPv4 show IPv4: RFC 4291, 2.5.5.2
_ANY = bytes(4)
_LIMITED_BROADCAST = b"\xff" * 4  # RFC 919


def ask_for_destination(sock: socket.socket) -> bool:
    """Get each datagram's destination, if answers need it; returns whether they do."""
    if not (is_for_every_address(sock) or is_for_many(sock)):
        return False
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        if has_ipv4(sock):
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    except OSError:
        tell_missing("IP_PKTINFO", "where it has several addresses, an answer may come from another than was asked")
        return False
    return True


def has_ipv4(sock: socket.socket) -> bool:
    """Whether it gets IPv4 datagrams: an IPv6 socket may be for both."""
    return sock.family == socket.AF_INET or not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def is_for_every_address(sock: socket.socket) -> bool:
    """Whether it is bound to no address in particular."""
    return sock.family in _INTERNET and not any(bound_to(sock))


def is_for_many(sock: socket.socket) -> bool:
    """Whether it is bound to a multicast group or a broadcast address."""
    return sock.family in _INTERNET and _means_many(bound_to(sock))


def bound_to(sock: socket.socket) -> bytes:
    """The bytes of the address that an Internet socket is bound to: 4 or 16."""
    host = sock.getsockname()[0].partition("%")[0]
    packed = socket.inet_pton(sock.family, host)
    return packed[12:] if packed.startswith(_MAPPED) else packed


def source_control(packed: bytes, index: int) -> Control:
    """Make the control data to send from an address, of 4 or 16 bytes, and by an interface.

    Zeros stand for the address that the route chooses, 0 for its interface.
    """
    if len(packed) == 4:
        return [(socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=i4s4x", index, packed))]
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16si", packed, index))]


def source_by_route(family: int, peer: Any) -> bytes:
    """The address, as bytes, from which the kernel would send to this peer; b"" if to none."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            probe.connect(peer)
            return bound_to(probe)
    except OSError:  # there is no way to it, or new sockets are not allowed
        return b""


def is_ours(packed: bytes) -> bool:
    """Whether an interface has the address of these bytes; yes, where that cannot be known."""
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((socket.inet_ntop(family, packed), 0))
    except OSError as exc:
        return exc.errno != errno.EADDRNOTAVAIL
    return True


def reply_control(control: Control) -> Control | None:
    """Make the control data for an answer from where the datagram was sent to; None: by route."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            source = _own_ipv4(data)
            # Interface 0: route as usual.
            return [(level, kind, _ANY + source + _ANY)] if source else None
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and data[0] != 0xFF and data[:12] != _MAPPED:
            # A link-local address is valid on its own link only.
            scoped = data[:2] == b"\xfe\x80"
            return [(level, kind, data[:16] + (data[16:20] if scoped else _ANY))]
    return None


def unpack_control(raw: bytes) -> Control:
    """Read control data in the kernel's form."""
    control, at = [], 0
    while at + _HEADER.size <= len(raw):
        length, level, kind = _HEADER.unpack_from(raw, at)
        control.append((level, kind, raw[at + _HEADER.size : at + length]))
        at += length + -length % _ALIGNMENT
    return control


def pack_control(control: Control) -> bytes:
    """Write control data in the kernel's form."""
    packed = b""
    for level, kind, data in control:
        length = _HEADER.size + len(data)
        packed += _HEADER.pack(length, level, kind) + data + bytes(-length % _ALIGNMENT)
    return packed


def sent_to_many(control: Control) -> bool:
    """Whether the datagram was a broadcast or multicast, which every socket on its port has got."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            return _own_ipv4(data) != data[8:12]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and data[:12] != _MAPPED:
            return data[0] == 0xFF
    return False


def source_address(sock: socket.socket, control: Control | None, peer: Any) -> Any:
    """The address that answers to this peer come from: by `reply_control()`, else by the route."""
    own = sock.getsockname()
    if control:
        level, _, data = control[0]
        if level == socket.IPPROTO_IPV6:
            return socket.inet_ntop(socket.AF_INET6, data[:16]), own[1], 0, struct.unpack("=I", data[16:20])[0]
        host = socket.inet_ntop(socket.AF_INET, data[4:8])
        return (host, own[1]) if sock.family == socket.AF_INET else (f"::ffff:{host}", own[1], 0, 0)
    try:
        with socket.socket(sock.family, socket.SOCK_DGRAM) as probe:
            probe.connect(peer)
            chosen = probe.getsockname()
    except OSError:  # there is no way to it, or new sockets are not allowed
        return own
    return chosen[0], own[1], *chosen[2:]


def _own_ipv4(data: bytes) -> bytes:
    """Our address that it was sent to, or for a broadcast or multicast the interface's; or b""."""
    own, destination = data[4:8], data[8:12]  # ipi_spec_dst, ipi_addr
    if own == _ANY and not _means_many(destination):  # it came before we asked for that
        own = destination
    return own if own != _ANY else b""


def _means_many(packed: bytes) -> bool:
    """Whether datagrams to an address to which a socket is bound can be for several hosts."""
    if not any(packed):
        return False
    if is_multicast(packed) or packed == _LIMITED_BROADCAST:
        return True
    return len(packed) == 4 and _is_broadcast(socket.inet_ntop(socket.AF_INET, packed))


def _is_broadcast(host: str) -> bool:
    """Whether it is the broadcast address of a network of ours: it needs SO_BROADCAST, ip(7)."""
    try:
        return _connects(host, broadcast=1) and not _connects(host, broadcast=0)
    except OSError:  # new sockets are not allowed
        return False


def _connects(host: str, *, broadcast: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, broadcast)
        return probe.connect_ex((host, 9)) == 0  # nothing is sent
