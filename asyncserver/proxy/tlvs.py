"""What the further fields (TLVs) of a PROXY header say. Values in, meanings out.

"Section" refers to the specification, https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt.
A receiver may ignore them, or interpret them (section 2.2). So a value that is not what its
section says reads as None, as if it were not there, and the header counts all the same: part of
it is the client's own (the name it asked for), which must not get a proxy refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["ProxyTLS"]

ALPN, AUTHORITY, UNIQUE_ID, TLS = 0x01, 0x02, 0x05, 0x20
# Section 2.2.6: inside of TLS.
_VERSION, _COMMON_NAME, _CIPHER = 0x21, 0x22, 0x23
_BY_TLS, _CERTIFICATE = 0x01, 0x02 | 0x04  # in this connection, or in the session that it resumes
_FIXED = struct.Struct("!BI")

_LONGEST_ID = 128  # section 2.2.5

# In the range for applications, with a subtype in the first byte:
# https://docs.aws.amazon.com/elasticloadbalancing/latest/network/edit-target-group-attributes.html
AWS, _AWS_VPCE_ID = 0xEA, 0x01
# https://learn.microsoft.com/azure/private-link/private-link-service-overview
AZURE, _AZURE_LINKID = 0xEE, 0x01


@dataclass(frozen=True, slots=True)
class ProxyTLS:
    """How the client has connected to the proxy by TLS (section 2.2.6).

    Example::

        tls = stream.proxy_header.tls if stream.proxy_header else None
        if tls and tls.verified:
            print("this is", tls.client_cn)

    Attributes:
        version: such as "TLSv1.3"; None if the proxy has not said.
        cipher: such as "TLS_AES_256_GCM_SHA384"; None likewise.
        verified: whether the client has given a certificate, and the proxy found it good. Both:
            without a certificate HAProxy reports that verifying it has not failed.
        client_cn: the common name in the certificate; None without one. It tells who the client
            is only if `verified`.
    """

    version: str | None
    cipher: str | None
    verified: bool
    client_cn: str | None


def split(data: bytes) -> list[tuple[int, bytes]] | None:
    """Return pairs of type and value; None if the last one is cut off."""
    found, start = [], 0
    while start < len(data):
        value = start + 3
        end = value + int.from_bytes(data[start + 1 : value], "big")
        if end > len(data):
            return None
        found.append((data[start], data[value:end]))
        start = end
    return found


def tls(value: bytes | None) -> ProxyTLS | None:
    """Interpret a value of type TLS. It comes for clients without TLS, too: a bit tells."""
    if value is None or len(value) < _FIXED.size:
        return None
    bits, verify = _FIXED.unpack_from(value)
    fields = split(value[_FIXED.size :])
    if fields is None or not bits & _BY_TLS:
        return None
    known = dict(reversed(fields))  # the first of a type, as everywhere
    certified = bool(bits & _CERTIFICATE)
    return ProxyTLS(
        version=text(known.get(_VERSION)),
        cipher=text(known.get(_CIPHER)),
        verified=certified and verify == 0,
        client_cn=text(known.get(_COMMON_NAME)) if certified else None,
    )


def text(value: bytes | None) -> str | None:
    """Decode text; None if it is none."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def unique_id(value: bytes | None) -> bytes | None:
    """Interpret a value of type UNIQUE_ID."""
    return None if value is None or len(value) > _LONGEST_ID else value


def aws_vpce_id(value: bytes | None) -> str | None:
    """Interpret a value of type AWS."""
    return text(value[1:]) if value and value[0] == _AWS_VPCE_ID else None


def azure_linkid(value: bytes | None) -> int | None:
    """Interpret a value of type AZURE. Its number is little-endian, unlike all else in a header."""
    if value is None or len(value) != 5 or value[0] != _AZURE_LINKID:
        return None
    return int.from_bytes(value[1:], "little")
