"""What the further fields of a PROXY header say."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from asyncserver import ProxyHeader, ProxyTLS

MEANINGS = ("tls", "alpn", "authority", "unique_id", "aws_vpce_id", "azure_linkid")


def header(*tlvs: tuple[int, bytes]) -> ProxyHeader:
    return ProxyHeader(2, ("192.0.2.1", 1), ("192.0.2.2", 2), tlvs)


def tls(bits: int, verify: int, *fields: tuple[int, bytes]) -> tuple[int, bytes]:
    inside = b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in fields)
    return 0x20, struct.pack("!BI", bits, verify) + inside


VERSION, NAME, CIPHER = (0x21, b"TLSv1.3"), (0x22, "Zoë".encode()), (0x23, b"TLS_AES_128_GCM_SHA256")


@pytest.mark.parametrize(
    ("name", "tlv", "meaning"),
    [
        ("alpn", (1, b"h2"), "h2"),
        ("alpn", (1, b"\xaa\xaa"), None),
        ("authority", (2, "bücher.example".encode()), "bücher.example"),
        ("authority", (2, b"\xff.example"), None),
        ("authority", (2, b""), ""),
        ("unique_id", (5, b"\0\xff"), b"\0\xff"),
        ("unique_id", (5, bytes(128)), bytes(128)),
        ("unique_id", (5, bytes(129)), None),
        ("aws_vpce_id", (0xEA, b"\1vpce-08d2bf15fac5001c9"), "vpce-08d2bf15fac5001c9"),
        ("aws_vpce_id", (0xEA, b"\2vpce-08d2bf15fac5001c9"), None),
        ("aws_vpce_id", (0xEA, b""), None),
        ("azure_linkid", (0xEE, b"\1\xa1\xb2\xc3\x04"), 0x04C3B2A1),
        ("azure_linkid", (0xEE, b"\2\xa1\xb2\xc3\x04"), None),
        ("azure_linkid", (0xEE, b"\1\xa1\xb2\xc3"), None),
        ("azure_linkid", (0xEE, b"\1\xa1\xb2\xc3\x04\0"), None),
    ],
)
def test_meaning(name: str, tlv: tuple[int, bytes], meaning: Any) -> None:
    """Each known field has its meaning; a value that is not as specified has none, and stays readable."""
    found = header((0xE0, b"x"), tlv)
    assert getattr(found, name) == meaning
    assert found.tlv(tlv[0]) == tlv[1]
    assert {other: getattr(found, other) for other in MEANINGS if other != name} == dict.fromkeys(
        {*MEANINGS} - {name}, None
    )


def test_without_fields() -> None:
    """Nothing said, nothing meant."""
    assert [getattr(header(), name) for name in MEANINGS] == [None] * len(MEANINGS)


@pytest.mark.parametrize(
    ("tlv", "meaning"),
    [
        (tls(1, 1, VERSION, CIPHER), ProxyTLS("TLSv1.3", CIPHER[1].decode(), verified=False, client_cn=None)),
        (tls(1, 0, VERSION), ProxyTLS("TLSv1.3", None, verified=False, client_cn=None)),
        (tls(1, 0), ProxyTLS(None, None, verified=False, client_cn=None)),
        (tls(3, 0, VERSION, NAME), ProxyTLS("TLSv1.3", None, verified=True, client_cn="Zoë")),
        (tls(5, 0, NAME), ProxyTLS(None, None, verified=True, client_cn="Zoë")),
        (tls(7, 18, NAME, (0x22, b"b")), ProxyTLS(None, None, verified=False, client_cn="Zoë")),
        (tls(3, 0, (0x22, b"\xff")), ProxyTLS(None, None, verified=True, client_cn=None)),
        (tls(1, 0, NAME), ProxyTLS(None, None, verified=False, client_cn=None)),
        (tls(0, 0, VERSION, NAME), None),
        (tls(6, 0, NAME), None),
        ((0x20, b"\1\0\0\0"), None),
        ((0x20, b""), None),
        ((0x20, tls(3, 0, NAME)[1][:-1]), None),
        ((0x20, tls(3, 0, NAME)[1] + b"\x21"), None),
    ],
)
def test_tls(tlv: tuple[int, bytes], meaning: ProxyTLS | None) -> None:
    """A bit says whether the client came by TLS; only a certificate that it gave verifies it.

    HAProxy's field is there for plain clients too, and reports 0, no error, where there was no certificate.
    """
    assert header(tlv).tls == meaning


def test_any_bytes() -> None:
    """Whatever a proxy writes there, reading it raises nothing."""
    draw = random.Random(1)
    kinds = (1, 2, 5, 0x20, 0xEA, 0xEE)
    meant = 0
    for _ in range(5_000):
        values = [draw.randbytes(draw.randrange(12)), tls(draw.randrange(8), draw.randrange(2), VERSION, NAME)[1]]
        raw = bytearray(draw.choice(values))
        if raw:
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        found = header((draw.choice(kinds), bytes(raw)))
        meant += any(getattr(found, name) is not None for name in MEANINGS)
    assert 1_000 < meant < 5_000
