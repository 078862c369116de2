"""The receiving side of the PROXY protocol, versions 1 and 2: bytes in, addresses out. No I/O.

"Section" refers to the specification, https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt.
Where it leaves a choice, the stricter reading is taken: a header that differs in any way from what
a sender must write is an error, so that no two readers can take different addresses from it.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..exceptions import HeaderError
from ..net.addresses import unmapped
from . import tlvs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .tlvs import ProxyTLS

__all__ = ["ProxyHeader"]

_SIGNATURE_1 = b"PROXY "
_SIGNATURE_2 = b"\r\n\r\n\0\r\nQUIT\n"
# Section 2.1: bytes of the longest line, which are enough to find its end.
_LONGEST_LINE = 107
# Section 2.2: bytes before the part of variable length; they contain that length.
_FIXED_PART = 16

_LINE = re.compile(rb"PROXY TCP([46]) ([^ ]+) ([^ ]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n")
_UNKNOWN = re.compile(rb"PROXY UNKNOWN( [^\n]*)?\r\n")

# Section 2.2, the 14th byte: families, each with the size of its two addresses; the last protocol.
_BLOCK_SIZES = {0: 0, 1: 12, 2: 36, 3: 216}
_LAST_PROTOCOL = 2

_CRC32C = 0x03  # section 2.2.3
_CRC_POLYNOMIAL = 0x82F63B78  # RFC 4960, appendix B, bits reflected


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """The header that a proxy has sent for a connection.

    Example::

        header = stream.proxy_header
        if header is not None and header.tls is not None:
            print(header.source, "came by", header.tls.version, "and asked for", header.authority)

    Attributes:
        version: of the PROXY protocol, 1 or 2.
        source: the client's address, in the form of a socket's peer address; None when the proxy
            connects for itself (a health check) or does not know. Then the peer is the proxy.
        destination: the address that the client connected to; None likewise.
        tlvs: further fields (version 2), pairs of type and value in the order of the header. A
            checksum (type 3) has been verified. The other values are as the proxy sent them.
    """

    version: int
    source: Any
    destination: Any
    tlvs: tuple[tuple[int, bytes], ...] = ()

    def tlv(self, kind: int) -> bytes | None:
        """Return the first value of a type; or None."""
        return next((value for found, value in self.tlvs if found == kind), None)

    # What the values mean. One that is not as specified reads as None, and stays in `tlvs`.

    @property
    def tls(self) -> ProxyTLS | None:
        """How the client has connected to the proxy by TLS; None if it has not."""
        return tlvs.tls(self.tlv(tlvs.TLS))

    @property
    def alpn(self) -> str | None:
        """The protocol that client and proxy have agreed on, such as "h2"."""
        return tlvs.text(self.tlv(tlvs.ALPN))

    @property
    def authority(self) -> str | None:
        """The host name that the client has asked for, with TLS its SNI. Any text at all."""
        return tlvs.text(self.tlv(tlvs.AUTHORITY))

    @property
    def unique_id(self) -> bytes | None:
        """What the proxy calls this connection in its log."""
        return tlvs.unique_id(self.tlv(tlvs.UNIQUE_ID))

    @property
    def aws_vpce_id(self) -> str | None:
        """The AWS VPC endpoint that the client came through, such as "vpce-08d2bf15fac5001c9"."""
        return tlvs.aws_vpce_id(self.tlv(tlvs.AWS))

    @property
    def azure_linkid(self) -> int | None:
        """The LINKID of the Azure private endpoint that the client came through."""
        return tlvs.azure_linkid(self.tlv(tlvs.AZURE))


class HeaderParser:
    """Parses a header that comes in pieces, and takes no byte after it.

    Peek at the next `wanted` bytes, receive as many as `belonging` returns, and `feed` those, until
    `header` is there. What may be the header's is received, so readiness then means new bytes.
    """

    __slots__ = ("_data", "_size", "header")

    def __init__(self) -> None:
        self._data = bytearray()
        self._size: int | None = None
        self.header: ProxyHeader | None = None

    @property
    def wanted(self) -> int:
        """How many bytes to peek at next; more than 0 until the header is complete."""
        return (_LONGEST_LINE if self._size is None else self._size) - len(self._data)

    def belonging(self, ahead: bytes) -> int:
        """How many of these next bytes belong to the header: all, if its end is not among them."""
        size = self._size or _size(bytes(self._data) + ahead)
        return len(ahead) if size is None else min(len(ahead), size - len(self._data))

    def feed(self, data: bytes) -> None:
        """Take bytes of the header; raises HeaderError if they are not a header's."""
        self._data += data
        seen = bytes(self._data) if self._size is None else b""
        if self._size is None:
            if not any(start.startswith(seen[: len(start)]) for start in (_SIGNATURE_1, _SIGNATURE_2)):
                raise HeaderError(f"expected a PROXY protocol header, got {seen[:20]!r}")
            self._size = _size(seen)
            if self._size is None and len(seen) >= _LONGEST_LINE:
                raise HeaderError(f"a line of more than {_LONGEST_LINE} bytes: {seen!r}")
        if len(self._data) == self._size:
            parse = _parse_line if self._data.startswith(_SIGNATURE_1) else _parse_binary
            self.header = parse(bytes(self._data))


