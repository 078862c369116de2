"""Systems that lack what Linux has: old kernels, gVisor, qemu's user mode, filters of seccomp. Each does without."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import termios
from pathlib import Path

import pytest

import asyncserver
from asyncserver.datagrams import datagram
from asyncserver.kernel import features, groups, packet_info
from asyncserver.leaving.executor import CallExecutor
from asyncserver.listening import unix_path
from asyncserver.listening.binding import Binding
from asyncserver.net import socket_info
from asyncserver.workers.cpus import allowed_cpus
from tests.kit.clients import Client
from tests.kit.datagrams import Place
from tests.kit.handlers import Hung, upper, upper_datagram
from tests.kit.waiting import PATIENCE, until
from tests.kit.workers import Start, both_workers

UNKNOWN = 9999  # no option's number: ENOPROTOOPT


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_told", set())


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == "asyncserver" and one.levelname == "WARNING"]


@pytest.mark.parametrize("option", [UNKNOWN, socket.SO_TYPE], ids=["gVisor", "qemu"])
async def test_without_so_meminfo_datagrams_are_served_and_drained(
    udp: Place, option: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unknown option, or one that is taken for a number; told once, and what is queued is still answered."""
    monkeypatch.setattr(datagram, "_SO_MEMINFO", option)
    handler = Hung()
    async with udp.serve(handler, max_pending=1) as server, udp.serve(upper_datagram) as other:
        client = udp.client(server)
        for number in range(5):
            client.send(b"x%d" % number)
        await until(lambda: handler.begun == 1)
        assert server.stats().datagrams_dropped == other.stats().datagrams_dropped == 0
        handler.release.set()
    assert sorted([await client.receive() for _ in range(5)]) == [b"X%d" % number for number in range(5)]
    assert told(caplog) == [
        "this system has no SO_MEMINFO, or does not allow it: datagrams that the kernel drops are not counted"
    ]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_without_packet_info_and_groups_datagrams_are_served(
    host: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Told once each."""
    monkeypatch.setattr(packet_info, "_IP_PKTINFO", UNKNOWN)
    monkeypatch.setattr(socket, "IPV6_RECVPKTINFO", UNKNOWN)
    monkeypatch.setattr(groups, "_IP_MULTICAST_ALL", UNKNOWN)
    monkeypatch.setattr(groups, "_IPV6_MULTICAST_ALL", UNKNOWN)
    async with (
        asyncserver.serve_datagrams(upper_datagram, host, 0) as server,
        asyncserver.serve_datagrams(upper_datagram, host, 0),
    ):
        with socket.socket(server.sockets[0].family, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(("::1" if ":" in host else "127.0.0.1", server.addresses[0][1]))
            client.send(b"question")
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.get_running_loop().sock_recv(client, 100) == b"QUESTION"
    assert [line.split(",")[0] for line in told(caplog)] == [
        "this system has no IP_PKTINFO",
        "this system has no IP_MULTICAST_ALL",
    ]


class Restricted(socket.socket):
    """As under systemd with RestrictAddressFamilies=AF_UNIX: sockets can be given, but none of these made."""

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:  # noqa: A002
        if fileno is None and family != socket.AF_UNIX:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        super().__init__(family, type, proto, fileno)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "::", "127.255.255.255"])
async def test_where_no_sockets_can_be_made_those_that_are_given_are_served(
    udp: Place, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broadcasts, and the groups of all hosts as far as the route knows."""

    def refuse() -> list[tuple[int, str]]:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))  # it asks by netlink

    async def handler(datagram: asyncserver.Datagram) -> bytes:
        assert datagram.local_address[1] == port
        return datagram.data.upper()

    given = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    if ":" in host:
        given.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    given.bind((host, 0))
    port = given.getsockname()[1]
    serving = asyncserver.serve_datagrams(handler, sock=Restricted(fileno=given.detach()))
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.settimeout(PATIENCE)
        with monkeypatch.context() as patched:
            patched.setattr(socket, "if_nameindex", refuse)
            patched.setattr(socket, "socket", Restricted)
            async with serving:
                client.sendto(b"question", (host if host.startswith("127") else "127.0.0.1", port))
        assert client.recvfrom(100) == (b"QUESTION", ("127.0.0.1", port))


