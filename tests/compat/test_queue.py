"""The listen queue: room for as many as the system allows, unless the program says how many."""

import socket
import struct
from pathlib import Path
from typing import Any

import pytest

import compat
from tests.kit.compat import LOOPBACK, connect, echo, serving
from tests.kit.programs import python

SYSTEM_LIMIT = int(Path("/proc/sys/net/core/somaxconn").read_text())


def queue_of(server: Any) -> int:
    """What `listen()` was given, as the kernel tells it."""
    info = server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    length: int = struct.unpack_from("I", info, 28)[0]  # tcpi_sacked, of a listening socket
    return length


@pytest.mark.skipif(SYSTEM_LIMIT < 40, reason="net.core.somaxconn leaves no room for so many")
def test_a_serial_server_loses_none_of_forty_clients_that_come_at_once() -> None:
    """All are connected before the first is taken; those without room would wait for the kernel's next attempts."""
    server = compat.TCPServer(LOOPBACK, echo)
    clients = [connect(server) for _ in range(40)]
    with serving(server):
        for client in clients:
            client.sendall(b"abc")
            assert client.recv(10) == b"ABC"
            client.close()


SERVERS = [name for name in compat.__all__ if name.endswith("Server") and name != "BaseServer"]


@pytest.mark.parametrize("name", SERVERS)
def test_every_class_has_python_3_15s_default(name: str) -> None:
    """Whatever Python it runs on."""
    assert getattr(compat, name).request_queue_size == socket.SOMAXCONN


def test_the_default_is_what_the_kernel_gets() -> None:
    """It takes as much as the system's limit lets it."""
    with compat.ThreadingTCPServer(LOOPBACK, echo) as server:
        assert queue_of(server) == min(socket.SOMAXCONN, SYSTEM_LIMIT)


class Own:
    """A mix-in of a program's."""

    request_queue_size = 7


CLASSES: dict[str, Any] = {
    "class": type("Server", (compat.ThreadingTCPServer,), {"request_queue_size": 7}),
    "mix-in": type("Server", (Own, compat.TCPServer), {}),
    "base": type("Server", (type("Base", (compat.TCPServer,), {"request_queue_size": 7}),), {}),
}


@pytest.mark.parametrize("how", list(CLASSES))
def test_a_programs_own_value_is_kept(how: str) -> None:
    """Also a smaller one: some want clients to go elsewhere when they are busy."""
    with CLASSES[how](LOOPBACK, echo) as server:
        assert queue_of(server) == 7


def test_a_value_set_on_the_class_or_the_instance_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As programs do that change `socketserver.TCPServer.request_queue_size`."""
    server = compat.TCPServer(LOOPBACK, echo, bind_and_activate=False)
    server.request_queue_size = 7
    with server:
        server.server_bind()
        server.server_activate()
        assert queue_of(server) == 7
    monkeypatch.setattr("compat.TCPServer.request_queue_size", 7)
    with compat.ThreadingTCPServer(LOOPBACK, echo) as server:
        assert queue_of(server) == 7


def test_the_stdlibs_own_servers_follow(tmp_path: Path) -> None:
    """http.server and xmlrpc set nothing themselves; under `python -m compat` they have the default too."""
    (tmp_path / "program.py").write_text(
        "import socket, http.server, xmlrpc.server\n"
        "for server in (http.server.ThreadingHTTPServer, xmlrpc.server.SimpleXMLRPCServer):\n"
        "    assert server.request_queue_size == socket.SOMAXCONN, server\n"
    )
    python("-m", "compat", tmp_path / "program.py")
