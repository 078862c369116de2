"""Where a server is reached: addresses, Unix sockets' files, sockets of others; and what goes wrong there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest

import asyncserver
from asyncserver.binding import Binding, BoundSocket
from tests.serverkit import run_script, upper

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from asyncserver import Datagram


async def upper_datagram(datagram: Datagram) -> bytes:
    return datagram.data.upper()


@pytest.fixture(params=["serve", "serve_datagrams"])
def serve(request: pytest.FixtureRequest) -> Callable[..., asyncserver.Serving]:
    """Serve capitals, over streams or datagrams, at the place that the arguments name."""

    def serve(*place: Any, **options: Any) -> asyncserver.Serving:
        if request.param == "serve":
            return asyncserver.serve(upper, *place, **options)
        return asyncserver.serve_datagrams(upper_datagram, *place, **options)

    return serve


def kind_of(server: asyncserver.Server) -> int:
    return server.sockets[0].type


async def ask(server: asyncserver.Server, address: Any) -> bytes:
    """Ask at an address; also over datagrams, where a lost one would be asked in vain for ever."""
    loop = asyncio.get_running_loop()
    family = (
        socket.AF_UNIX if isinstance(address, str | bytes) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    )
    with socket.socket(family, kind_of(server)) as client:
        client.setblocking(False)
        if family == socket.AF_UNIX and kind_of(server) == socket.SOCK_DGRAM:
            client.bind("")  # a name of the system's choice, so that it can be answered
        await loop.sock_connect(client, address)
        await loop.sock_sendall(client, b"hello")
        return await asyncio.wait_for(loop.sock_recv(client, 99), 20)


async def refused(serving: asyncserver.Serving) -> asyncserver.BindError:
    """The error of a server that cannot start; nothing may stay open because of it."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(asyncserver.BindError) as caught:
        async with serving:
            pass
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert isinstance(caught.value, OSError)
    return caught.value


@pytest.fixture(autouse=True)
async def warm_resolver() -> None:
    """What the loop opens for its own use when it first resolves a name is no leak of ours."""
    await asyncio.get_running_loop().getaddrinfo("localhost", 0)


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

    async with asyncserver.serve(handler, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0][:2])
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
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


# -- Unix sockets' files


async def test_path_is_served_and_removed(serve: Callable[..., asyncserver.Serving], tmp_path: Path) -> None:
    """The file appears with the server and goes with it; a str or a Path will do."""
    path = tmp_path / "server.sock"
    for given in (path, str(path)):
        async with serve(path=given) as server:
            assert stat.S_ISSOCK(path.stat().st_mode)
            assert server.addresses == (str(path),)
            assert await ask(server, str(path)) == b"HELLO"
        assert not path.exists()


async def test_path_mode_sets_the_permissions(serve: Callable[..., asyncserver.Serving], tmp_path: Path) -> None:
    """Without it the umask rules."""
    path = tmp_path / "server.sock"
    async with serve(path=path, path_mode=0o620):
        assert stat.S_IMODE(path.stat().st_mode) == 0o620
    umask = os.umask(0o027)
    try:
        async with serve(path=path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o750
    finally:
        os.umask(umask)


async def test_stale_socket_file_is_replaced(serve: Callable[..., asyncserver.Serving], tmp_path: Path) -> None:
    """The file of a server that died is no obstacle, whatever kind of server it was."""
    path = tmp_path / "server.sock"
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind) as dead:
            dead.bind(str(path))
            if kind == socket.SOCK_STREAM:
                dead.listen()
        assert path.exists()
        async with serve(path=path) as server:
            assert await ask(server, str(path)) == b"HELLO"


@pytest.mark.parametrize("other", ["serve", "serve_datagrams"])
async def test_live_server_is_never_replaced(
    serve: Callable[..., asyncserver.Serving], other: str, tmp_path: Path
) -> None:
    """Neither one of the same kind nor one of the other; and it goes on."""
    path = tmp_path / "server.sock"
    handler: Any = upper if other == "serve" else upper_datagram
    async with getattr(asyncserver, other)(handler, path=path) as server:
        error = await refused(serve(path=path))
        assert error.errno == errno.EADDRINUSE
        assert repr(str(path)) in str(error)
        assert "belongs to a running server" in str(error)
        assert await ask(server, str(path)) == b"HELLO"


async def test_live_server_with_a_full_backlog_is_never_replaced(tmp_path: Path) -> None:
    """A server too busy to accept is alive all the same."""
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        clients = []
        try:
            while True:
                client = socket.socket(socket.AF_UNIX)
                clients.append(client)
                client.setblocking(False)
                try:
                    client.connect(str(path))
                except BlockingIOError:
                    break
            error = await refused(asyncserver.serve(upper, path=path))
        finally:
            for client in clients:
                client.close()
    assert "belongs to a running server" in str(error)
    assert path.exists()


async def test_other_file_is_left_alone(serve: Callable[..., asyncserver.Serving], tmp_path: Path) -> None:
    """A path that exists and is no socket is never removed."""
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(path)
    for place in (path, link, tmp_path):
        error = await refused(serve(path=place))
        assert error.errno == errno.EEXIST
        assert repr(str(place)) in str(error)
        assert "is not a socket" in str(error)
        assert "choose another path" in str(error)
    assert path.read_text() == "precious"
    assert link.is_symlink()


