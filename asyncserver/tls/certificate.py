"""What a certificate's file says: the names that it is for, and until when. OpenSSL has accepted it before.

Python's ssl tells that of a peer's certificate only, and after it was verified.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END", re.DOTALL)  # as OpenSSL reads them

# Tags of X.690 (8.1.2) and RFC 5280 (4.1, 4.2.1.6).
_SEQUENCE, _UTC_TIME, _EXTENSIONS, _DNS_NAME = 0x30, 0x17, 0xA3, 0x82
_SUBJECT_ALT_NAME = (0x06, b"\x55\x1d\x11")  # the object identifier 2.5.29.17


@dataclass(frozen=True)
class Certificate:
    """The first certificate of a file.

    Attributes:
        names: DNS names, in lower case, perhaps with a `*` for their first label. The subject's common name is no
            host's name any more (RFC 9525).
        expires: when its validity ends.
    """

    names: tuple[str, ...]
    expires: datetime


def read_certificate(path: str | os.PathLike[str]) -> Certificate:
    """Read a PEM file's first certificate.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no certificate in it.
    """
    with open(path, "rb") as file:
        found = _PEM.search(file.read())
    try:
        (_, certificate), *_ = _elements(binascii.a2b_base64(found[1] if found else b""))
        signed = _elements(_elements(certificate)[0][1])
        validity = [content for tag, content in signed if tag == _SEQUENCE][2]  # behind the algorithm and the issuer
        extensions = [content for tag, content in signed if tag == _EXTENSIONS]
        return Certificate(_names(extensions), _time(*_elements(validity)[1]))
    except (IndexError, ValueError) as exc:  # it has been replaced since OpenSSL read it
        raise ValueError(f"there is no certificate in {path}") from exc


def _names(extensions: list[bytes]) -> tuple[str, ...]:
    names: list[str] = []
    for one in extensions:
        for _, extension in _elements(_elements(one)[0][1]):
            identifier, *_, (_, value) = _elements(extension)
            if identifier == _SUBJECT_ALT_NAME:
                general = _elements(_elements(value)[0][1])
                names += [name.decode("latin-1").lower() for tag, name in general if tag == _DNS_NAME]
    return tuple(names)


def _time(tag: int, content: bytes) -> datetime:
    """Read a time as RFC 5280 (4.1.2.5) has it; two digits mean a year from 1950 to 2049."""
    text = content.decode()
    if tag == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """Split into tags and contents (X.690, 8.1; tags above 30 do not occur)."""
    found: list[tuple[int, bytes]] = []
    while der:
        length, start = der[1], 2
        if length >= 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[2:start], "big")
        found.append((der[0], der[start : start + length]))
        der = der[start + length :]
    return found
