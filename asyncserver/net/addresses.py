"""Addresses: how they are parsed, formatted and grouped. Nothing here opens a socket."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Address"]

#: (host, port) of IPv4, (host, port, flowinfo, scope) of IPv6, a Unix socket's path or "" for none,
#: two numbers, (cid, port), of VSOCK: vsock(7).
#: Any, as in the standard library's annotations: a server of one kind knows what it gets.
Address: TypeAlias = Any

# An IPv4 address in an IPv6 one (RFC 4291, 2.5.5.2): an adopted socket for both shows these.
_MAPPED = bytes(10) + b"\xff\xff"
_VSOCK = getattr(socket, "AF_VSOCK", None)
_VSOCK_ANY = 0xFFFFFFFF  # vsock(7): every cid of this machine, or any free port


class Bound(Protocol):
    """An object with a bound socket: a BoundSocket of binding.py."""

    sock: socket.socket


def parse_address(text: str, expected: str = "HOST:PORT") -> tuple[str | None, int]:
    """Parse HOST:PORT, with an IPv6 address in brackets; an empty host means every interface: None.

    Raises:
        ValueError: the text is no such address; the message says what was expected.
    """
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdigit()):
        raise ValueError(f"expected {expected}; got {text!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:  # its last group could be meant as the port
        raise ValueError(f"write an IPv6 address in brackets, [{host}]:{port}; got {text!r}")
    return host or None, int(port)


def format_address(address: Address | None) -> str:
    """Write an address as people do: "[::1]:8080", "@name"; a nameless peer of Unix is "unix"."""
    if isinstance(address, tuple):
        host, port = address[:2]
        if not isinstance(host, str):  # VSOCK's are numbers
            return ":".join("any" if one == _VSOCK_ANY else str(one) for one in (host, port))
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    name = _path(address or "")  # a datagram's may be None
    return (name if name.isprintable() else repr(name)) or "unix"  # the peer must not forge lines


def task_name(address: Address) -> str:
    """Name of the task that serves a peer, for lists of tasks: "tcp 127.0.0.1:50123", "unix"."""
    if isinstance(address, tuple):  # without `format_address()`, to save each connection a call
        host = address[0]
        try:
            return f"tcp [{host}]:{address[1]}" if ":" in host else f"tcp {host}:{address[1]}"
        except TypeError:
            return f"vsock {host}:{address[1]}"
    return f"unix {format_address(address)}" if address else "unix"


def url_of(bound: Bound) -> str:
    """URL at which a socket is reached: "tcp://127.0.0.1:8080", "unix:/run/app.sock"."""
    datagram = bound.sock.type == socket.SOCK_DGRAM
    address = bound.sock.getsockname()
    if bound.sock.family == _VSOCK:
        return f"vsock://{format_address(address)}"
    if isinstance(address, tuple):
        return f"{'udp' if datagram else 'tcp'}://{format_address(address)}"
    return f"{'unix-datagram' if datagram else 'unix'}:{_path(address)}"


def _path(name: str | bytes) -> str:
    """Format a Unix socket's name; abstract ones begin with @, as `ss` writes them."""
    return (name.decode(errors="replace") if isinstance(name, bytes) else name).replace("\0", "@")


def label_of(bound: Iterable[Bound]) -> str:
    """A server's label in metrics and log records: its sockets' URLs, joined by commas."""
    return ",".join(map(url_of, bound))


def distinct_labels(labels: Iterable[str]) -> list[str]:
    """Number the labels of servers with the same URL: they share a socket, inherited twice."""
    distinct: list[str] = []
    for label in labels:
        distinct.append(label if label not in distinct else f"{label}#{len(distinct) + 1}")
    return distinct


def unmapped(host: str) -> str:
    """Return the IPv4 address inside an IPv4-mapped IPv6 address; any other host unchanged."""
    packed = _packed(host) if ":" in host else b""
    return socket.inet_ntop(socket.AF_INET, packed[12:]) if packed.startswith(_MAPPED) else host


def host_group(address: Address) -> str:
    """What a limit per host counts as one: an IPv4 address, an IPv6 /64, all Unix peers."""
    if not isinstance(address, tuple):
        return ""
    if not isinstance(address[0], str):  # VSOCK's: a virtual machine
        return str(address[0])
    host = unmapped(address[0])
    if ":" not in host or host.startswith("fe80:"):  # all hosts of a link share fe80::/64
        return host
    # A site has at least a /64 (RFC 6177).
    return socket.inet_ntop(socket.AF_INET6, _packed(host)[:8] + bytes(8))


def _packed(host: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
