"""The parser of PROXY headers: tables, a second reading of the specification, fuzzing, and another implementation."""

from __future__ import annotations

import ipaddress
import random
import socket
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncserver.exceptions import HeaderError
from asyncserver.proxy.proxy_protocol import HeaderParser, ProxyHeader, TrustedProxies, crc32c

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LINE = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"


def binary(block: bytes, family: int = 0x11, command: int = 0x21, size: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(block) if size is None else size) + block


def inet(source: str, destination: str, source_port: int, destination_port: int) -> bytes:
    hosts = b"".join(ipaddress.ip_address(host).packed for host in (source, destination))
    return hosts + struct.pack("!HH", source_port, destination_port)


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


V4 = inet("192.0.2.1", "198.51.100.2", 56324, 443)
V6 = inet("2001:db8::1", "::1", 1, 65535)


def read(data: bytes, pieces: random.Random | None = None) -> tuple[ProxyHeader | None, int]:
    """Parse as a connection would, whose bytes arrive in pieces; returns the header and how many bytes were taken."""
    parser, taken, arrived = HeaderParser(), 0, 0
    while parser.header is None and taken < len(data):
        if taken == arrived:
            arrived += len(data) if pieces is None else pieces.randint(1, 40)
        assert parser.wanted > 0
        ahead = data[taken : min(arrived, taken + parser.wanted)]
        belonging = parser.belonging(ahead)
        assert 0 < belonging <= len(ahead)
        parser.feed(ahead[:belonging])
        taken += belonging
    return parser.header, taken


@pytest.mark.parametrize(
    ("data", "source", "destination"),
    [
        (LINE, ("192.0.2.1", 56324), ("198.51.100.2", 443)),
        (b"PROXY TCP6 2001:DB8:0:0:0:0:0:1 ::1 0 65535\r\n", ("2001:db8::1", 0, 0, 0), ("::1", 65535, 0, 0)),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", ("::ffff:192.0.2.1", 1, 0, 0), ("::1", 2, 0, 0)),
        (b"PROXY UNKNOWN\r\n", None, None),
        (b"PROXY UNKNOWN 192.0.2.1 whatever\r\n", None, None),
        (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", None, None),
        (binary(V4), ("192.0.2.1", 56324), ("198.51.100.2", 443)),
        (binary(V4, family=0x12), ("192.0.2.1", 56324), ("198.51.100.2", 443)),
        (binary(V6, family=0x21), ("2001:db8::1", 1, 0, 0), ("::1", 65535, 0, 0)),
        (binary(b"/run/a".ljust(108, b"\0") + bytes(108), family=0x31), "/run/a", ""),
        (binary(b"\0name".ljust(108, b"\0") + b"\xff".ljust(108, b"x"), family=0x32), b"\0name", "\udcff" + "x" * 107),
        (binary(b"", family=0, command=0x20), None, None),
        (binary(V4, command=0x20), None, None),
        (binary(b"not a family's", family=0xFF, command=0x20), None, None),
        (binary(b"", family=0), None, None),
        (binary(b"any", family=0x10), None, None),
        (binary(b"any", family=0x01), None, None),
    ],
)
def test_header(data: bytes, source: Any, destination: Any) -> None:
    """Each kind of header gives its addresses, in whatever pieces it comes, and nothing behind it is taken."""
    for pieces in (None, random.Random(1), random.Random(2)):
        header, taken = read(data + b"\r\n payload", pieces)
        assert header is not None
        assert (header.source, header.destination, taken) == (source, destination, len(data))
        assert header.version == (1 if data.startswith(b"PROXY") else 2)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"X",
        b"\r\nX",
        b"PROXY\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n",
        b"PROXY  TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 \r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
        b"PROXY TCP4 192.0.2.01 198.51.100.2 56324 443\r\n",
        b"PROXY TCP4 192.0.2 198.51.100.2 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1\0 198.51.100.2 56324 443\r\n",
        b"PROXY TCP4 ::1 ::1 56324 443\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.2 56324 443\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 056 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 +56 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 5_6 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 \u0665 443\r\n".encode(),
        b"PROXY UDP4 192.0.2.1 198.51.100.2 56324 443\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY UNKNOWN " + b"f" * 93,
        binary(V4, command=0x11),
        binary(V4, command=0x22),
        binary(V4, family=0x41),
        binary(V4, family=0x13),
        binary(V4[:-1]),
        binary(V4, family=0x21),
        binary(V4, family=0x31),
        binary(V4 + b"\x04"),
        binary(V4 + b"\x04\0\1"),
        binary(V4 + tlv(3, b"123")),
        binary(V4 + tlv(3, b"1234")),
    ],
)
def test_no_header(data: bytes) -> None:
    """What is no header, or not exactly one, is an error at the latest when it is complete."""
    with pytest.raises(HeaderError):
        read(data)
    with pytest.raises(HeaderError):
        read(data, random.Random(3))


