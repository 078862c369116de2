"""`python -m asyncserver` where there is no port and no file: VSOCK, and abstract names of Unix sockets."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.kit.cli import command


def _has_vsock() -> bool:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except (AttributeError, OSError):
        return False
    return True


needs_vsock = pytest.mark.skipif(not _has_vsock(), reason="no VSOCK here")


def test_datagrams_have_none(folder: Path) -> None:
    """Few kernels have datagrams over VSOCK, and none does over virtio."""
    with command(folder, "app:handler", "--udp", "vsock:5000") as program:
        assert program.wait() == 2
        assert "argument --udp: expected HOST:PORT, fd:N or systemd:NAME; vsock:PORT is for --tcp" in program.errors


@needs_vsock
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_command_line_serves_on_it(folder: Path, workers: str) -> None:
    """Alone and with workers; --check says what the kernel says."""
    with command(folder, "app:handler", "--tcp", "vsock:0", "--workers", workers, "--check") as program:
        assert program.wait() == 0
        assert "stream   any:" in program.output
    with command(folder, "app:handler", "--tcp", "vsock:0", "--workers", workers) as program:
        program.wait_for("on vsock://any:")
        assert program.end() == 0


def test_peers_of_vsock_can_be_proxies(folder: Path) -> None:
    """All of them, or the host alone."""
    arguments = ["--unix", "x.sock", "--proxy-protocol", "--trusted-proxies"]
    with command(folder, "app:handler", *arguments, "unix,vsock:2", "--check") as program:
        assert program.wait() == 0
    with command(folder, "app:handler", *arguments, "vsock:two", "--check") as program:
        assert program.wait() == 2
        assert "or 'unix', 'vsock', 'vsock:2'; got 'vsock:two'" in program.errors


# -- abstract names


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_command_line_serves_on_abstract_names(folder: Path, workers: str) -> None:
    """Streams and datagrams, shown as they are given; nothing appears in the folder."""
    before = {*folder.iterdir()}
    streams, datagrams = f"@{folder.name}-streams", f"@{folder.name}-datagrams"
    arguments = ["--unix", streams, "--unix-datagram", datagrams, "--workers", workers]
    with command(folder, "app:handler", *arguments, "--check") as program:
        assert program.wait() == 0
        assert f"stream   {streams}\n" in program.output
        assert f"datagram {datagrams}\n" in program.output
    with command(folder, "app:handler", *arguments) as program:
        for name in (streams, datagrams):
            program.wait_for(f":{name}\n" if workers == "1" else f":{name}")
        for kind, name in ((socket.SOCK_STREAM, streams), (socket.SOCK_DGRAM, datagrams)):
            with socket.socket(socket.AF_UNIX, kind) as client:
                client.settimeout(20)
                client.bind("")  # so that a datagram can be answered
                client.connect("\0" + name[1:])
                client.send(b"hello")
                assert client.recv(99) == b"olleh"
        assert program.end() == 0
    assert {*folder.iterdir()} - {folder / "__pycache__"} == before


def test_an_abstract_name_takes_no_mode(folder: Path) -> None:
    """Also beside a file that takes it."""
    arguments = ["--unix", "@name", "--unix", "file.sock", "--unix-mode", "660"]
    with command(folder, "app:handler", *arguments, "--check") as program:
        assert program.wait() == 2
        assert "path_mode=0o660 (--unix-mode) cannot protect '@name': an abstract name has no file" in program.errors
