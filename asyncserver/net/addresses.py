"""Addresses: how they are read, format_address and grouped. Nothing here opens a socket.

parse_address   "[::1]:8080", as people write it       ("::1", 8080)
format_address           a peer or a place, for a log line      "[::1]:8080", "/run/app.sock", "@name", "unix"
url_of          where a socket is reached              "tcp://[::1]:8080", "unix:/run/app.sock"
label_of        the same of all sockets of a server    "tcp://127.0.0.1:8080,tcp://[::1]:8080"
host_group      whom a limit per host counts           "192.0.2.7", "2001:db8:0:1::"
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Address"]

#: (host, port) of IPv4, (host, port, flowinfo, scope) of IPv6, or a Unix socket's path ("" when it has none).
#: Any, as in the standard library's own annotations: whoever serves one kind knows which it gets.
Address: TypeAlias = Any

# An IPv4 address in an IPv6 one (RFC 4291, 2.5.5.2), as sockets for both, made by somebody else, show them.
_MAPPED = bytes(10) + b"\xff\xff"


class Bound(Protocol):
    """What has a bound socket: a BoundSocket of binding.py."""

    sock: socket.socket


def parse_address(text: str, expected: str = "HOST:PORT") -> tuple[str | None, int]:
    """Read HOST:PORT, with an IPv6 address in brackets; an empty host, returned as None, is every interface.

    Raises:
        ValueError: it is no such thing, with what was expected, or how to write it.
    """
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdigit()):
        raise ValueError(f"expected {expected}; got {text!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:  # its last group could be the port
        raise ValueError(f"write an IPv6 address in brackets, [{host}]:{port}; got {text!r}")
    return host or None, int(port)


def format_address(address: Address | None) -> str:
    """Write an address as people do; a nameless peer of a Unix socket is "unix"."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    name = _path(address or "")  # None, of a datagram
    return (name if name.isprintable() else repr(name)) or "unix"  # the peer has chosen it: it must not forge lines


def task_name(address: Address) -> str:
    """Name the task that serves a peer, for those who list tasks: "tcp 127.0.0.1:50123", "unix"."""
    if isinstance(address, tuple):  # not by `format_address()`: each connection would pay for the call
        host = address[0]
        return f"tcp [{host}]:{address[1]}" if ":" in host else f"tcp {host}:{address[1]}"
    return f"unix {format_address(address)}" if address else "unix"


def url_of(bound: Bound) -> str:
    """Where a socket is reached: "tcp://127.0.0.1:8080", "unix:/run/app.sock"."""
    datagram = bound.sock.type == socket.SOCK_DGRAM
    address = bound.sock.getsockname()
    if isinstance(address, tuple):
        return f"{'udp' if datagram else 'tcp'}://{format_address(address)}"
    return f"{'unix-datagram' if datagram else 'unix'}:{_path(address)}"


def _path(name: str | bytes) -> str:
    """Write a Unix socket's name; abstract ones with @, as `ss` does."""
    return (name.decode(errors="replace") if isinstance(name, bytes) else name).replace("\0", "@")


def label_of(bound: Iterable[Bound]) -> str:
    """Where a server is reached, as metrics and log records have it; several are joined by commas."""
    return ",".join(map(url_of, bound))


def distinct_labels(labels: Iterable[str]) -> list[str]:
    """Tell servers apart that are reached at one place: they have the same socket, inherited twice."""
    distinct: list[str] = []
    for label in labels:
        distinct.append(label if label not in distinct else f"{label}#{len(distinct) + 1}")
    return distinct


def unmapped(host: str) -> str:
    """Write the address of an IPv4 peer as one, also where a socket for both kinds shows it in an IPv6 address."""
    packed = _packed(host) if ":" in host else b""
    return socket.inet_ntop(socket.AF_INET, packed[12:]) if packed.startswith(_MAPPED) else host


def host_group(address: Address) -> str:
    """Whom a limit per host counts: an IPv4 address, an IPv6 network of 64 bits; all Unix peers are one."""
    if not isinstance(address, tuple):
        return ""
    host = unmapped(address[0])
    if ":" not in host or host.startswith("fe80:"):  # on a link all share the network, and nobody has more of it
        return host
    return socket.inet_ntop(socket.AF_INET6, _packed(host)[:8] + bytes(8))  # what one site has at least: RFC 6177


def _packed(host: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
