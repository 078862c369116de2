"""What docs/security.md says, where no other test shows it."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver.exceptions import HeaderError
from asyncserver.proxy.proxy_protocol import HeaderParser, crc32c
from tests.kit.checks import errors_in, is_idle
from tests.kit.handlers import upper
from tests.kit.programs import ROOT, Program
from tests.kit.transports import Transport
from tests.kit.waiting import until

SOURCES = [*(ROOT / "asyncserver").glob("*.py"), *(ROOT / "compat").glob("*.py")]


# What is exposed


def test_without_arguments_the_command_line_serves_this_host_only(tmp_path: Path) -> None:
    """TCP and UDP, loopback. Where the port is taken, it is that of loopback."""
    with Program(["-m", "asyncserver"], tmp_path) as program:
        places: set[tuple[str, str]] = set()
        while program.process.poll() is None and len(places) < 2:
            with contextlib.suppress(FileNotFoundError):  # it has ended just now: the port is taken
                places = bound_by(program.process.pid)
            time.sleep(0.01)
        if program.process.poll() is not None:
            program.wait()
            assert "127.0.0.1:8080" in program.errors
            pytest.skip("the port is taken")
        print(*sorted(places))
        assert {ipaddress.ip_address(host) for host, _ in places} == {ipaddress.ip_address("127.0.0.1")}


def bound_by(pid: int) -> set[tuple[str, str]]:
    """Where a process listens, or receives datagrams."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            inodes.add(descriptor.readlink().name.removeprefix("socket:[").removesuffix("]"))
    places: set[tuple[str, str]] = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            host, port = fields[1].split(":")
            if fields[9] in inodes:
                family = socket.AF_INET if len(host) == 8 else socket.AF_INET6
                packed = b"".join(bytes.fromhex(host[start : start + 8])[::-1] for start in range(0, len(host), 8))
                places.add((socket.inet_ntop(family, packed), f"{table} {int(port, 16)}"))
    return places


def test_no_module_of_ours_names_an_address_beyond_loopback() -> None:
    """Nor do the benchmarks: whoever wants more has to say so."""
    for path in [*SOURCES, *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                with contextlib.suppress(ValueError):
                    address = ipaddress.ip_address(node.value.partition("%")[0])
                    compared = address.is_unspecified and path.name == "datagram.py"  # "does it listen everywhere?"
                    assert address.is_loopback or compared, f"{path}: {node.value}"


def test_bytes_from_outside_are_never_code() -> None:
    """No pickle, marshal, eval; exec is for the program that `python -m compat` is given; no temporary files."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            assert not names & {"pickle", "marshal", "shelve", "tempfile"}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                allowed = path.name == "program.py" and path.parent.name == "compat"
                assert node.func.id not in {"eval", "exec", "__import__"} or allowed, path


CHILD = "import os; print(*sorted(set(map(int, os.listdir('/proc/self/fd'))) - {0, 1, 2}))"


def output_of_child() -> str:
    """What a child says that gets whatever may be inherited."""
    command = [sys.executable, "-c", CHILD]
    return subprocess.run(command, capture_output=True, close_fds=False, text=True, timeout=20, check=True).stdout


async def test_children_inherit_no_descriptor(transport: Transport) -> None:
    """Not the listener, not connections, not an adopted descriptor that was itself inherited."""
    told: list[str] = []

    async def spawn(stream: asyncserver.Stream) -> None:
        await stream.receive()
        told.append(await asyncio.to_thread(output_of_child))
        await stream.send(b"x")

    before = await asyncio.to_thread(output_of_child)  # what we have been given ourselves
    given = socket.socket()
    given.bind(("127.0.0.1", 0))
    given.set_inheritable(True)
    async with transport.serve(spawn) as server, asyncserver.serve(upper, fd=given.detach()):
        client = await transport.connect(server)
        os.set_inheritable(client.sock.fileno(), False)
        assert await client.ask(b"?") == b"x"
        client.close()
    assert told == [before]


def test_a_header_has_one_checksum() -> None:
    """9,000 of them would each be a pass over 64 KiB: a minute of this loop for one connection."""
    start = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack(">H", 12 + 14) + bytes(12)
    second = b"\x03\0\4" + bytes(4)
    right = crc32c(start + b"\x03\0\4" + bytes(4) + second)
    header = start + b"\x03\0\4" + struct.pack(">I", right) + second
    parser = HeaderParser()
    with pytest.raises(HeaderError, match="more than one CRC32c"):
        parser.feed(header)
        parser.feed(header[16:])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_what_tls_context_offers(tls: Transport, version: ssl.TLSVersion) -> None:
    """1.2 and 1.3 with forward secrecy, no compression, no renegotiation; nothing older."""
    context = tls.client_context
    context.minimum_version = context.maximum_version = version
    try:
        async with tls.serve(upper) as server:
            client: Any = await tls.connect(server)
            cipher, protocol, bits = client.tls.cipher()
            print(cipher, protocol, bits)
            assert bits >= 128
            assert cipher.startswith(("ECDHE", "DHE", "TLS_"))
            assert client.tls.compression() is None
            client.close()
    finally:
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.MAXIMUM_SUPPORTED
    assert tls.server_context.options & ssl.OP_NO_RENEGOTIATION
    assert tls.server_context.minimum_version == ssl.TLSVersion.TLSv1_2


# Forged datagrams


async def test_a_forged_source_port_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can be answered at port 0; anybody can claim it, and each such datagram would fill the log."""

    async def answer(datagram: asyncserver.Datagram) -> bytes:
        return datagram.data

    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError:
        pytest.skip("only root can forge datagrams")
    async with asyncserver.serve_datagrams(answer, "127.0.0.1", 0) as server:
        port = int(server.addresses[0][1])
        with raw:
            raw.sendto(struct.pack(">HHHH", 0, port, 8 + 5, 0) + b"forge", ("127.0.0.1", port))
        await until(lambda: server.stats().datagrams_received == 1 and is_idle(server))
        stats = server.stats()
    assert (stats.datagrams_silent, stats.datagrams_sent, stats.failed) == (1, 0, 0)
    assert not errors_in(caplog)
