"""serve_datagrams(groups=...): multicast groups that a server joins, hears alone, and leaves at its end."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import asyncserver
from asyncserver.kernel import memberships
from tests.kit.handlers import upper_datagram
from tests.kit.networks import INTERFACE, IPV4, LINK_LOCAL, in_own_network
from tests.kit.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

# Of this process alone: other tests run beside it, on the same loopback.
GROUP, OTHER = (f"239.{number}.{os.getpid() >> 8 & 0xFF}.{os.getpid() & 0xFF}" for number in (77, 78))
LO = socket.if_nametoindex("lo")


def memberships_of(group: str, interface: str) -> int:
    """How many sockets of this network are in a group, as the kernel says: proc_pid_net(5)."""
    total = 0
    if ":" in group:
        for line in Path("/proc/thread-self/net/igmp6").read_text().splitlines():
            _, name, packed, users, *_ = line.split()
            total += int(users) if (name, packed) == (interface, socket.inet_pton(socket.AF_INET6, group).hex()) else 0
        return total
    name = ""
    packed = f"{int.from_bytes(socket.inet_aton(group), 'little'):08X}"
    for line in Path("/proc/thread-self/net/igmp").read_text().splitlines()[1:]:
        if not line.startswith("\t"):
            name = line.split()[1]
        elif name == interface and line.split()[0] == packed:
            total += int(line.split()[1])
    return total


async def heard(server: asyncserver.Server, group: str, interface: str) -> bool:
    """Whether a datagram to the group is answered; what is sent to the server itself after it is, in any case."""
    loop = asyncio.get_running_loop()
    index = socket.if_nametoindex(interface)
    own = "127.0.0.1" if interface == "lo" else IPV4
    family = socket.AF_INET6 if ":" in group else socket.AF_INET
    port = server.addresses[0][1]
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        if family == socket.AF_INET:
            client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("8xi", index))
            client.sendto(b"to many", (group, port))
            client.sendto(b"next", (own, port))
        else:
            client.sendto(b"to many", (group, port, 0, index))
            client.sendto(b"next", ("::1", port) if interface == "lo" else (LINK_LOCAL, port, 0, index))
        answers = [b""]
        while answers[-1] != b"NEXT":
            answers.append(await asyncio.wait_for(loop.sock_recv(client, 100), PATIENCE))
    return b"TO MANY" in answers


@pytest.mark.parametrize("interface", ["lo", str(LO)])
async def test_group_is_heard_until_the_end(interface: str) -> None:
    """By an interface's name or number; no other group is; at the end nobody is in it any more."""
    before = memberships_of(GROUP, "lo")
    async with asyncserver.serve_datagrams(upper_datagram, "0.0.0.0", 0, groups=[f"{GROUP}%{interface}"]) as server:
        assert await heard(server, GROUP, "lo")
        assert not await heard(server, OTHER, "lo")
        assert memberships_of(GROUP, "lo") == before + 1
    assert memberships_of(GROUP, "lo") == before


async def test_protocols_too() -> None:
    """What handles the datagrams makes no difference."""

    class Upper(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data.upper(), addr)

    handler = asyncserver.from_protocol(Upper)
    async with asyncserver.serve_datagrams(handler, "0.0.0.0", 0, groups=[f"{GROUP}%lo"]) as server:
        assert await heard(server, GROUP, "lo")


async def test_socket_for_both_families_and_one_on_the_group() -> None:
    """An adopted one hears groups of IPv4; one that is bound to the group hears it on this interface only."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    async with asyncserver.serve_datagrams(upper_datagram, sock=sock, groups=[f"{GROUP}%lo"]) as server:
        assert await heard(server, GROUP, "lo")
    async with asyncserver.serve_datagrams(upper_datagram, [OTHER, "127.0.0.1"], 0, groups=[f"{OTHER}%lo"]) as server:
        assert await heard(server, OTHER, "lo")


async def test_membership_of_the_sockets_maker_stays() -> None:
    """A group that it has joined is no error, and is not left: the program may go on using the socket."""
    before = memberships_of(GROUP, "lo")
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        joined = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        groups = [f"{GROUP}%lo", f"{OTHER}%lo"]
        async with asyncserver.serve_datagrams(upper_datagram, sock=sock.dup(), groups=groups) as server:
            assert await heard(server, GROUP, "lo")
            assert await heard(server, OTHER, "lo")
        assert memberships_of(GROUP, "lo") == before + 1
        assert memberships_of(OTHER, "lo") == 0


@pytest.mark.parametrize(
    ("groups", "error", "text"),
    [
        ("239.1.2.3", TypeError, "groups must be a sequence of texts"),
        (5, TypeError, "groups must be a sequence of texts"),
        ([5], TypeError, "groups must be texts, each a multicast group.*; got 5"),
        (["10.0.0.1"], ValueError, r"from 224\.0\.0\.0 to 239\.255\.255\.255 or in ff00::/8; got '10\.0\.0\.1'"),
        (["255.255.255.255"], ValueError, "expected a multicast group"),
        (["fe80::1%lo"], ValueError, "expected a multicast group"),
        (["239.1.2.3%"], ValueError, "expected a multicast group"),
        (["239.1.2.3:53"], ValueError, "expected a multicast group"),
        (["group"], ValueError, "expected a multicast group"),
    ],
)
def test_what_is_no_group(groups: Any, error: type[Exception], text: str) -> None:
    """The error comes at once, and says what was expected."""
    with pytest.raises(error, match=text):
        asyncserver.serve_datagrams(upper_datagram, "0.0.0.0", 0, groups=groups)


def test_unix_socket_is_in_no_group(tmp_path: Path) -> None:
    """Also when it is given as a socket: then as the server starts."""
    with pytest.raises(ValueError, match="are for UDP: a Unix socket"):
        asyncserver.serve_datagrams(upper_datagram, path=tmp_path / "a", groups=[GROUP])


async def test_given_socket_stays_open_when_it_cannot_join(tmp_path: Path) -> None:
    """It stays the caller's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "a"))
        with pytest.raises(asyncserver.BindError, match="no socket of the server is for IPv4"):
            await asyncserver.serve_datagrams(upper_datagram, sock=sock, groups=[GROUP])
        assert sock.getsockname() == str(tmp_path / "a")
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(asyncserver.BindError, match="does not hear it"):
            await asyncserver.serve_datagrams(upper_datagram, fd=sock.fileno(), groups=[GROUP])
        assert sock.getsockname()[0] == "127.0.0.1"


