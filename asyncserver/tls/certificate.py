"""A certificate as clients get it: its names, the kind of its key, and until when it is valid.

Only OpenSSL decides which of a file's certificates is sent (`sent_certificate`). Python's ssl shows
the contents only of a peer's certificate, and only after it was verified.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime

# Tags of X.690 (8.1.2) and RFC 5280 (4.1, 4.2.1.6).
_SEQUENCE, _UTC_TIME, _EXTENSIONS, _DNS_NAME, _IP_ADDRESS = 0x30, 0x17, 0xA3, 0x82, 0x87
_SUBJECT_ALT_NAME = (0x06, b"\x55\x1d\x11")  # the object identifier 2.5.29.17

# Turns that end a handshake: TLS 1.3 needs two each, TLS 1.2 and a HelloRetryRequest one more.
_TURNS = 4


@dataclass(frozen=True)
class Certificate:
    """The contents of a certificate.

    Attributes:
        names: DNS names, in lower case, perhaps with a `*` as the first label. The subject's common
            name does not count (RFC 9525).
        addresses: IP addresses, packed.
        key: the algorithm of its key, an object identifier (RFC 5280, 4.1.2.7). A context
            holds one certificate of each.
        expires: when its validity ends.
    """

    names: tuple[str, ...]
    addresses: tuple[bytes, ...]
    key: bytes
    expires: datetime

    def __str__(self) -> str:
        """Show for which names, and until when."""
        return f"{', '.join(self.names) or 'no DNS name'}; until {self.expires:%Y-%m-%d %H:%M} UTC"


def sent_certificate(context: ssl.SSLContext) -> bytes:
    """Return the certificate (DER) that a server with this context sends, by a handshake in memory.

    OpenSSL chooses it among what a file holds by undocumented rules (comments, indented lines, Bag
    Attributes, a byte order mark, lines of more than 254 bytes), and Python's ssl does not show it.

    Raises:
        ssl.SSLError: no client with this OpenSSL's defaults can have it.
    """
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    asking.verify_mode = ssl.CERT_NONE
    asking.set_ciphers("ALL:@SECLEVEL=0")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(_TURNS):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    certificate = client.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def read_certificate(der: bytes) -> Certificate:
    """Read a certificate that OpenSSL has accepted; raises ValueError if it is none."""
    try:
        (_, certificate), *_ = _elements(der)
        signed = _elements(_elements(certificate)[0][1])
        # Sequences in it: the algorithm, the issuer, the validity, the subject, its key.
        _, _, validity, _, key = [content for tag, content in signed if tag == _SEQUENCE]
        extensions = [content for tag, content in signed if tag == _EXTENSIONS]
        names = _alternative_names(extensions)
        return Certificate(
            tuple(name.decode("latin-1").lower() for tag, name in names if tag == _DNS_NAME),
            tuple(name for tag, name in names if tag == _IP_ADDRESS),
            _elements(_elements(key)[0][1])[0][1],
            _time(*_elements(validity)[1]),
        )
    except (IndexError, ValueError) as exc:
        raise ValueError(f"no certificate: {der[:20]!r}...") from exc


def _alternative_names(extensions: list[bytes]) -> list[tuple[int, bytes]]:
    names: list[tuple[int, bytes]] = []
    for one in extensions:
        for _, extension in _elements(_elements(one)[0][1]):
            identifier, *_, (_, value) = _elements(extension)
            if identifier == _SUBJECT_ALT_NAME:
                names += _elements(_elements(value)[0][1])
    return names


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
