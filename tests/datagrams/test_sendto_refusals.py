"""server.sendto: what cannot be sent, to where, and from where; each error says what was expected."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Any

import pytest

import asyncserver
from tests.kit.datagrams import Place, peer
from tests.kit.handlers import silent_datagram


@pytest.mark.parametrize(
    ("address", "error", "text"),
    [
        ("127.0.0.1:53", TypeError, r"address must be \(host, port\).*; got '127.0.0.1:53'"),
        (["127.0.0.1", 53], TypeError, r"must be \(host, port\)"),
        (None, TypeError, "got None"),
        (("127.0.0.1",), ValueError, r"must be \(host, port\), an IP address and a number; got \('127.0.0.1',\)"),
        (("127.0.0.1", 0), ValueError, "needs the peer's port"),
        (("127.0.0.1", 65536), ValueError, "from 1 to 65535"),
        (("127.0.0.1", -1), ValueError, "from 1 to 65535"),
        (("127.0.0.1", "53"), TypeError, "a number"),
        (("127.0.0.1", True), TypeError, "a number"),
        ((b"127.0.0.1", 53), TypeError, "an IP address"),
        (("localhost", 53), ValueError, r"loop\.getaddrinfo"),
        (("", 53), ValueError, r"loop\.getaddrinfo"),
        (("127.0.0.1\0", 53), ValueError, r"loop\.getaddrinfo"),
        (("::1", 53), ValueError, r"no socket of the server is for IPv6: udp://127\.0\.0\.1"),
        (("::1", 53, 1 << 20, 0), ValueError, "must be"),
        (("fe80::1%nothing0", 53), ValueError, "there is no interface 'nothing0'"),
        (("127.0.0.1%", 53), ValueError, "must be"),
    ],
)
async def test_address_that_cannot_be(udp: Place, address: Any, error: type[Exception], text: str) -> None:
    """The error says what was given and what was expected; nothing is sent."""
    async with udp.serve(silent_datagram) as server:
        with pytest.raises(error, match=text):
            await server.sendto(b"x", address)
        assert server.stats().datagrams_sent == 0


@pytest.mark.parametrize(
    ("local", "error", "text"),
    [
        ("10.99.99.99", ValueError, "no interface of ours has it"),
        (("127.0.0.1", 9), ValueError, "is no IPv4 address of the server: udp://"),
        ("::1", ValueError, "is no IPv4 address of the server"),
        ("0.0.0.0", None, ""),
        (("127.0.0.1", 0), ValueError, "the server's port, or none at all"),
        ("localhost", ValueError, "local_address must be"),
        (5, TypeError, "local_address must be"),
    ],
)
async def test_local_address_that_cannot_be(local: Any, error: type[Exception] | None, text: str) -> None:
    """0.0.0.0 is the server's own, and lets the route choose."""
    async with asyncserver.serve_datagrams(silent_datagram, None, 0) as server:
        with peer("127.0.0.1") as sock:
            with pytest.raises(error, match=text) if error else contextlib.nullcontext():
                await server.sendto(b"x", sock.getsockname(), local)
            assert server.stats().datagrams_sent == (error is None)


async def test_other_address_than_the_one_that_is_bound(udp: Place) -> None:
    """A socket on one address cannot send from another."""
    async with udp.serve(silent_datagram) as server:
        with (
            peer("127.0.0.1") as sock,
            pytest.raises(ValueError, match=r"local_address='127\.0\.0\.9' is no IPv4 addr"),
        ):
            await server.sendto(b"x", sock.getsockname(), "127.0.0.9")
        with pytest.raises(OSError, match=r"no way to .* is there a route") as caught:
            await server.sendto(b"x", ("192.0.2.1", 9))  # from loopback
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("data", ["text", None, 5])
async def test_data_that_is_no_bytes(udp: Place, data: Any) -> None:
    """As for reply()."""
    async with udp.serve(silent_datagram) as server:
        with pytest.raises(TypeError, match=r"sendto\(\) takes bytes; got"):
            await server.sendto(data, ("127.0.0.1", 9))


@pytest.mark.parametrize(
    ("host", "size", "limit"),
    [
        ("127.0.0.1", 65508, "UDP takes at most 65507"),
        ("::1", 65528, "UDP takes at most 65527"),
        ("::ffff:127.0.0.1", 65508, "UDP takes at most 65507"),
    ],
)
async def test_too_large_a_datagram(host: str, size: int, limit: str) -> None:
    """The error says how large one may be, and what to do."""
    async with asyncserver.serve_datagrams(silent_datagram, sock=_socket_for(host)) as server:
        with pytest.raises(OSError, match=f"{size} bytes are too many for one datagram: {limit}; send sev") as caught:
            await server.sendto(bytes(size), (host, 9))
        assert caught.value.errno == errno.EMSGSIZE


def _socket_for(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    if ":" in host:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::" if ":" in host else "0.0.0.0", 0))
    return sock
