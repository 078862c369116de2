"""anyio's typed attributes of a connected socket."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any

from anyio.abc import SocketAttribute

if TYPE_CHECKING:
    from collections.abc import Callable


def socket_attributes(sock: socket.socket, peer_address: Any) -> dict[Any, Callable[[], Any]]:
    """Make what `extra()` finds: SocketAttribute's, and TLSAttribute's if the socket has TLS."""
    attributes: dict[Any, Callable[[], Any]] = {
        SocketAttribute.family: lambda: sock.family,
        SocketAttribute.local_address: sock.getsockname,
        SocketAttribute.raw_socket: lambda: sock,
        SocketAttribute.remote_address: lambda: peer_address,
    }
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        attributes[SocketAttribute.local_port] = lambda: sock.getsockname()[1]
    if isinstance(peer_address, tuple):  # the socket's family may differ, behind a proxy
        attributes[SocketAttribute.remote_port] = lambda: peer_address[1]
    if isinstance(sock, ssl.SSLSocket):
        attributes |= _tls_attributes(sock)
    return attributes


def _tls_attributes(sock: ssl.SSLSocket) -> dict[Any, Callable[[], Any]]:
    # A tenth of the import's time, for TLS only.
    from anyio.streams.tls import TLSAttribute  # noqa: PLC0415

    from .contexts import KeyExchangeAttribute, SNIAttribute  # noqa: PLC0415

    def unique() -> bytes | None:
        with contextlib.suppress(ValueError):
            return sock.get_channel_binding("tls-unique")
        return None

    attributes: dict[Any, Callable[[], Any]] = {
        TLSAttribute.alpn_protocol: sock.selected_alpn_protocol,
        TLSAttribute.channel_binding_tls_unique: unique,
        TLSAttribute.cipher: sock.cipher,
        TLSAttribute.peer_certificate: lambda: sock.getpeercert(binary_form=False),
        TLSAttribute.peer_certificate_binary: lambda: sock.getpeercert(binary_form=True),
        TLSAttribute.server_side: lambda: True,
        TLSAttribute.shared_ciphers: sock.shared_ciphers,
        TLSAttribute.ssl_object: lambda: sock,
        TLSAttribute.standard_compatible: lambda: True,
        TLSAttribute.tls_version: sock.version,
    }
    if hasattr(sock, "server_name"):  # its context comes from tls_context()
        attributes[SNIAttribute.server_name] = lambda: sock.server_name
    if (group := getattr(sock, "group", None)) is not None:  # from Python 3.15 on
        attributes[KeyExchangeAttribute.group] = group
    return attributes
