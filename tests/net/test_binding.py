"""Where a server is reached: hosts and ports, and arguments that name no place."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver.listening.binding import Binding, BoundSocket
from tests.kit.binding import ask, refused, serve, warm_resolver
from tests.kit.clients import Client
from tests.kit.handlers import upper
from tests.kit.programs import run_script

__all__ = ["serve", "warm_resolver"]  # fixtures


# -- host and port


async def test_port_0_picks_a_free_one(serve: Callable[..., asyncserver.Serving]) -> None:
    """`addresses` tells which."""
    async with serve("127.0.0.1", 0) as server:
        ((host, port),) = server.addresses
        assert host == "127.0.0.1"
        assert port > 0
        assert await ask(server, (host, port)) == b"HELLO"


async def test_several_hosts_have_one_port(serve: Callable[..., asyncserver.Serving]) -> None:
    """With port 0 the system picks once, for all addresses."""
    hosts = ["127.0.0.1", "127.0.0.2", "::1"]
    async with serve(hosts, 0) as server:
        assert [address[0] for address in server.addresses] == hosts
        assert len({address[1] for address in server.addresses}) == 1
        for address in server.addresses:
            assert await ask(server, address) == b"HELLO"


async def test_no_host_is_every_interface_on_both_families(serve: Callable[..., asyncserver.Serving]) -> None:
    """None and "" listen on IPv4 and IPv6, on the same port."""
    for host in (None, ""):
        async with serve(host, 0) as server:
            assert {address[0] for address in server.addresses} == {"0.0.0.0", "::"}
            (port,) = {address[1] for address in server.addresses}
            assert await ask(server, ("127.0.0.1", port)) == b"HELLO"
            assert await ask(server, ("::1", port)) == b"HELLO"


async def test_name_is_resolved_and_each_address_bound_once(serve: Callable[..., asyncserver.Serving]) -> None:
    """A name given twice is no error."""
    async with serve(["localhost", "127.0.0.1", "localhost"], 0) as server:
        assert len(set(server.addresses)) == len(server.addresses)
        assert "127.0.0.1" in {address[0] for address in server.addresses}


@pytest.mark.parametrize(("rivals", "found"), [(3, True), (10**6, False)])
async def test_port_that_is_taken_on_one_address_is_drawn_again(
    rivals: int, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Port 0 for several addresses finds one that is free on all; if nearly all are taken, it gives up in the end."""
    taken: list[socket.socket] = []
    open_address = Binding._open_address

    def open_and_be_rivalled(self: Binding, kind: Any, family: Any, address: Any) -> BoundSocket:
        opened = open_address(self, kind, family, address)
        if address[0] == "127.0.0.1" and len(taken) < rivals:  # somebody takes the same port on the other address
            with contextlib.suppress(OSError):  # taken already: by the rival of a draw before
                taken.append(socket.create_server(("127.0.0.2", opened.sock.getsockname()[1])))
        return opened

    monkeypatch.setattr(Binding, "_open_address", open_and_be_rivalled)
    serving = asyncserver.serve(upper, ["127.0.0.1", "127.0.0.2"], 0)
    try:
        if found:
            async with serving as server:
                assert len({address[1] for address in server.addresses}) == 1
        else:
            with pytest.raises(asyncserver.BindError, match="taken"):
                await serving
        assert len(taken) <= 3 if found else 10 <= len(taken) <= 100
    finally:
        for sock in taken:
            sock.close()


async def test_reuse_port_lets_two_servers_share(serve: Callable[..., asyncserver.Serving]) -> None:
    """With reuse_port both may listen; without it the second is refused."""
    async with serve("127.0.0.1", 0, reuse_port=True) as server:
        port = server.addresses[0][1]
        async with serve("127.0.0.1", port, reuse_port=True) as second:
            assert second.addresses == server.addresses
        await refused(serve("127.0.0.1", port))


async def test_accepted_sockets_do_not_delay() -> None:
    """TCP_NODELAY is set on every connection."""
    seen: list[int] = []

    async def handler(stream: asyncserver.Stream) -> None:
        from anyio.abc import SocketAttribute

        sock = stream.extra(SocketAttribute.raw_socket)
        seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    async with asyncserver.serve(handler, "127.0.0.1", 0) as server, Client.connect(server.addresses[0]) as client:
        assert await client.receive() == b""
    assert seen == [1]


async def test_taken_port_says_what_to_do(serve: Callable[..., asyncserver.Serving]) -> None:
    """The error names the address and the way out, and keeps the system's."""
    async with serve("127.0.0.1", 0) as server:
        port = server.addresses[0][1]
        error = await refused(serve("127.0.0.1", port))
    assert f"127.0.0.1:{port}" in str(error)
    assert "taken" in str(error)
    assert "port=0" in str(error)
    assert error.errno == errno.EADDRINUSE
    assert isinstance(error.__cause__, OSError)


async def test_all_addresses_are_bound_or_none(serve: Callable[..., asyncserver.Serving]) -> None:
    """If the second address cannot be had, the first is given back."""
    for _ in range(20):  # other programs, such as clients of other tests, may hold the port on 127.0.0.1
        async with serve("127.0.0.2", 0) as server:
            port = server.addresses[0][1]
            error = await refused(serve(["127.0.0.1", "127.0.0.2"], port))
            if f"127.0.0.1:{port}" in str(error):
                continue
            assert f"127.0.0.2:{port}" in str(error)
            async with serve("127.0.0.1", port):
                return
    pytest.fail("no port is free on 127.0.0.1")


