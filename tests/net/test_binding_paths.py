"""Unix sockets' files: whose they are, who may use them, and when they are removed."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from tests.kit.binding import ask, refused, serve, warm_resolver
from tests.kit.handlers import upper, upper_datagram

__all__ = ["serve", "warm_resolver"]  # fixtures


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
    """The kernel takes 107 bytes, and one more in vain."""
    error = await refused(serve(path=tmp_path / ("x" * 200)))
    assert error.errno == errno.ENAMETOOLONG
    assert f"too long, {len(str(tmp_path)) + 201} bytes of at most 107 (unix(7)): choose a shorter one" in str(error)
    assert "x" * 200 in str(error)


async def test_longest_path(
    serve: Callable[..., asyncserver.Serving], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes count, not letters; relative paths are counted as they are."""
    monkeypatch.chdir(tmp_path)
    longest = "\xe4" * 53 + "x"
    async with serve(path=longest):
        assert (tmp_path / longest).is_socket()
    assert (await refused(serve(path=longest + "x"))).errno == errno.ENAMETOOLONG


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
async def test_abstract_name_needs_no_file(serve: Callable[..., asyncserver.Serving]) -> None:
    """A str that begins with @, or with the NUL for which that stands; errors show it with @."""
    name = f"\0asyncserver-test-{os.getpid()}"
    for path in (name, "@" + name[1:]):
        async with serve(path=path) as server:
            assert server.addresses == (name.encode(),)
            assert server.label.partition(":")[2] == "@" + name[1:]
            assert await ask(server, name.encode()) == b"HELLO"
            error = await refused(serve(path=path))
            assert error.errno == errno.EADDRINUSE
            assert f"socket '@{name[1:]}': it is taken" in str(error)
            assert not await asyncio.to_thread(os.path.lexists, path.replace("\0", "@"))


async def test_a_path_object_is_a_file(
    serve: Callable[..., asyncserver.Serving], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pathlib drops the ./ by which a file's name is told from an abstract one."""
    monkeypatch.chdir(tmp_path)
    for given in ("./@name", Path("@name"), Path("./@name")):
        async with serve(path=given):
            assert (tmp_path / "@name").is_socket()
        assert not (tmp_path / "@name").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
async def test_longest_abstract_name(serve: Callable[..., asyncserver.Serving]) -> None:
    """No zero ends it, so it has a byte more than a path."""
    longest = f"@{os.getpid()}".ljust(108, "x")
    async with serve(path=longest) as server:
        assert await ask(server, b"\0" + longest[1:].encode()) == b"HELLO"
    error = await refused(serve(path=longest + "x"))
    assert error.errno == errno.ENAMETOOLONG
    assert "the name is too long, 109 bytes of at most 108 (unix(7)): choose a shorter one" in str(error)


@pytest.mark.parametrize("path", ["@", "\0"])
def test_a_name_has_letters(serve: Callable[..., asyncserver.Serving], path: str) -> None:
    """Linux would take one of no letters."""
    with pytest.raises(ValueError, match="is no name: write what it is called behind the @"):
        serve(path=path)
