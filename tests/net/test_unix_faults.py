"""Unix sockets: their file replaced, removed, on a full or read-only disk; who may connect; peers that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncserver
import compat
from asyncserver.datagrams import datagram
from asyncserver.listening import unix_path as _socket_file
from asyncserver.listening.binding import Binding
from compat.hosting import handler as hosting
from tests.kit.checks import errors_in, is_idle
from tests.kit.compat import UpperDatagram
from tests.kit.handlers import upper
from tests.kit.programs import run_script
from tests.kit.waiting import until, within

# What the kernel queues for a Unix datagram socket.
QUEUE = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())


async def upper_datagram(one: asyncserver.Datagram) -> bytes:
    """Answer in capitals."""
    return one.data.upper()


def dial(path: Path) -> socket.socket:
    """A client whose operations give up after twenty seconds."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    try:
        client.connect(str(path))
    except BaseException:
        client.close()
        raise
    return client


async def ask(client: socket.socket, question: bytes) -> bytes:
    """Ask from a thread of its own."""
    client.sendall(question)
    return await asyncio.to_thread(client.recv, 100)


async def refusal(serving: asyncserver.Serving) -> asyncserver.BindError:
    """The error with which a server does not start."""
    with pytest.raises(asyncserver.BindError) as raised:
        await within(serving)
    return raised.value


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=20, check=False)


# Replaced, removed


@pytest.mark.parametrize("gone", ["removed", "renamed"])
async def test_a_server_without_its_file_goes_on_for_those_it_has(gone: str, tmp_path: Path) -> None:
    """New clients do not find it; a second server may have the path, and keeps it when the first one closes."""
    path = tmp_path / "server.sock"
    async with asyncserver.serve(upper, path=path) as first:
        with dial(path) as old:
            assert await ask(old, b"before") == b"BEFORE"
            path.unlink() if gone == "removed" else path.rename(tmp_path / "elsewhere")
            with pytest.raises(FileNotFoundError):
                dial(path)
            assert await ask(old, b"after") == b"AFTER"
            async with asyncserver.serve(upper, path=path) as second:
                with dial(path) as new:
                    assert await ask(new, b"new") == b"NEW"
                    old.close()
                    await first.close()
                    assert await ask(new, b"still") == b"STILL"
                assert second.stats().accepted == first.stats().accepted == 1
                assert stat.S_ISSOCK(path.lstat().st_mode)
            assert not path.exists()
    if gone == "renamed":
        assert (tmp_path / "elsewhere").exists(), "a file that somebody has moved is theirs"


async def test_two_servers_that_start_at_once_do_not_both_believe_to_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it listens a server looks dead, and may lose its file to another: it sees that, and says so."""
    path = tmp_path / "server.sock"
    original = Binding._configure
    other = socket.socket(socket.AF_UNIX)

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.undo()
        _socket_file.bind(other, str(path), None)
        return original(*arguments)

    monkeypatch.setattr(Binding, "_configure", overtaken)
    with other:
        error = await refusal(asyncserver.serve(upper, path=path))
        assert error.errno == errno.EADDRINUSE
        assert "was taken by another server just now" in str(error)
        other.listen()
        dial(path).close()


# Permissions


@pytest.mark.parametrize("kind", ["serve", "serve_datagrams"])
@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_a_mode_holds_from_the_first_moment(
    kind: str, umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is never more open than path_mode says: a datagram socket can be sent to as soon as it is bound."""
    path = tmp_path / "server.sock"
    seen: list[int] = []
    original = _socket_file._set_mode

    def noting(*arguments: Any) -> None:
        seen.append(stat.S_IMODE(path.lstat().st_mode))
        original(*arguments)

    monkeypatch.setattr(_socket_file, "_set_mode", noting)
    before = os.umask(umask)
    try:
        handler: Any = upper if kind == "serve" else upper_datagram
        async with getattr(asyncserver, kind)(handler, path=path, path_mode=0o660):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o660
    finally:
        os.umask(before)
    print(f"mode before it was widened: {[oct(mode) for mode in seen] or 'not widened'}")
    assert seen == ([0o600] if umask else [])


@pytest.mark.parametrize("replacement", ["link", "file"])
def test_nothing_but_a_socket_gets_the_mode(replacement: str, tmp_path: Path) -> None:
    """Whoever can write to the folder cannot have the mode of another file changed by putting that in place."""
    precious, path = tmp_path / "precious", tmp_path / "server.sock"
    precious.write_text("precious")
    precious.chmod(0o600)
    path.symlink_to(precious) if replacement == "link" else path.hardlink_to(precious)
    with pytest.raises(asyncserver.BindError, match="was replaced"):
        _socket_file._set_mode(str(path), 0o666)
    assert stat.S_IMODE(precious.stat().st_mode) == 0o600


@pytest.mark.parametrize("path", ["\0name", "@name"])
def test_an_abstract_name_takes_no_mode(path: str) -> None:
    """It has no file, so nothing would keep anybody out."""
    with pytest.raises(ValueError, match="cannot protect '@name': an abstract name has no file"):
        asyncserver.serve(upper, path=path, path_mode=0o600)