def test_without_reuse_port_workers_share_a_socket(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As they do one that is given."""
    monkeypatch.setattr(socket, "SO_REUSEPORT", UNKNOWN)
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        slots = Binding("127.0.0.1", 0).open_slots(kind, 2)
        assert slots[0] == slots[1]
        slots[0][0].close()
    assert told(caplog) == ["this system has no SO_REUSEPORT, or does not allow it: workers share one queue"]


WITHOUT_PIDFD = """
import logging, os, signal, sys
del os.pidfd_open, signal.pidfd_send_signal
import asyncserver, app
logging.basicConfig(level=logging.INFO)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # as whoever starts us may have left it
asyncserver.run(asyncserver.serve(app.handler, "127.0.0.1", 0), loop=sys.argv[1], workers=2)
assert signal.SIGCHLD in signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""


def test_without_pidfd_dead_workers_are_replaced(start: Start) -> None:
    """Nothing is asked but SIGCHLD, also where it was blocked."""
    program = start(script=WITHOUT_PIDFD)
    (tcp,) = program.serving()
    one, other = both_workers(tcp)
    with one, other:
        os.kill(one.ask()[1], signal.SIGKILL)
        program.expect("ended by signal 9, and its connections with it; the next one starts in 0 s")
        program.serving()
        other.ask()
    assert program.end() == 0


@pytest.mark.parametrize("option", [UNKNOWN, socket.TCP_NODELAY], ids=["unknown", "qemu"])
def test_without_tcp_info_first_words_are_waited_for_by_our_own_clock(
    option: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number instead of a structure tells nothing."""
    monkeypatch.setattr(socket, "TCP_INFO", option)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        assert socket_info.first_words_due(client, 0.2) == pytest.approx(0.3)
        assert socket_info.first_words_due(client, 1.0) == 0.0


def test_without_fionread_a_look_tells_what_is_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on VSOCK of older kernels."""
    monkeypatch.setattr(termios, "FIONREAD", UNKNOWN)
    one, other = socket.socketpair()
    with one, other:
        assert socket_info.unread(one.fileno()) == 0
        other.sendall(bytes(1000))
        assert socket_info.unread(one.fileno()) == 1000
        other.close()
        assert len(one.recv(2000)) == 1000
        assert socket_info.unread(one.fileno()) == 0


def test_without_numbers_of_what_is_under_way_nothing_counts_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not sent, or not acknowledged: then it is as without these looks."""
    monkeypatch.setattr(termios, "TIOCOUTQ", UNKNOWN)
    monkeypatch.setattr(socket_info, "_SIOCOUTQNSD", UNKNOWN)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        client.setblocking(False)
        while True:
            try:
                client.send(bytes(1 << 16))
            except BlockingIOError:
                break
        assert socket_info.unsent(client.fileno()) == socket_info.unacknowledged(client) == 0


async def test_without_options_of_tcp_connections_are_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Told once each."""
    monkeypatch.setattr(socket, "TCP_NODELAY", UNKNOWN)
    monkeypatch.setattr(socket, "TCP_KEEPIDLE", UNKNOWN)
    async with (
        asyncserver.serve(upper, "127.0.0.1", 0, keepalive=60) as server,
        asyncserver.serve(upper, "127.0.0.1", 0, keepalive=60),
        Client.connect(server.addresses[0]) as client,
    ):
        assert await client.ask(b"question") == b"QUESTION"
    assert [line.split(",")[0] for line in told(caplog)] == [
        "this system has no TCP_NODELAY",
        "this system has no TCP_KEEPIDLE",
    ]


async def test_without_sched_getaffinity_all_cpus_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a filter of system calls forbids it, a program starts nevertheless, and has its executor."""

    def refuse(*_: object) -> set[int]:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    monkeypatch.setattr(os, "process_cpu_count", refuse, raising=False)
    assert allowed_cpus() == allowed_cpus() == os.cpu_count()
    assert told(caplog) == [
        "this system has no sched_getaffinity, or does not allow it: this process is taken to run on all CPUs"
    ]
    executor = CallExecutor(asyncio.get_running_loop())
    assert await asyncio.to_thread(lambda: "called") == "called"
    executor.shutdown()


async def test_without_proc_the_mode_of_a_socket_is_what_the_umask_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is refused with the reason, and leaves no file; less needs nothing."""
    monkeypatch.setattr(unix_path, "_DESCRIPTORS", str(tmp_path / "none"))
    umask = os.umask(0o022)
    try:
        with pytest.raises(asyncserver.BindError, match=r"mode 660 of .* needs /proc, or another umask"):
            await asyncserver.serve(upper, path=tmp_path / "s", path_mode=0o660)
        assert not (tmp_path / "s").exists()
        async with asyncserver.serve(upper, path=tmp_path / "s", path_mode=0o600):
            assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(umask)
