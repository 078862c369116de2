"""VSOCK: listeners that this kernel makes, and peers with addresses as there.

Most machines have no neighbour to connect from, and no loopback (cid 1), which is a module of the kernel's. What needs
a peer is tried over a Unix socket whose peers have such addresses.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import functools
import logging
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver.cli import values
from asyncserver.listening import vsock
from asyncserver.listening.binding import Binding
from asyncserver.net import addresses
from asyncserver.proxy.proxy_protocol import TrustedProxies
from tests.kit.binding import refused
from tests.kit.certificates import client_context, server_context
from tests.kit.checks import is_idle
from tests.kit.handlers import upper
from tests.kit.waiting import until

ANY = 0xFFFFFFFF


@functools.cache
def binds(cid: int) -> bool:
    """Whether this kernel lets a listener have this cid."""
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
            sock.bind((cid, ANY))
    except (AttributeError, OSError):
        return False
    return True


needs_vsock = pytest.mark.skipif(not binds(ANY), reason="no VSOCK here")


# -- listeners


@needs_vsock
async def test_a_port_of_vsock_is_served() -> None:
    """On every cid of this machine, as the kernel writes it; TCP's options are not asked of it."""
    async with asyncserver.serve(upper, vsock=0) as server:
        [(cid, port)] = server.addresses
        assert cid == ANY
        assert 1024 <= port < ANY
        assert server.label == f"vsock://any:{port}"
        error = await refused(asyncserver.serve(upper, vsock=port))
        assert error.errno == errno.EADDRINUSE
        assert f"cannot listen on VSOCK address any:{port}: it is taken" in str(error)
    async with asyncserver.serve(upper, vsock=(ANY, port)) as server:
        assert server.addresses == ((ANY, port),)


@needs_vsock
async def test_an_adopted_listener_is_served() -> None:
    """One that has no port yet is refused; its port is another number than elsewhere."""
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    with pytest.raises(asyncserver.BindError, match=r"is not bound to an address: bind\(\) it first"):
        await asyncserver.serve(upper, sock=sock)
    sock.bind((ANY, ANY))
    async with asyncserver.serve(upper, sock=sock) as server:
        assert server.label == f"vsock://any:{sock.getsockname()[1]}"


@needs_vsock
async def test_a_cid_of_another_machine_is_refused() -> None:
    """With what to do."""
    error = await refused(asyncserver.serve(upper, vsock=(77777, 0)))
    assert error.errno == errno.EADDRNOTAVAIL
    assert "VSOCK address 77777:any: this machine does not have that cid: leave it out" in str(error)


@pytest.mark.skipif(not binds(1), reason="the kernel's module vsock_loopback is not loaded")
async def test_a_program_on_the_same_machine_is_served() -> None:
    """Over cid 1."""
    loop = asyncio.get_running_loop()
    async with asyncserver.serve(upper, vsock=(1, 0)) as server:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            await loop.sock_connect(client, server.addresses[0])
            await loop.sock_sendall(client, b"question")
            assert await asyncio.wait_for(loop.sock_recv(client, 99), 20) == b"QUESTION"


