"""Sockets that others have bound: adopted when they fit, refused when not."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from tests.kit.binding import ask, refused, serve, warm_resolver
from tests.kit.handlers import upper

__all__ = ["serve", "warm_resolver"]  # fixtures


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
    """It cannot listen; the error says what can."""
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_connection(other.getsockname()) as sock:
        one, two = socket.socketpair()
        for given in ({"sock": sock}, {"fd": sock.fileno()}, {"sock": one}, {"fd": two.fileno()}):
            error = await refused(asyncserver.serve(upper, **given))
            assert "it is connected to a peer: give a socket that is only bound to an address" in str(error)
            assert error.errno == errno.EINVAL
        one.close()
        two.close()