def test_tlvs() -> None:
    """TLVs come through in their order, the first of a type is found by it, and a right checksum passes."""
    assert crc32c(b"123456789") == 0xE3069283  # the check value that catalogues of checksums give
    values = tlv(2, b"example.org") + tlv(0xE1, b"") + tlv(0xE1, b"again")
    unsummed = binary(V4 + values + tlv(3, bytes(4)))
    header, _ = read(unsummed[:-4] + struct.pack("!I", crc32c(unsummed)))
    assert header is not None
    assert [kind for kind, _ in header.tlvs] == [2, 0xE1, 0xE1, 3]
    assert (header.tlv(2), header.tlv(0xE1), header.tlv(5)) == (b"example.org", b"", None)


def test_longest_header() -> None:
    """A header may have 65,551 bytes; one byte at a time, and without looking at it again and again."""
    data = binary(V4 + tlv(4, bytes(65535 - 12 - 3)))
    parser = HeaderParser()
    for index in range(len(data)):
        assert parser.header is None
        assert parser.belonging(data[index : index + 1]) == 1
        parser.feed(data[index : index + 1])
    assert parser.header == ProxyHeader(2, ("192.0.2.1", 56324), ("198.51.100.2", 443), ((4, bytes(65520)),))


# -- the specification, read a second time and written in another way: the whole header at once


def reference(data: bytes) -> tuple[int, Any] | None:
    """Length of a valid header and its client; None if there is none."""
    try:
        return _reference_line(data) if data[:1] == b"P" else _reference_binary(data)
    except (ValueError, IndexError, struct.error):
        return None


def _reference_line(data: bytes) -> tuple[int, Any]:
    line = data[: data.index(b"\n", 0, 107) + 1]
    words = line[: line.index(b"\r\n")].decode("latin-1").split(" ")
    if words[:2] == ["PROXY", "UNKNOWN"]:
        return len(line), None
    start, family, source, destination, *ports = words
    if start != "PROXY" or [str(int(port)) for port in ports] != ports or len(ports) != 2:
        raise ValueError(line)
    if "%" in source + destination or any(int(port) not in range(65536) for port in ports):
        raise ValueError(line)
    address = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}.get(family, int)
    address(destination)
    return len(line), (address(source), int(ports[0]))


def _reference_binary(data: bytes) -> tuple[int, Any]:
    signature, command, family, size = struct.unpack_from("!12sBBH", data)
    if signature != SIGNATURE or command not in {0x20, 0x21} or len(data) < 16 + size:
        raise ValueError(data)
    block = data[16 : 16 + size]
    if command == 0x20 or family in {0x00, 0x01, 0x02, 0x10, 0x20, 0x30}:
        return 16 + size, None
    layout = {0x11: "!4s4sHH", 0x12: "!4s4sHH", 0x21: "!16s16sHH", 0x22: "!16s16sHH", 0x31: "!108s108s"}
    layout[0x32] = layout[0x31]
    fields = struct.unpack_from(layout.get(family, "!70000s"), block)
    rest = block[struct.calcsize(layout[family]) :]
    while rest:
        kind, length = struct.unpack_from("!BH", rest)
        struct.unpack_from(f"{length}s", rest, 3)
        if kind == 3:
            at = 16 + size - len(rest) + 3
            if struct.unpack_from("!I", rest, 3)[0] != crc32c(data[:at] + bytes(4) + data[at + 4 : 16 + size]):
                raise ValueError(rest)
            struct.unpack("4s", rest[3 : 3 + length])
        rest = rest[3 + length :]
    if family in {0x31, 0x32}:
        path = fields[0].partition(b"\0")[0]
        return 16 + size, path.ljust(108, b"\0") if path else fields[0]
    return 16 + size, (ipaddress.ip_address(fields[0]), fields[2])