@pytest.mark.parametrize("number", [None, 45])
async def test_a_kernel_without_vsock_says_so(number: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sentence; also a Python that was built without it."""
    monkeypatch.setattr(vsock, "_FAMILY", number)
    error = await refused(asyncserver.serve(upper, vsock=5000))
    assert error.errno == errno.EAFNOSUPPORT
    assert "cannot listen on VSOCK address any:5000: this kernel has no VSOCK: load its module" in str(error)


@needs_vsock
def test_workers_share_a_listener() -> None:
    """The kernel refuses SO_REUSEPORT for it."""
    one, other = Binding(vsock=0).open_slots(socket.SOCK_STREAM, 2)
    assert one == other
    one[0].close()


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("5000", TypeError, "vsock must be a port or a tuple (cid, port), whole numbers; got '5000'"),
        ((1, 2, 3), TypeError, "vsock must be a port or a tuple"),
        (True, TypeError, "vsock must be a port or a tuple"),
        (-1, ValueError, "vsock takes a port from 0 to 4294967294 and a cid of at most 4294967295; got -1"),
        (ANY, ValueError, "vsock takes a port from 0 to"),
        (2**32 + 80, ValueError, "vsock takes a port from 0 to"),
        ((2**32, 80), ValueError, "vsock takes a port from 0 to"),
    ],
)
def test_what_is_no_place_is_refused_at_once(place: Any, error: type[Exception], message: str) -> None:
    """Python would take the last 32 bits of a larger number."""
    with pytest.raises(error) as caught:
        asyncserver.serve(upper, vsock=place)
    assert message in str(caught.value)


def test_reuse_port_is_for_other_addresses() -> None:
    """As for paths."""
    with pytest.raises(ValueError, match="reuse_port=True has an effect on host and port only"):
        asyncserver.serve(upper, vsock=5000, reuse_port=True)


# -- the command line


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("vsock:5000", {"vsock": 5000}),
        ("vsock:0", {"vsock": 0}),
        ("vsock:1:5000", {"vsock": (1, 5000)}),
        ("[vsock]:5000", {"host": "vsock", "port": 5000}),
    ],
)
def test_addresses_on_the_command_line(text: str, place: dict[str, Any]) -> None:
    """A host of that name is written in brackets."""
    assert values.address(text) == place


@pytest.mark.parametrize("text", ["vsock:", "vsock::1", "vsock:x", "vsock:1:2:3", "vsock:4294967295", "vsock:-1"])
def test_wrong_addresses_on_the_command_line(text: str) -> None:
    """Told what was expected, and what was given."""
    with pytest.raises(argparse.ArgumentTypeError, match="expected vsock") as caught:
        values.address(text)
    assert repr(text) in str(caught.value)


# -- peers


class FromVirtualMachine(socket.socket):
    """A listener whose peers have addresses as on VSOCK, which most test machines cannot reach."""

    def _accept(self) -> Any:
        return super()._accept()[0], (3, 1234)  # type: ignore[misc] # in typeshed for _socket.socket only


def listener(folder: Path) -> FromVirtualMachine:
    sock = FromVirtualMachine(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(folder / "listener"))
    return sock


def test_addresses_are_numbers() -> None:
    """vsock(7)."""
    assert addresses.format_address((3, 1234)) == "3:1234"
    assert addresses.task_name((3, 1234)) == "vsock 3:1234"
    assert addresses.host_group((3, 1234)) == "3"


@pytest.mark.parametrize("limit", [None, 1])
async def test_peers_are_served(tmp_path: Path, limit: int | None, caplog: pytest.LogCaptureFixture) -> None:
    """Named, counted and limited by their machine's number."""
    caplog.set_level(logging.DEBUG)
    sock = listener(tmp_path)
    async with asyncserver.serve(upper, sock=sock, max_connections_per_host=limit) as server:
        for _ in range(2):
            reader, writer = await asyncio.open_unix_connection(sock.getsockname())
            writer.write(b"question")
            assert await reader.readexactly(8) == b"QUESTION"
            writer.close()
            await writer.wait_closed()
            await until(lambda: is_idle(server))
    assert sum("3:1234: connection completed" in one.getMessage() for one in caplog.records) == 2


async def test_a_machine_has_its_limit(tmp_path: Path) -> None:
    """The second connection of one cid is refused."""
    sock = listener(tmp_path)
    async with asyncserver.serve(upper, sock=sock, max_connections_per_host=1) as server:
        reader, writer = await asyncio.open_unix_connection(sock.getsockname())
        writer.write(b"question")
        assert await reader.readexactly(8) == b"QUESTION"
        second, further = await asyncio.open_unix_connection(sock.getsockname())
        assert await second.read() == b""
        assert server.stats().refused == 1
        for one in (writer, further):
            one.close()


async def test_tls_is_served(tmp_path: Path) -> None:
    """With the peer's address as it is."""
    sock = listener(tmp_path)
    seen: list[object] = []

    async def handler(stream: asyncserver.Stream) -> None:
        seen.append(stream.peer_address)
        await upper(stream)

    async with asyncserver.serve(handler, sock=sock, ssl=server_context()):
        reader, writer = await asyncio.open_unix_connection(
            sock.getsockname(), ssl=client_context(), server_hostname="localhost"
        )
        assert isinstance(writer.get_extra_info("ssl_object"), ssl.SSLObject)
        writer.write(b"question")
        assert await reader.readexactly(8) == b"QUESTION"
        writer.close()
        await writer.wait_closed()
    assert seen == [(3, 1234)]


@pytest.mark.parametrize(("trusted", "served"), [(["vsock"], True), (["vsock:3"], True), (["vsock:2"], False)])
async def test_a_proxy_in_another_machine_is_trusted_by_name(tmp_path: Path, trusted: list[str], served: bool) -> None:
    """By all of them, or its cid; then the header says who the client is."""
    sock = listener(tmp_path)

    async def handler(stream: asyncserver.Stream) -> None:
        await stream.send(repr(stream.peer_address).encode())

    async with asyncserver.serve(handler, sock=sock, proxy_protocol=True, trusted_proxies=trusted) as server:
        reader, writer = await asyncio.open_unix_connection(sock.getsockname())
        if served:  # others are closed before they have sent anything
            writer.write(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n")
        assert await reader.read() == (b"('192.0.2.1', 1000)" if served else b"")
        assert server.stats().refused == (not served)
        writer.close()


def test_names_of_machines() -> None:
    """No network has them, and without a name nobody trusts them."""
    assert (3, 1234) not in TrustedProxies([])
    assert (3, 1234) not in TrustedProxies(["0.0.0.0/0", "unix"])
    assert (3, 1234) in TrustedProxies(["10.0.0.0/8", "vsock:3"])
    assert "/run/proxy" not in TrustedProxies(["vsock"])
    for wrong in ("vsock:", "vsock:03", "vsock:x", "VSOCK", "vsock:12345678901"):
        with pytest.raises(ValueError, match="or 'unix', 'vsock', 'vsock:2'"):
            TrustedProxies([wrong])
