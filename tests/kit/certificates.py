"""One authority for all tests: contexts of servers and of clients, and files."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path

import trustme

import asyncserver

_NAMES = ("localhost", "127.0.0.1")


_AUTHORITY = trustme.CA()  # made here, and not when first asked for: threads ask at once


def authority() -> trustme.CA:
    """What clients trust."""
    return _AUTHORITY


@functools.cache
def server_context() -> asyncserver.TLSContext:
    """TLS for servers, with the defaults that users get."""
    with authority().issue_cert(*_NAMES).private_key_and_cert_chain_pem.tempfile() as path:
        return asyncserver.tls_context(path)


def plain_context() -> ssl.SSLContext:
    """A new context for servers, as programs without asyncserver make it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*_NAMES).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    """A new context for clients who trust the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    return context


def write_files(folder: Path) -> None:
    """Write a server's chain and key, apart and together, and the authority that signed them, into a folder."""
    certificate = authority().issue_cert(*_NAMES)
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(folder / "chain.pem"), append=True)
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    authority().cert_pem.write_to_path(str(folder / "ca.pem"))