def _size(seen: bytes) -> int | None:
    """Length of the header that begins with these bytes; None if they are too few."""
    if seen.startswith(b"\r"):
        return None if len(seen) < _FIXED_PART else _FIXED_PART + int.from_bytes(seen[14:16], "big")
    return seen.find(b"\n") + 1 or None


# -- version 1


def _parse_line(line: bytes) -> ProxyHeader:
    found = _LINE.fullmatch(line)
    if found is None:
        if _UNKNOWN.fullmatch(line) is None:
            raise HeaderError(f"not a line of the PROXY protocol, version 1: {line!r}")
        return ProxyHeader(1, None, None)
    kind, source, destination, source_port, destination_port = found.groups()
    family = socket.AF_INET if kind == b"4" else socket.AF_INET6
    try:
        packed = [socket.inet_pton(family, host.decode("ascii")) for host in (source, destination)]
    except (OSError, ValueError) as exc:
        raise HeaderError(f"an address is none of TCP{kind.decode()}: {line!r}") from exc
    ports = int(source_port), int(destination_port)
    if max(ports) > 0xFFFF:
        raise HeaderError(f"a port is more than 65535: {line!r}")
    return ProxyHeader(1, *(_inet(family, host, port) for host, port in zip(packed, ports, strict=True)))


def _inet(family: int, packed: bytes, port: int) -> tuple[Any, ...]:
    host = socket.inet_ntop(family, packed)
    return (host, port) if family == socket.AF_INET else (host, port, 0, 0)


# -- version 2


def _parse_binary(data: bytes) -> ProxyHeader:
    version, command = divmod(data[12], 16)
    family, protocol = divmod(data[13], 16)
    if version != 2 or command > 1:
        raise HeaderError(f"unknown version or command {data[12]:#04x}, expected 0x20 or 0x21")
    if command == 0:  # LOCAL: a receiver must ignore the address block
        return ProxyHeader(2, None, None)
    if family not in _BLOCK_SIZES or protocol > _LAST_PROTOCOL:
        raise HeaderError(f"unknown address family or protocol {data[13]:#04x}")
    if not (family and protocol):  # UNSPEC: what follows has no known format
        return ProxyHeader(2, None, None)
    end = _FIXED_PART + _BLOCK_SIZES[family]
    if len(data) < end:
        raise HeaderError(f"{len(data)} bytes are too few for the addresses of family {family}: {data!r}")
    source, destination = _addresses(family, data[_FIXED_PART:end])
    return ProxyHeader(2, source, destination, _tlvs(data, end))