async def test_unknown_name_says_so(serve: Callable[..., asyncserver.Serving]) -> None:
    """The error names the host and what to check."""
    error = await refused(serve("no-such-host.invalid", 80))
    assert "'no-such-host.invalid' does not resolve" in str(error)
    assert "spelling" in str(error)
    error = await refused(serve("x" * 300, 80))
    assert "does not resolve" in str(error)


async def test_foreign_address_says_so(serve: Callable[..., asyncserver.Serving]) -> None:
    """An address of another machine cannot be listened on."""
    error = await refused(serve("203.0.113.7", 0))
    assert "203.0.113.7:0" in str(error)
    assert "no interface of this machine has that address" in str(error)
    assert error.errno == errno.EADDRNOTAVAIL


async def test_ipv6_address_is_shown_in_brackets() -> None:
    """As people write it."""
    async with asyncserver.serve(upper, "::1", 0) as server:
        port = server.addresses[0][1]
        error = await refused(asyncserver.serve(upper, "::1", int(port)))
    assert f"[::1]:{port}" in str(error)


PROGRAM_WITHOUT_PRIVILEGES = """
import asyncio, os, sys
import asyncserver

async def handler(source):
    pass

async def warm_up():  # imports what nobody may not read later
    for serve in (asyncserver.serve, asyncserver.serve_datagrams):
        serve(handler, "127.0.0.1", 0).close()
    await asyncio.get_running_loop().getaddrinfo("localhost", 0)

asyncio.run(warm_up())
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
place = {"path": sys.argv[1]} if sys.argv[1].startswith("/") else {"host": "127.0.0.1", "port": int(sys.argv[1])}
try:
    asyncio.run(getattr(asyncserver, sys.argv[2])(handler, **place))
except asyncserver.BindError as exc:
    print(exc.errno, exc)
"""


@pytest.mark.parametrize("name", ["serve", "serve_datagrams"])
def test_missing_permission_says_so(name: str, tmp_path: Path) -> None:
    """A port below 1024 and a folder of somebody else's: the error names the place and asks for another."""
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        lowest = int(file.read())
    if lowest > 1:
        status, output, errors = run_script(PROGRAM_WITHOUT_PRIVILEGES, tmp_path, str(min(lowest, 1024) - 1), name)
        assert status == 0, errors  # not that there are none: a measured process may no longer write its figures
        assert output.startswith(f"{errno.EACCES} ")
        assert f"127.0.0.1:{min(lowest, 1024) - 1}: permission denied" in output
        assert "choose another" in output
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    status, output, errors = run_script(PROGRAM_WITHOUT_PRIVILEGES, tmp_path, str(locked / "server.sock"), name)
    assert status == 0, errors
    assert f"{str(locked / 'server.sock')!r}: permission denied" in output


# -- wrong arguments, told at once


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ({}, TypeError, "host and port, path, sock, fd, or (not for datagrams) vsock; got none of them"),
        ({"host": "127.0.0.1", "port": 0, "path": "x"}, TypeError, "got host and port together with path"),
        ({"port": 0, "fd": 3}, TypeError, "got host and port together with fd"),
        ({"path": "x", "fd": 3}, TypeError, "got path together with fd"),
        ({"host": "127.0.0.1"}, TypeError, "host='127.0.0.1' needs a port too; port=0 picks a free one"),
        ({"host": ("127.0.0.1", 80)}, TypeError, "('127.0.0.1', 80) needs a port too; give them as two arguments"),
        ({"host": "127.0.0.1", "port": "80"}, TypeError, "port must be a whole number, got '80'"),
        ({"host": "127.0.0.1", "port": True}, TypeError, "port must be a whole number, got True"),
        ({"host": "127.0.0.1", "port": 65536}, ValueError, "port must be from 0 to 65535, got 65536"),
        ({"host": "127.0.0.1", "port": -1}, ValueError, "port must be from 0 to 65535, got -1"),
        ({"host": 7, "port": 0}, TypeError, "host must be a name or address, a sequence of them, or None, got 7"),
        ({"host": [], "port": 0}, TypeError, "host must be a name or address, a sequence of them, or None, got []"),
        ({"host": [None], "port": 0}, TypeError, "host must be a name or address"),
        ({"host": b"127.0.0.1", "port": 0}, TypeError, "host must be a name or address"),
        ({"port": 0, "path_mode": 0o600}, TypeError, "path_mode=0o600 is for a Unix socket: it needs path"),
        ({"path": 7}, TypeError, "path must be a str or a path, got 7"),
        ({"path": "x", "path_mode": -1}, ValueError, "path_mode must be permissions from 0o000 to 0o777, got -0o1"),
        ({"path": "x", "path_mode": 0o1660}, ValueError, "permissions from 0o000 to 0o777, got 0o1660"),
        ({"path": "x", "path_mode": 660}, ValueError, "from 0o000 to 0o777, got 660 in decimal: 0o660?"),
        ({"path": "x", "path_mode": 888}, ValueError, "from 0o000 to 0o777, got 0o1570"),
        ({"path": "x", "path_mode": "660"}, TypeError, "path_mode must be a whole number, such as 0o660, got '660'"),
        ({"path": "x", "reuse_port": True}, ValueError, "reuse_port=True has an effect on host and port only"),
        ({"fd": 3, "reuse_port": True}, ValueError, "reuse_port=True has an effect on host and port only"),
        ({"sock": 3}, TypeError, "sock must be a socket.socket, got 3"),
        ({"fd": "3"}, TypeError, "fd must be a whole number, got '3'"),
        ({"fd": -1}, ValueError, "fd must be at least 0, got -1"),
    ],
)
def test_wrong_place_is_told_at_once(
    serve: Callable[..., asyncserver.Serving], place: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Each error names the value, and what would be right."""
    with pytest.raises(error, match=re.escape(message)):
        serve(**place).close()