async def _fails(host: Any, groups: Sequence[str]) -> asyncserver.BindError:
    with pytest.raises(asyncserver.BindError) as caught:
        await asyncserver.serve_datagrams(upper_datagram, host, 0, groups=groups)
    return caught.value


@pytest.mark.parametrize(
    ("host", "group", "number", "text"),
    [
        ("0.0.0.0", "ff02::114%lo", errno.EAFNOSUPPORT, r"no socket of the server is for IPv6.*, or on ::, too"),
        ("::", "239.1.2.3%lo", errno.EAFNOSUPPORT, r"no socket of the server is for IPv4.*, or on 0\.0\.0\.0, too"),
        ("127.0.0.1", "239.1.2.3%lo", errno.EADDRNOTAVAIL, r"a socket on 127\.0\.0\.1 does not hear it"),
        (
            "0.0.0.0",
            "239.1.2.3%nothing0",
            errno.ENODEV,
            "there is no interface 'nothing0' that speaks IPv4; there are.*lo",
        ),
        ("0.0.0.0", "239.1.2.3%99999", errno.ENODEV, "there is no interface '99999'"),
        ("::", "ff02::114%99999", errno.ENODEV, "there is no interface '99999' that speaks IPv6"),
    ],
)
async def test_group_that_cannot_be_joined(host: str, group: str, number: int, text: str) -> None:
    """BindError, as for an address; what was joined before is left, and nothing stays open."""
    before = memberships_of(OTHER, "lo")
    first = [f"{OTHER}%lo"] if host == "0.0.0.0" else []
    error = await _fails(host, [*first, group])
    assert error.errno == number
    assert str(error).startswith(f"[Errno {number}] cannot join the group {group}: ")
    with pytest.raises(asyncserver.BindError, match=text):
        raise error
    assert memberships_of(OTHER, "lo") == before


@in_own_network
def test_no_route_to_the_group() -> None:
    """Then the interface has to be named; the error says which there are."""
    subprocess.run(["ip", "route", "del", "default"], check=True)
    error = asyncio.run(_fails("0.0.0.0", [GROUP]))
    assert error.errno == errno.ENODEV
    assert f"no route leads to it: name an interface, {GROUP}%NAME; there are lo" in str(error)


@in_own_network
def test_too_many_groups() -> None:
    """igmp_max_memberships of ip(7); none of them stays joined."""
    groups = [f"239.1.3.{number}%{INTERFACE}" for number in range(1, 30)]
    error = asyncio.run(_fails("0.0.0.0", groups))
    assert error.errno == errno.ENOBUFS
    assert "raise net.ipv4.igmp_max_memberships" in str(error)
    assert memberships_of("239.1.3.1", INTERFACE) == 0
    Path("/proc/sys/net/ipv4/igmp_max_memberships").write_text("40")
    asyncio.run(_serve_briefly(groups))


async def _serve_briefly(groups: Sequence[str]) -> None:
    async with asyncserver.serve_datagrams(upper_datagram, "0.0.0.0", 0, groups=groups) as server:
        assert await heard(server, groups[-1].partition("%")[0], INTERFACE)


async def _on_interfaces() -> None:
    groups = [f"{GROUP}%{INTERFACE}", f"ff02::114%{INTERFACE}"]
    async with asyncserver.serve_datagrams(upper_datagram, None, 0, groups=groups) as server:
        assert await heard(server, GROUP, INTERFACE)
        assert not await heard(server, GROUP, "lo")
        assert await heard(server, "ff02::114", INTERFACE)
        assert not await heard(server, "ff02::115", INTERFACE)
        with socket.socket(type=socket.SOCK_DGRAM) as other:  # makes the host hear it there; that is not ours
            joined = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
            other.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
            assert not await heard(server, GROUP, "lo")
    assert memberships_of(GROUP, INTERFACE) == memberships_of("ff02::114", INTERFACE) == 0
    async with asyncserver.serve_datagrams(upper_datagram, None, 0, groups=[GROUP]) as server:
        assert await heard(server, GROUP, INTERFACE)  # the route's


@in_own_network
def test_group_is_heard_on_its_interface_only() -> None:
    """For IPv4 also where another program has joined it on another one; without one the route chooses."""
    asyncio.run(_on_interfaces())


def test_group_that_is_joined_for_all_hosts_already() -> None:
    """The server has joined it of itself, and goes on."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        groups = memberships.parse_groups(["224.0.0.1%lo", "224.0.0.1%lo"])
        assert len(groups) == 1
        assert len(memberships.join_groups([sock], groups)) == 1
        assert memberships.join_groups([sock], groups) == []
