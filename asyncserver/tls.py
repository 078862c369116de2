"""tls_context: a server's side of TLS with today's defaults, that can be read again from its files."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TLSContext", "tls_context"]

_Path: TypeAlias = str | os.PathLike[str]


class TLSContext(ssl.SSLContext):
    """An `ssl.SSLContext` that remembers what it was made from."""

    _arguments: dict[str, Any]

    def reload(self) -> TLSContext:
        """Make another from the same files, as they are now. Raises as `tls_context()`."""
        return tls_context(**self._arguments)


def tls_context(
    certfile: _Path,
    keyfile: _Path | None = None,
    *,
    password: str | None = None,
    client_ca: _Path | None = None,
    alpn: Sequence[str] = (),
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
) -> TLSContext:
    """Make a context for `serve(..., ssl=...)`. `Server.reload_tls()` reads its files again.

    Args:
        certfile: the certificate chain, PEM, the server's own first; it may hold the key as well.
        keyfile: the private key, PEM.
        password: the key's.
        client_ca: certificates of the authorities, PEM, one of which must have signed the client's certificate
            (mutual TLS); None asks clients for none.
        alpn: application protocols to offer, the preferred first (RFC 7301).
        minimum_version: TLS 1.2 unless told otherwise (RFC 8996 retired what came before).

    Raises:
        OSError: a file cannot be read; as ssl.SSLError it does not hold what it should. The message names the file.
    """
    context = TLSContext(ssl.PROTOCOL_TLS_SERVER)
    context._arguments = {
        "certfile": certfile,
        "keyfile": keyfile,
        "password": password,
        "client_ca": client_ca,
        "alpn": tuple(alpn),
        "minimum_version": minimum_version,
    }
    context.minimum_version = minimum_version
    context.options |= ssl.OP_NO_RENEGOTIATION  # costs the server more than the client, and TLS 1.3 has it no more
    files = [str(name) for name in (certfile, keyfile, client_ca) if name is not None]
    for name in files:
        with open(name, "rb"):  # OpenSSL's own error does not say which file it was
            pass
    try:
        # Without a password OpenSSL would ask for one on the terminal, and the server would hang there.
        context.load_cert_chain(certfile, keyfile, password if password is not None else _no_password)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as exc:
        raise ssl.SSLError(
            exc.errno, f"no usable certificate and key in {', '.join(files)}: {exc.strerror or exc}"
        ) from exc
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def _no_password() -> str:
    raise ValueError("the private key is encrypted: give its password to tls_context(password=...)")