STRANGER = """
import os, socket, sys
os.setgid(65534)
os.setgroups([])
os.setuid(65534)
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
            print("connected")
        except PermissionError:
            print("refused")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
async def test_the_mode_keeps_others_out(tmp_path: Path) -> None:
    """Another user connects to a socket of mode 0o666, not to one of 0o600."""
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o011)
    paths = tmp_path / "all.sock", tmp_path / "mine.sock"
    async with (
        asyncserver.serve(upper, path=paths[0], path_mode=0o666),
        asyncserver.serve(upper, path=paths[1], path_mode=0o600),
    ):
        done = await asyncio.to_thread(run, sys.executable, "-c", STRANGER, *paths)
    print("mode 666, mode 600:", done.stdout.split())
    assert done.stdout.split() == ["connected", "refused"], done.stderr


# Disks


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own in memory, if this machine lets us."""
    folder.mkdir()
    try:
        done = run("mount", "-t", "tmpfs", "-o", options, "tmpfs", folder)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        assert run("umount", folder).returncode == 0


async def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """No room for the file: the server does not start, and says why; with room it does."""
    with mounted(tmp_path / "disk", "size=64k,nr_inodes=2") as disk:
        (disk / "last").touch()
        error = await refusal(asyncserver.serve(upper, path=disk / "server.sock"))
        print(error)
        assert error.errno == errno.ENOSPC
        assert "No space left on device" in str(error)
        assert str(disk / "server.sock") in str(error)
        (disk / "last").unlink()
        async with asyncserver.serve(upper, path=disk / "server.sock"):
            with dial(disk / "server.sock") as client:
                assert await ask(client, b"room") == b"ROOM"
        assert not any(disk.iterdir())


async def test_a_disk_that_becomes_read_only_keeps_nobody(tmp_path: Path) -> None:
    """It serves on, and closes although the file cannot be removed; the next server says what is wrong."""
    with mounted(tmp_path / "disk", "size=64k") as disk:
        path = disk / "server.sock"
        async with asyncserver.serve(upper, path=path) as server:
            assert (await asyncio.to_thread(run, "mount", "-o", "remount,ro", disk)).returncode == 0
            with dial(path) as client:
                assert await ask(client, b"on") == b"ON"
            await within(server.close())
        assert path.exists()
        with pytest.raises(ConnectionRefusedError):
            dial(path)
        error = await refusal(asyncserver.serve(upper, path=path))
        print(error)
        assert error.errno == errno.EROFS


# Peers


@pytest.mark.parametrize("how", ["coroutine", "hosted"])
async def test_a_peer_that_does_not_read_is_given_up(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its answers end after the patience; they keep neither the handlers from others, nor the log."""
    monkeypatch.setattr(datagram, "_UNIX_PATIENCE", 0.05)
    monkeypatch.setattr(hosting, "_SEND_PATIENCE", 0.05)

    handler = upper_datagram if how == "coroutine" else compat.hosted(UpperDatagram)
    path = tmp_path / "server.sock"
    async with asyncserver.serve_datagrams(handler, path=path, max_pending=4) as server:
        with named(tmp_path / "silent") as silent, named(tmp_path / "honest") as honest:
            sent = 0
            while sent < QUEUE + 6:  # the last ones are given up
                with contextlib.suppress(BlockingIOError):
                    silent.sendto(b"question", str(path))
                    sent += 1
                await until(lambda: server.stats().datagrams_received == sent)  # noqa: B023
            honest.sendto(b"question", str(path))
            assert await within(asyncio.get_running_loop().sock_recv(honest, 100)) == b"QUESTION"
            await until(lambda: is_idle(server))
        stats = server.stats()
    print(f"{sent} questions and one, {stats.datagrams_sent} answers sent")
    assert QUEUE < stats.datagrams_sent < sent
    assert stats.failed == 0
    assert not errors_in(caplog)


def named(path: Path) -> socket.socket:
    """A client with an address, so that it can be answered. Not connected: the kernel would not bound its queue."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    client.bind(str(path))
    client.setblocking(False)
    return client


FLOOD = """
import asyncio, logging, os, socket, sys
import asyncserver

logging.basicConfig(format="%(message)s")
logging.getLogger("asyncserver.connection").setLevel(logging.INFO)

async def fail(stream):
    await stream.receive()
    raise ValueError("no")

async def main():
    async with asyncserver.serve(fail, path="server.sock") as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.bind(b"evil\\nERROR all is lost \\xff")
            client.connect("server.sock")
            client.send(b"x")
            while not server.stats().failed:
                await asyncio.sleep(0)

asyncio.run(main())
"""


def test_a_peers_name_cannot_forge_lines_in_the_log(tmp_path: Path) -> None:
    """A Unix peer chooses the path it is told by, with newlines, and with bytes that no encoding has."""
    status, _, errors = run_script(FLOOD, tmp_path)
    assert status == 0
    lines = errors.splitlines()
    print(lines[0], lines[1], sep="\n")
    assert lines[0].startswith(r"'evil\nERROR all is lost \udcff': connection failed after")
    assert lines[1] == r"handler of 'evil\nERROR all is lost \udcff' failed"
    assert "Logging error" not in errors
