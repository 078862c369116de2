"""Workers: what is sent to many reaches each worker's socket, and is handled, answered and counted once."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.networks import INTERFACE, IPV4, IPV6, in_own_network
from tests.kit.waiting import PATIENCE
from tests.kit.workers import Start, WorkerProgram, ask_udp

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def sender(destination: tuple[Any, ...], interface: str) -> Iterator[socket.socket]:
    """A socket that may send to many, from an interface."""
    index = socket.if_nametoindex(interface)
    with socket.socket(socket.AF_INET6 if ":" in destination[0] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("8xi", index))
            sock.bind(("127.0.0.1" if interface == "lo" else IPV4, 0))
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        yield sock


def ask_all(
    program: WorkerProgram, destination: tuple[Any, ...], unicast: tuple[str, int], interface: str
) -> list[Any]:
    """Send one to many, and questions to one until both workers have answered; returns the answers to the first."""
    with sender(destination, interface) as sock:
        sock.sendto(b"to many", destination)
        answers = []
        workers: set[int] = set()
        asked = 0
        while len(workers) < 2:
            workers.add(ask_udp(unicast, b"to one")[1])
            asked += 1
            assert asked < 100, "100 questions, and all at one worker"
        sock.setblocking(False)  # each worker has answered what came before
        with contextlib.suppress(BlockingIOError):
            while True:
                answers.append(sock.recvfrom(1000))
    program.tell(signal.SIGUSR1)
    told = program.expect(r"datagrams_received=(\d+), datagrams_sent=(\d+), .*datagrams_dropped=(\d+)")
    assert [int(number) for number in told.groups()] == [asked + len(answers), asked + len(answers), 0]
    return answers


def serve(start: Start, host: str) -> tuple[WorkerProgram, int]:
    program = start("--udp", f"{host}:0")
    return program, int(program.expect(r"2 workers serve on udp://.*:(\d+)")[1])


@pytest.mark.parametrize(
    ("host", "destination"),
    [
        ("0.0.0.0", "10.9.0.255"),
        ("0.0.0.0", "255.255.255.255"),
        ("0.0.0.0", "224.0.0.1"),
        ("[::]", "ff02::1"),
    ],
)
@in_own_network
def test_what_is_sent_to_many_is_answered_once(start: Start, host: str, destination: str) -> None:
    """On sockets for every interface, from an address of that interface."""
    program, port = serve(start, host)
    unicast = IPV6 if ":" in destination else IPV4
    scope = (0, socket.if_nametoindex(INTERFACE)) if ":" in destination else ()
    ((answer, source),) = ask_all(program, (destination, port, *scope), (unicast, port), INTERFACE)
    assert answer.endswith(b"to many")
    assert source[0] in {IPV4, IPV6, "fe80::5"}
    assert source[1] == port
    assert program.end() == 0


def test_loopback_broadcast_is_answered_once(start: Start) -> None:
    """It has one too."""
    program, port = serve(start, "0.0.0.0")
    ((_, source),) = ask_all(program, ("127.255.255.255", port), ("127.0.0.1", port), "lo")
    assert source == ("127.0.0.1", port)
    assert program.end() == 0


@pytest.mark.parametrize("host", ["127.255.255.255", "239.1.2.3"])
def test_socket_that_is_bound_to_what_means_many_is_one_for_all_workers(start: Start, host: str) -> None:
    """So a datagram is answered once, and by whichever worker is free."""
    with socket.socket(type=socket.SOCK_DGRAM) as other:  # there are groups that somebody has to join
        joined = socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1")
        other.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        program, port = serve(start, host)
        with sender((host, port), "lo") as sock:
            for number in range(20):
                sock.sendto(b"%d" % number, (host, port))
            answers = [sock.recvfrom(1000) for _ in range(20)]
            sock.sendto(b"last", (host, port))
            answers.append(sock.recvfrom(1000))
    assert sorted(answer.split()[2] for answer, _ in answers) == sorted([*(b"%d" % n for n in range(20)), b"last"])
    assert {source for _, source in answers} == {("127.0.0.1", port)}
    assert program.end() == 0


JOINING = """
import asyncio, logging, os, socket, sys
import asyncserver, app

class Joining(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport
        joined = socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1")
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)

    def datagram_received(self, data, addr):
        self.transport.sendto(b"1 %d %b" % (os.getpid(), data), addr)

logging.basicConfig(level=logging.INFO)
asyncserver.run(
    asyncserver.serve_datagrams(asyncserver.from_protocol(Joining), "0.0.0.0", 0), loop=sys.argv[1], workers=2
)
"""


def test_group_that_each_worker_joins_is_answered_once(start: Start) -> None:
    """As protocols do when they are made."""
    program = start(script=JOINING)
    port = int(program.expect(r"2 workers serve on udp://.*:(\d+)")[1])
    ((_, source),) = ask_all(program, ("239.1.2.3", port), ("127.0.0.1", port), "lo")
    assert source == ("127.0.0.1", port)
    assert program.end() == 0
