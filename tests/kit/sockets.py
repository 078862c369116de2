"""Plain blocking sockets as clients, which give up after a while."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from pathlib import Path
from typing import Any

from tests.kit.waiting import PATIENCE

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def family_of(address: Any) -> socket.AddressFamily:
    """The family of an address: a path is one of a Unix socket."""
    if not isinstance(address, tuple):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def connect(address: Any, kind: int = socket.SOCK_STREAM, receive_buffer: int | None = None) -> socket.socket:
    """Connect to an address; a number is a port of 127.0.0.1."""
    if isinstance(address, int):
        address = ("127.0.0.1", address)
    sock = socket.socket(family_of(address), kind)
    sock.settimeout(PATIENCE)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def reset(sock: socket.socket) -> None:
    """Break a connection; once closed it stays as it is."""
    if sock.fileno() >= 0:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        sock.close()


def receive_exactly(sock: socket.socket, nbytes: int) -> bytes:
    """Receive so many bytes; fewer only at the end of the stream."""
    data = bytearray()
    while len(data) < nbytes and (chunk := sock.recv(nbytes - len(data))):
        data += chunk
    return bytes(data)


def ask(sock: socket.socket, question: bytes) -> bytes:
    """Send, and receive an answer of the same length."""
    sock.sendall(question)
    return receive_exactly(sock, len(question))


def ask_once(address: Any, kind: int = socket.SOCK_STREAM, question: bytes = b"hello") -> bytes:
    """Send over a connection or socket of its own; returns the first bytes, or the datagram, that come back."""
    with connect(address, kind) as client:
        client.sendall(question)
        return client.recv(99)


def free_port() -> int:
    """A port that nobody has, for streams or for datagrams, and that the system gives to nobody who asks for any."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(max(lowest - 20_000, 1024), lowest)
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.socket(type=socket.SOCK_DGRAM) as udp,
        ):
            udp.bind(("127.0.0.1", port))
            return port
