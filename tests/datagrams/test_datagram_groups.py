"""Datagrams to many: which multicast groups are heard, and from where answers to them and to broadcasts come."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

import asyncserver
from tests.kit.datagrams import Place
from tests.kit.handlers import upper_datagram
from tests.kit.networks import INTERFACE, IPV6, LINK_LOCAL, in_own_network
from tests.kit.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncserver import Datagram

GROUP = "239.1.2.3"
ON_LOOPBACK = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")


def dual_stack() -> socket.socket:
    """A socket for IPv6 and IPv4, as systemd makes them."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    return sock


@contextlib.contextmanager
def joined_by_another_program() -> Iterator[None]:
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, ON_LOOPBACK)
        yield


async def _heard(place: Place, server: asyncserver.Server, group: str) -> bool:
    """Whether a datagram to the group is answered; what comes after it is, in any case."""
    client = place.client(server)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    client.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    port = server.addresses[0][1]
    client.sock.sendto(b"to many", (group, port))
    client.server = (group if group == server.addresses[0][0] else "127.0.0.1", port)
    client.send(b"next")
    answers = [await client.receive()]
    if answers[0] != b"NEXT":
        answers.append(await client.receive())
    return b"TO MANY" in answers


@pytest.mark.parametrize("kind", ["ipv4", "dual"])
async def test_group_that_another_program_has_joined_is_not_answered(udp: Place, kind: str) -> None:
    """By default the kernel gives a socket on every address what any program of the host has joined: ip(7)."""
    options: dict[str, Any] = {"sock": dual_stack()} if kind == "dual" else {"host": "0.0.0.0", "port": 0}
    with joined_by_another_program():
        async with asyncserver.serve_datagrams(upper_datagram, **options) as server:
            assert not await _heard(udp, server, GROUP)
            assert await _heard(udp, server, "224.0.0.1")  # of all hosts: nobody joins that
            assert await _heard(udp, server, "127.255.255.255")
            server.sockets[0].setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, ON_LOOPBACK)
            assert await _heard(udp, server, GROUP)


async def test_group_that_was_asked_for_is_answered(udp: Place) -> None:
    """Bound to it, a socket wants just that."""
    with joined_by_another_program():
        async with asyncserver.serve_datagrams(upper_datagram, GROUP, 0) as server:
            client = udp.client(server)
            client.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            assert await client.ask(b"to many") == b"TO MANY"


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("destination", ["127.0.0.1", "127.0.0.9", "127.255.255.255", GROUP])
@pytest.mark.parametrize("kind", ["ipv4", "dual", "mapped"])
async def test_answer_comes_from_an_address_of_ours(udp: Place, kind: str, destination: str, *, early: bool) -> None:
    """Whatever the datagram was sent to, also before the socket was ours; `local_address` tells which."""
    seen: list[Any] = []

    async def handler(datagram: Datagram) -> bytes:
        seen.append(datagram.local_address)
        return datagram.data.upper()

    if kind == "ipv4":
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0", 0))
    elif kind == "mapped":
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("::ffff:0.0.0.0", 0))
    else:
        sock = dual_stack()
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, ON_LOOPBACK)
    port = sock.getsockname()[1]
    serving = asyncserver.serve_datagrams(handler, sock=sock)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        client.bind(("127.0.0.1", 0))
        if early:
            client.sendto(b"question", (destination, port))
        async with serving:
            if not early:
                client.sendto(b"question", (destination, port))
        answer, source = client.recvfrom(100)  # the drain has waited for it
    expected = destination if destination in {"127.0.0.1", "127.0.0.9"} else "127.0.0.1"
    assert (answer, source) == (b"QUESTION", (expected, port))
    assert seen == [(expected, port) if kind == "ipv4" else (f"::ffff:{expected}", port, 0, 0)]


async def _local_addresses(destinations: list[tuple[str, int]]) -> list[tuple[Any, Any]]:
    """Ask each, of a server on every interface; returns what the handler saw, and from where the answer came."""
    seen: list[Any] = []

    async def handler(datagram: Datagram) -> bytes:
        seen.append(datagram.local_address)
        return b"answer"

    sources = []
    async with asyncserver.serve_datagrams(handler, "::", 0) as server:
        for host, scope in destinations:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
                client.setblocking(False)
                client.sendto(b"question", (host, server.addresses[0][1], 0, scope))
                async with asyncio.timeout(PATIENCE):
                    _, source = await asyncio.get_running_loop().sock_recvfrom(client, 100)
            sources.append(source)
    return list(zip(seen, sources, strict=True))


@in_own_network
def test_local_address_has_its_scope_and_is_no_group() -> None:
    """It is where the answer comes from, so that it can be used for another."""
    index = socket.if_nametoindex(INTERFACE)
    destinations = {(LINK_LOCAL, index): LINK_LOCAL, ("ff02::1", index): LINK_LOCAL, (IPV6, 0): IPV6}
    found = asyncio.run(_local_addresses(list(destinations)))
    assert [local[0] for local, _ in found] == list(destinations.values())
    assert [local[3] for local, _ in found] == [index, index, 0]
    assert [local for local, _ in found] == [source for _, source in found]