def comparable(source: Any) -> Any:
    if isinstance(source, str | bytes):
        path = source if isinstance(source, bytes) else source.encode("utf-8", "surrogateescape")
        return path.ljust(108, b"\0")
    return source if source is None else (ipaddress.ip_address(source[0]), source[1])


def some_header(draw: random.Random) -> bytes:
    kind = draw.randrange(7)
    block = draw.choice([V4, V6, inet("10.0.0.1", "10.0.0.2", draw.randrange(65536), 80), bytes(range(216))])
    family = {12: 0x11, 36: 0x21, 216: 0x31}[len(block)]
    if kind == 0:
        return LINE
    if kind == 1:
        return b"PROXY TCP6 %x:: ::%x %d %d\r\n" % tuple(draw.randrange(65536) for _ in range(4))
    if kind == 2:
        return b"PROXY UNKNOWN" + draw.choice([b"", b" x"]) + b"\r\n"
    if kind == 3:
        return binary(block, family, 0x20 + draw.randrange(2))
    if kind == 4:
        return binary(block, draw.randrange(0x40), 0x21)
    values = b"".join(tlv(draw.choice([1, 2, 4, 5, 0x20, 0xE0]), draw.randbytes(draw.randrange(9))) for _ in range(2))
    data = binary(block + values + tlv(3, bytes(4)), family)
    return data[:-4] + struct.pack("!I", crc32c(data)) if kind == 5 else data


def mutated(data: bytes, draw: random.Random) -> bytes:
    raw = bytearray(data)
    for _ in range(draw.choice([0, 1, 1, 2, 4])):
        at = draw.randrange(len(raw))
        action = draw.randrange(5)
        if action == 0:
            raw[at] = draw.randrange(256)
        elif action == 1:
            raw[at] = draw.choice(b"0129afx:.% \r\n\0P+_")
        elif action == 2:
            raw[at] ^= 1 << draw.randrange(8)
        elif action == 3:
            raw.insert(at, draw.choice(b"0129a:. \r\n\0"))
        elif len(raw) > 1:
            del raw[at : at + draw.choice([1, 1, len(raw)])]
            raw = raw or bytearray(b"P")
    return bytes(raw) + draw.choice([b"", b"\r\n", b"GET / HTTP/1.0\r\n\r\n", LINE])


def fuzz(count: int, seed: int) -> tuple[int, int]:
    """Compare with the second reading; returns how many headers were accepted and how many were not."""
    draw = random.Random(seed)
    accepted = 0
    for _ in range(count):
        data = mutated(some_header(draw), draw)
        expected = reference(data)
        try:
            header, taken = read(data, draw)
        except HeaderError:
            header, taken = None, 0
        if header is None:
            assert expected is None, data
        else:
            accepted += 1
            assert expected is not None, data
            assert (taken, comparable(header.source)) == expected, data
    return accepted, count - accepted


def test_fuzzed_headers() -> None:
    """Damaged headers never crash the parser nor give a wrong address, and what follows them is never taken."""
    accepted, refused = fuzz(5_000, seed=1)
    assert min(accepted, refused) > 1_000


@pytest.mark.soak
def test_many_fuzzed_headers() -> None:
    """The same, for 200,000 of them."""
    accepted, refused = fuzz(200_000, seed=2)
    assert min(accepted, refused) > 40_000


# -- the `proxy-protocol` package


