"""The PROXY protocol, versions 1 and 2, for the side that receives it: bytes in, the client's address out. No I/O.

    HeaderParser     given what has come, tells which of it is the header, takes that, and says when it is complete
    ProxyHeader      what the header said
    TrustedProxies   whose word is taken for it

"Section" refers to the specification, https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt. Where it leaves a
choice, the stricter reading is taken: a header that is in any way not what a sender must write is an error, and never
an address that somebody else could read differently.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..net.addresses import unmapped

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ProxyHeader"]

_SIGNATURE_1 = b"PROXY "
_SIGNATURE_2 = b"\r\n\r\n\0\r\nQUIT\n"
# Section 2.1: the longest line, and all that has to be looked at to find its end.
_LONGEST_LINE = 107
# Section 2.2: what comes before the part whose length it tells.
_FIXED_PART = 16

_LINE = re.compile(rb"PROXY TCP([46]) ([^ ]+) ([^ ]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n")
_UNKNOWN = re.compile(rb"PROXY UNKNOWN( [^\n]*)?\r\n")

# Section 2.2, the 14th byte: families, each with the bytes of its two addresses, and how many protocols there are.
_BLOCK_SIZES = {0: 0, 1: 12, 2: 36, 3: 216}
_LAST_PROTOCOL = 2

_CRC32C = 0x03  # section 2.2.3
_CRC_POLYNOMIAL = 0x82F63B78  # RFC 4960, appendix B, bits reflected


class HeaderError(ValueError):
    """What came is no header, or a broken one: the sender is to blame, and nothing that it sent can be used."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a proxy has said about a connection.

    Attributes:
        version: of the PROXY protocol, 1 or 2.
        source: the client's address, in the shape that the system gives to a peer's address; None when the proxy
            speaks for itself (a health check) or does not know. Then the connection's peer is the proxy.
        destination: the address that the client connected to; None likewise.
        tlvs: what else it said (version 2), as pairs of type and value in the order they came. A checksum (type 3)
            has been verified. Of the others the values are the proxy's word.
    """

    version: int
    source: Any
    destination: Any
    tlvs: tuple[tuple[int, bytes], ...] = ()

    def tlv(self, kind: int) -> bytes | None:
        """Return the first value of a type, or None: 1 ALPN, 2 authority (SNI), 5 unique id, 0x20 TLS, and so on."""
        return next((value for found, value in self.tlvs if found == kind), None)


class HeaderParser:
    """Takes a header in pieces, and nothing but the header.

    Look at the next `wanted` bytes without taking them; take as many as `belonging` tells; give those to `feed`. Every
    byte that was looked at and may be the header's is taken, so whoever then waits for more waits for new bytes.

    Attributes:
        header: the result, None until it is complete.
    """

    __slots__ = ("_data", "_size", "header")

    def __init__(self) -> None:
        self._data = bytearray()
        self._size: int | None = None
        self.header: ProxyHeader | None = None

    @property
    def wanted(self) -> int:
        """How many bytes to look at next; more than 0 until the header is complete."""
        return (_LONGEST_LINE if self._size is None else self._size) - len(self._data)

    def belonging(self, ahead: bytes) -> int:
        """How many of the bytes that come next belong to the header; all, as long as they show no end."""
        size = self._size or _size(bytes(self._data) + ahead)
        return len(ahead) if size is None else min(len(ahead), size - len(self._data))

    def feed(self, data: bytes) -> None:
        """Take bytes of the header.

        Raises:
            HeaderError: they are not a header's. The connection is of no use any more.
        """
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
    """Length of the header that begins so; None if that cannot be told yet."""
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
    if command == 0:  # LOCAL: the block is to be discarded, whatever it is
        return ProxyHeader(2, None, None)
    if family not in _BLOCK_SIZES or protocol > _LAST_PROTOCOL:
        raise HeaderError(f"unknown address family or protocol {data[13]:#04x}")
    if not (family and protocol):  # UNSPEC: what follows is of unknown shape
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
    """Return a path; or a name without a file (unix(7)), as bytes that begin with NUL, as Python's sockets do."""
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
            if any(other == _CRC32C for other, _ in found):  # 9,000 fit in, each a pass over all the header
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
    """Checksum as in RFC 4960, appendix B. About 0.1 us a byte; headers are short, and few carry one."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


# -- who may say so


class TrustedProxies:
    """Addresses that may speak the PROXY protocol: `address in trusted`.

    Args:
        names: networks ("10.0.0.0/8", "fd00::/8") and addresses; "unix" for the peers of Unix sockets. Nothing means
            this host alone: loopback and Unix sockets.

    Raises:
        TypeError, ValueError: a name is none of these.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if isinstance(names, str):
            raise TypeError(f"trusted_proxies must be a sequence of networks; write [{names!r}]")
        self.names: tuple[str, ...] = tuple(names) or ("127.0.0.0/8", "::1", "unix")
        self._networks = [_network(name) for name in self.names if name != "unix"]

    def __contains__(self, address: Any) -> bool:
        if not isinstance(address, tuple):
            return "unix" in self.names
        host = ipaddress.ip_address(unmapped(address[0]))
        return any(host in network for network in self._networks)


def _network(name: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if not isinstance(name, str):
        raise TypeError(f"trusted_proxies takes networks as strings, such as '10.0.0.0/8'; got {name!r}")
    try:
        return ipaddress.ip_network(name)
    except ValueError as exc:
        raise ValueError(
            f"trusted_proxies takes networks and addresses, such as '10.0.0.0/8', '192.0.2.7', 'fd00::/8', or 'unix'; "
            f"got {name!r} ({exc})"
        ) from exc