def _addresses(family: int, block: bytes) -> tuple[Any, Any]:
    if family == 3:
        return _unix(block[:108]), _unix(block[108:])
    kind, size = (socket.AF_INET, 4) if family == 1 else (socket.AF_INET6, 16)
    hosts = block[:size], block[size : 2 * size]
    ports = int.from_bytes(block[-4:-2], "big"), int.from_bytes(block[-2:], "big")
    return _inet(kind, hosts[0], ports[0]), _inet(kind, hosts[1], ports[1])


def _unix(field: bytes) -> str | bytes:
    """Return a path; or an abstract name (unix(7)) as Python's sockets do, as bytes from NUL on."""
    if field.startswith(b"\0"):
        return field.rstrip(b"\0") or ""
    return os.fsdecode(field.partition(b"\0")[0])


def _tlvs(data: bytes, start: int) -> tuple[tuple[int, bytes], ...]:
    found: list[tuple[int, bytes]] = []
    while start < len(data):
        kind, size, value = data[start], int.from_bytes(data[start + 1 : start + 3], "big"), start + 3
        start = value + size
        if start > len(data):
            raise HeaderError(f"the last TLV, of type {kind:#04x}, goes beyond the header")
        if kind == _CRC32C:
            # Up to 9,000 would fit, and each costs a pass over the header.
            if any(other == _CRC32C for other, _ in found):
                raise HeaderError("more than one CRC32c")
            _check_sum(data, value, size)
        found.append((kind, data[value:start]))
    return tuple(found)


def _check_sum(data: bytes, start: int, size: int) -> None:
    if size != 4:
        raise HeaderError(f"a CRC32c has 4 bytes, not {size}")
    end = start + size
    given = int.from_bytes(data[start:end], "big")
    if given != (right := crc32c(data[:start] + bytes(4) + data[end:])):
        raise HeaderError(f"the header's CRC32c is {right:#010x}, but it says {given:#010x}")


def _crc_row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_CRC_POLYNOMIAL if byte & 1 else 0)
    return byte


_CRC_TABLE = tuple(map(_crc_row, range(256)))


def crc32c(data: bytes) -> int:
    """Checksum of RFC 4960, appendix B. About 0.1 us a byte; headers are short, few have one."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


# -- trust

# Hosts that are remembered: each datagram asks, and looking one up takes as long as its header.
_PROXIES = 256


class TrustedProxies:
    """Peers whose PROXY headers are accepted: `address in trusted`.

    Args:
        names: networks ("10.0.0.0/8", "fd00::/8") and addresses; "unix" for the peers of Unix
            sockets, "vsock" for all virtual machines and their host, "vsock:CID" for one of them.
            If empty, this host alone: loopback and Unix sockets.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if isinstance(names, str):
            raise TypeError(f"trusted_proxies must be a sequence of networks; write [{names!r}]")
        self.names: tuple[str, ...] = tuple(names) or ("127.0.0.0/8", "::1", "unix")
        self._networks = [_network(name) for name in self.names if not _is_family(name)]
        self._trusts = functools.lru_cache(_PROXIES)(self._look_up)

    def __contains__(self, address: Any) -> bool:
        if not isinstance(address, tuple):
            return "unix" in self.names
        if not isinstance(address[0], str):  # VSOCK's
            return "vsock" in self.names or f"vsock:{address[0]}" in self.names
        return self._trusts(address[0])

    def _look_up(self, host: str) -> bool:
        found = ipaddress.ip_address(unmapped(host))
        return any(found in network for network in self._networks)


def _is_family(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch("unix|vsock(:(0|[1-9][0-9]{0,9}))?", name) is not None


def _network(name: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if not isinstance(name, str):
        raise TypeError(f"trusted_proxies takes networks as strings, such as '10.0.0.0/8'; got {name!r}")
    try:
        return ipaddress.ip_network(name)
    except ValueError as exc:
        raise ValueError(
            f"trusted_proxies takes networks and addresses, such as '10.0.0.0/8', '192.0.2.7', 'fd00::/8', or 'unix', "
            f"'vsock', 'vsock:2'; got {name!r} ({exc})"
        ) from exc
