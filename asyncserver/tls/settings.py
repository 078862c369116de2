"""What may be given for TLS besides files: key exchange groups, application protocols, ciphers.

What OpenSSL would pass over in silence, or refuse without saying which it was, is an error here.
"""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import Sequence
from typing import Any

# RFC 7301, 3.1: the length of a name is in one byte, that of their list in two.
_LONGEST_NAME, _LONGEST_LIST = 255, 65535
# What separates the parts of such a string: openssl-ciphers(1).
_SEPARATORS = re.compile("[:, ]+")


def checked_groups(groups: Sequence[str]) -> tuple[str, ...]:
    """Return key exchange groups; raises ValueError unless OpenSSL knows each of them."""
    if isinstance(groups, str) or not groups or not all(groups):
        example = '["X25519MLKEM768", "X25519"]'
        raise ValueError(f"groups expects names, the preferred first, such as {example}; got {groups!r}")
    set_groups: Any = getattr(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "set_groups", None)
    if set_groups is None:
        raise ValueError(
            "groups (--tls-groups) needs Python 3.15 or newer, whose ssl can set them; "
            f"this is {sys.version.split()[0]}: leave it out"
        )
    for one in groups:
        try:
            set_groups(one)
        except ssl.SSLError as exc:
            raise ValueError(
                f"{ssl.OPENSSL_VERSION} does not know the group {one!r} of groups={list(groups)!r}; "
                "ssl.SSLContext.get_groups() tells those it knows"
            ) from exc
    return tuple(groups)


def check_password(password: object) -> None:
    """Raise TypeError for what is no password and gives none; the error does not show it."""
    if password is not None and not isinstance(password, str | bytes | bytearray) and not callable(password):
        raise TypeError(f"password expects text, bytes or a function that returns them; got {type(password).__name__}")


def checked_protocols(alpn: Sequence[str]) -> tuple[str, ...]:
    """Return the names of protocols; raises TypeError or ValueError for what ALPN cannot carry."""
    names: Any = alpn
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(one, str) for one in names):
        raise TypeError(f'alpn expects names, the preferred first, such as ["h2", "http/1.1"]; got {alpn!r}')
    for one in alpn:
        if not (one.isascii() and 1 <= len(one) <= _LONGEST_NAME):
            shown = repr(one) if len(one) <= _LONGEST_NAME else f"one of {len(one)} characters"
            raise ValueError(
                f"alpn takes names of 1 to {_LONGEST_NAME} ASCII characters (RFC 7301, 3.1), such as 'h2'; got {shown}"
            )
    if (length := sum(len(one) + 1 for one in alpn)) > _LONGEST_LIST:
        raise ValueError(f"alpn takes names of {_LONGEST_LIST} bytes together (RFC 7301, 3.1); got {length}")
    return tuple(alpn)


def check_ciphers(ciphers: str, minimum_version: ssl.TLSVersion) -> None:
    """Raise TypeError or ValueError unless OpenSSL knows each name, and one is in use."""
    if not isinstance(ciphers, str):
        raise TypeError(
            f"ciphers expects a string as of openssl-ciphers(1), such as 'ECDHE+AESGCM:!aNULL'; got {ciphers!r}"
        )
    if minimum_version == ssl.TLSVersion.TLSv1_3:
        raise ValueError(f"ciphers={ciphers!r} has no effect: these are TLS 1.2's, and the minimum is TLS 1.3")
    for part in _SEPARATORS.split(ciphers):
        # Signs at the beginning take away, or move to the end, and may do so for what is not there.
        if part[:1].isalnum() and "=" not in part and not _selects(f"{part}:@SECLEVEL=0"):
            advice = "its ciphers are of TLS 1.2, and those of TLS 1.3 stay as they are" * part.startswith("TLS_")
            raise ValueError(
                f"{ssl.OPENSSL_VERSION} does not know {part!r} of ciphers={ciphers!r}: "
                + (advice or "`openssl ciphers -s ALL` tells those it knows")
            )
    if not _selects(ciphers):
        raise ValueError(f"ciphers={ciphers!r} leaves none: `openssl ciphers -s 'STRING'` tells what a string selects")


def _selects(ciphers: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(ciphers)
    except ssl.SSLError:
        return False
    return True