async def test_file_is_removed_only_if_it_is_still_ours(
    serve: Callable[..., asyncserver.Serving], tmp_path: Path
) -> None:
    """A file that somebody else has put in its place is theirs."""
    path = tmp_path / "server.sock"
    async with serve(path=path):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"
    path.unlink()
    async with serve(path=path):
        path.unlink()
    assert not path.exists()


async def test_missing_folder_says_so(serve: Callable[..., asyncserver.Serving], tmp_path: Path) -> None:
    """The error names the path and what to do."""
    error = await refused(serve(path=tmp_path / "missing" / "server.sock"))
    assert repr(str(tmp_path / "missing" / "server.sock")) in str(error)
    assert "make it first" in str(error)
    (tmp_path / "file").touch()
    error = await refused(serve(path=tmp_path / "file" / "server.sock"))
    assert "not a folder" in str(error)


async def test_path_that_is_too_long_says_so(serve: Callable[..., asyncserver.Serving], tmp_path: Path) -> None:
    """The kernel takes about a hundred bytes."""
    error = await refused(serve(path=tmp_path / ("x" * 200)))
    assert "too long" in str(error)
    assert "x" * 200 in str(error)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
async def test_abstract_name_needs_no_file(serve: Callable[..., asyncserver.Serving]) -> None:
    """A path that begins with a NUL is a name without a file."""
    name = f"\0asyncserver-test-{os.getpid()}"
    async with serve(path=name) as server:
        assert server.addresses == (name.encode(),)
        assert await ask(server, name.encode()) == b"HELLO"
        error = await refused(serve(path=name))
        assert error.errno == errno.EADDRINUSE
    async with serve(path=name):
        pass


# -- sockets of others


def bound(kind: int, address: Any = ("127.0.0.1", 0)) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, kind)
    sock.bind(address)
    return sock


@pytest.fixture
def kind(serve: Callable[..., asyncserver.Serving]) -> int:
    serving = serve("127.0.0.1", 0)
    serving.close()
    return socket.SOCK_STREAM if serving._name == "serve" else socket.SOCK_DGRAM


async def test_bound_socket_is_adopted(serve: Callable[..., asyncserver.Serving], kind: int) -> None:
    """The server serves on it and closes it."""
    sock = bound(kind)
    async with serve(sock=sock) as server:
        assert server.addresses == (sock.getsockname(),)
        assert server.sockets == (sock,)
        assert await ask(server, server.addresses[0]) == b"HELLO"
    assert sock.fileno() == -1


async def test_descriptor_is_adopted(serve: Callable[..., asyncserver.Serving], kind: int) -> None:
    """As systemd passes them: a number is enough."""
    fd = bound(kind).detach()
    async with serve(fd=fd) as server:
        assert await ask(server, server.addresses[0]) == b"HELLO"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


async def test_adopted_unix_socket_keeps_its_file(
    serve: Callable[..., asyncserver.Serving], kind: int, tmp_path: Path
) -> None:
    """The file belongs to whoever has made it."""
    path = tmp_path / "theirs.sock"
    async with serve(sock=bound(kind, str(path))) as server:
        assert await ask(server, str(path)) == b"HELLO"
    assert path.exists()


async def test_socket_of_the_wrong_kind_is_refused(serve: Callable[..., asyncserver.Serving], kind: int) -> None:
    """The error says which function takes it; the socket stays its owner's."""
    wrong = socket.SOCK_DGRAM if kind == socket.SOCK_STREAM else socket.SOCK_STREAM
    with bound(wrong) as sock:
        error = await refused(serve(sock=sock))
        assert "serve() for streams, serve_datagrams() for datagrams" in str(error)
        assert sock.fileno() > 0
        error = await refused(serve(fd=sock.fileno()))
        assert "serve_datagrams()" in str(error)
        assert sock.getsockname()[1] > 0


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
async def test_unbound_socket_is_refused(serve: Callable[..., asyncserver.Serving], kind: int, family: int) -> None:
    """The error says to bind it first."""
    with socket.socket(family, kind) as sock:
        error = await refused(serve(sock=sock))
        assert "is not bound to an address: bind() it first" in str(error)


async def test_closed_and_wrong_descriptors_are_refused(
    serve: Callable[..., asyncserver.Serving], kind: int, tmp_path: Path
) -> None:
    """A closed socket, a closed descriptor, and one that is a file: BindError, and the file stays open."""
    sock = bound(kind)
    sock.close()
    assert "closed" in str(await refused(serve(sock=sock)))
    with (tmp_path / "file").open("w") as file:
        assert f"file descriptor {file.fileno()}" in str(await refused(serve(fd=file.fileno())))
        file.write("still open")
    error = await refused(serve(fd=9999))
    assert "file descriptor 9999" in str(error)
    assert error.errno == errno.EBADF


async def test_connected_stream_socket_is_refused() -> None:
    """It cannot listen."""
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_connection(other.getsockname()) as sock:
        assert "cannot listen on" in str(await refused(asyncserver.serve(upper, sock=sock)))


# -- wrong arguments, told at once


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ({}, TypeError, "give one place to listen on: host and port, path, sock, or fd; got none of them"),
        ({"host": "127.0.0.1", "port": 0, "path": "x"}, TypeError, "got host and port together with path"),
        ({"port": 0, "fd": 3}, TypeError, "got host and port together with fd"),
        ({"path": "x", "fd": 3}, TypeError, "got path together with fd"),
        ({"host": "127.0.0.1"}, TypeError, "host='127.0.0.1' needs a port too; port=0 picks a free one"),
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
        ({"path": "x", "path_mode": "660"}, TypeError, "path_mode must be a whole number, such as 0o660, got '660'"),
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