@given(
    version=st.sampled_from([1, 2]),
    source=st.ip_addresses(v=4) | st.ip_addresses(v=6),
    ports=st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    tlvs=st.dictionaries(st.integers(0, 255).filter(lambda kind: kind != 3), st.binary(max_size=20), max_size=4),
)
def test_headers_of_another_implementation(
    version: int, source: Any, ports: tuple[int, int], tlvs: dict[int, bytes]
) -> None:
    """What the package `proxy-protocol` writes is read as it was meant."""
    result = pytest.importorskip("proxyprotocol.result")
    kind = result.ProxyResultIPv4 if source.version == 4 else result.ProxyResultIPv6
    meant = kind(
        (source, ports[0]),
        (source, ports[1]),
        protocol=socket.SOCK_STREAM,
        tlv=pytest.importorskip("proxyprotocol.tlv").ProxyProtocolTLV(init=tlvs),
    )
    writer = pytest.importorskip(f"proxyprotocol.v{version}")
    header, _ = read(getattr(writer, f"ProxyProtocolV{version}")().pack(meant))
    assert header is not None
    assert comparable(header.source) == (source, ports[0])
    assert comparable(header.destination) == (source, ports[1])
    assert dict(header.tlvs) == (tlvs if version == 2 else {})


@given(seed=st.integers(0, 2**32))
@settings(max_examples=500)
def test_another_implementation_reads_the_same(seed: int) -> None:
    """A header accepted here is one to the package `proxy-protocol`, too (it accepts more), with the same addresses."""
    detect = pytest.importorskip("proxyprotocol.detect").ProxyProtocolDetect()
    draw = random.Random(seed)
    try:
        header, taken = read(data := mutated(some_header(draw), draw))
    except HeaderError:
        return
    # Of Unix paths it reads ASCII only; and it believes addresses of the protocol UNSPEC.
    if header is not None and isinstance(header.source, tuple):
        theirs = detect.unpack(data[:taken])
        for ours, other in ((header.source, theirs.peername), (header.destination, theirs.sockname)):
            # ::10.0.0.69 and ::a00:45 are two ways to write one address.
            assert (ipaddress.ip_address(ours[0]), *ours[1:]) == (ipaddress.ip_address(other[0]), *other[1:])
        assert dict(header.tlvs) == dict(theirs.tlv)


# -- who is trusted


@pytest.mark.parametrize(
    ("names", "trusted", "others"),
    [
        ((), [("127.0.0.1", 1), ("127.9.9.9", 1), ("::1", 1, 0, 0), "", "/run/a"], [("10.0.0.1", 1), ("::2", 1, 0, 0)]),
        (("10.0.0.0/8",), [("10.1.2.3", 1), ("::ffff:10.1.2.3", 1, 0, 0)], [("11.0.0.1", 1), ("127.0.0.1", 1), ""]),
        (["fd00::/8", "192.0.2.7"], [("fd00::1", 1, 0, 0), ("192.0.2.7", 1)], [("192.0.2.8", 1), ("fe80::1", 1, 0, 2)]),
        (["unix"], ["", "/run/a", b"\0a"], [("127.0.0.1", 1)]),
        (["fe80::/10"], [("fe80::1%lo", 1, 0, 1)], [("::1", 1, 0, 0)]),
    ],
)
def test_trusted_proxies(names: Any, trusted: list[Any], others: list[Any]) -> None:
    """Networks and addresses of both families, and Unix peers by name; nothing means this host."""
    proxies = TrustedProxies(names)
    assert [address in proxies for address in trusted] == [True] * len(trusted)
    assert [address in proxies for address in others] == [False] * len(others)


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        ("10.0.0.0/8", TypeError, "sequence"),
        ([10], TypeError, "got 10"),
        (["proxy.example.org"], ValueError, "'proxy.example.org'"),
        (["10.0.0.1/8"], ValueError, "host bits"),
    ],
)
def test_wrong_trusted_proxies(names: Any, error: type[Exception], words: str) -> None:
    """A wrong name is an error that shows it."""
    with pytest.raises(error, match=words):
        TrustedProxies(names)
