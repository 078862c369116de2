"""compat under faults and attacks, each kind of server in a process of its own; each test prints the figure it checks.

stdlib-like   compat's server classes
hosted        a handler class under asyncserver, on each loop
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import ssl
import statistics
import struct
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.kit.faults import FIGURES
from tests.kit.programs import LOOPS, Program
from tests.kit.sockets import connect
from tests.kit.waiting import wait_until

# MiB for a thousand threads with clients: without the GIL each has a heap of its own, 189 KB instead of 21.
THOUSAND_THREADS = 400 if sysconfig.get_config_var("Py_GIL_DISABLED") else 200

HOSTED = [f"hosted-{loop}" for loop in LOOPS]
STREAMS = ["ThreadingTCPServer", "ThreadingUnixStreamServer", *HOSTED]
# With a thousand clients each takes seconds, so of the loops the last one stands for both except in long runs.
MANY = ["ThreadingTCPServer", *(pytest.param(kind, marks=pytest.mark.soak) for kind in HOSTED[:-1]), HOSTED[-1]]

# Says where it serves, then tells about itself when asked to over standard input.
SERVER = """
import asyncio, gc, importlib, itertools, json, logging, os, resource, socket, socketserver, ssl, sys, threading

kind, options = sys.argv[1], json.loads(sys.argv[2])
import asyncserver, compat

logging.basicConfig(format="%(name)s: %(message)s")
errors, handled, drops = itertools.count(), itertools.count(), 0

REPLY = bytes(1 << 22)

class Echo(socketserver.StreamRequestHandler):
    timeout = options.get("timeout")

    def handle(self):
        try:
            while data := self.request.recv(1024):
                self.request.sendall(REPLY if data == b"flood" else data.upper())
        except OSError:
            if kind.startswith("hosted"):
                raise

def count(*_):
    next(handled)

def dropped(sock):
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 55, 36)[32:36], sys.byteorder)

def tell(sock, stats=None):
    for _ in sys.stdin:
        told = {
            "handled": int(repr(handled)[6:-1]), "errors": int(repr(errors)[6:-1]), "threads": threading.active_count(),
            "descriptors": len(os.listdir("/proc/self/fd")), "stats": stats() if stats else None,
            "drops": dropped(sock) if sock.type == socket.SOCK_DGRAM else 0,
        }
        print(json.dumps(told), flush=True)
    os._exit(0)

def begin(address, sock, stats=None):
    if "descriptors" in options:
        resource.setrlimit(resource.RLIMIT_NOFILE, (options["descriptors"],) * 2)
    threading.Thread(target=tell, args=(sock, stats), daemon=True).start()
    print(json.dumps(address), flush=True)

def tls_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options["tls"])
    return context

async def serve_hosted():
    handler, tls = compat.hosted(count if "datagrams" in options else Echo), None
    def note(error, source):
        next(errors)
    if "datagrams" in options:
        serving = asyncserver.serve_datagrams(handler, "127.0.0.1", 0)
    else:
        serving = asyncserver.serve(
            handler, "127.0.0.1", 0, idle_timeout=options.get("timeout"), on_error=note,
            **({"ssl": tls_context(), "ssl_handshake_timeout": options.get("timeout", 30)} if "tls" in options else {}),
        )
    async with serving as server:
        def stats():
            now = server.stats()
            return {name: getattr(now, name) for name in type(now).__slots__}
        begin(server.addresses[0], server.sockets[0], stats)
        await server.wait_closed()

def serve_legacy():
    class Server(getattr(compat, kind)):
        request_queue_size = 1024
        daemon_threads = True
        ssl_handshake_timeout = options.get("timeout", 30)
        def handle_error(self, request, client_address):
            next(errors)
    server = Server("server.sock" if "Unix" in kind else ("127.0.0.1", 0), count if "datagrams" in options else Echo)
    sock = server.socket
    if "tls" in options:
        server.socket = tls_context().wrap_socket(server.socket, server_side=True)
    begin(server.server_address, sock)
    server.serve_forever()

if kind.startswith("hosted"):
    factory = importlib.import_module(kind.partition("-")[2]).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve_hosted())
else:
    serve_legacy()
"""


class Server:
    """A server program, and clients of it."""

    def __init__(self, kind: str, folder: Path, **options: object) -> None:
        (folder / "server.py").write_text(SERVER)
        self.folder = folder
        self.program = Program(["server.py", kind, json.dumps(options)], folder)
        self.told = 0

    def __enter__(self) -> Self:
        self.address = self._next()
        return self

    def __exit__(self, *_: object) -> None:
        self.program.close()

    def _next(self) -> Any:
        self.told += 1
        wait_until(lambda: self.program.output.count("\n") >= self.told or self.program.process.poll() is not None)
        return json.loads(self.program.output.splitlines()[self.told - 1])

    def ask(self) -> dict[str, Any]:
        """What it tells about itself."""
        stdin = self.program.process.stdin
        assert stdin is not None
        stdin.write("\n")
        stdin.flush()
        told: dict[str, Any] = self._next()
        return told

    def until(self, reached: Any, seconds: float = 20) -> dict[str, Any]:
        """What it tells as soon as that has been reached."""
        deadline = time.monotonic() + seconds
        while not reached(told := self.ask()):
            assert time.monotonic() < deadline, told
            time.sleep(0.01)
        return told

    def connect(self) -> socket.socket:
        """A client whose operations give up after twenty seconds."""
        address = str(self.folder / self.address) if isinstance(self.address, str) else tuple(self.address)
        return connect(address, receive_buffer=8192)  # a thousand full buffers are the machine's memory

    def cpu(self) -> float:
        """Seconds of processor time that it has used."""
        fields = Path(f"/proc/{self.program.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """MiB of resident memory."""
        pages = Path(f"/proc/{self.program.process.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize() / 2**20


@pytest.fixture(autouse=True)
def _room() -> Iterator[None]:
    """Descriptors for two thousand clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def readable(clients: Sequence[socket.socket], seconds: float = 0.0) -> list[socket.socket]:
    """Those that have been sent something."""
    poll = select.poll()
    by_descriptor = {client.fileno(): client for client in clients}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll(seconds * 1000)]


# Descriptors


@pytest.mark.parametrize("kind", STREAMS)
def test_500_clients_are_served_with_64_descriptors(kind: str, tmp_path: Path) -> None:
    """All in the end; no spinning meanwhile; one warning; back as soon as a descriptor is free."""
    with Server(kind, tmp_path, descriptors=64) as server, ExitStack() as stack:
        waiting = {stack.enter_context(server.connect()) for _ in range(500)}
        for client in waiting:
            client.sendall(b"abc")
        served, recoveries = 0, []
        answered = quiet(waiting)
        before, since = server.cpu(), time.monotonic()
        time.sleep(0.5)  # the time that is measured
        usage = (server.cpu() - before) / (time.monotonic() - since)
        for _ in range(9):
            waiting.difference_update(answered)
            answered.pop().close()
            since = time.monotonic()
            answered += readable(list(waiting), 20)
            recoveries.append(time.monotonic() - since)
            served += 1
        while answered:
            waiting.difference_update(answered)
            for client in answered:
                assert client.recv(10) == b"ABC"
                client.close()
            served += len(answered)
            answered = readable(list(waiting), 20) if waiting else []
        warnings = [line for line in server.program.errors.splitlines() if "Too many open files" in line]
        print(
            f"{served} served, {usage:.1%} CPU while exhausted, back after {statistics.median(recoveries) * 1e3:.0f} ms"
        )
    assert served == 500
    assert usage < 0.2
    assert statistics.median(recoveries) < 5, recoveries  # milliseconds, but this machine may be busy
    assert len(warnings) == 1, server.program.errors


def quiet(clients: set[socket.socket]) -> list[socket.socket]:
    """Those that are answered when no more are."""
    answered: list[socket.socket] = []
    while len(now := readable(list(clients))) > len(answered) or not now:
        answered = now
        time.sleep(0.2)  # nothing tells that nothing more will come
    return answered


# Clients that do not do their part


@pytest.mark.parametrize("kind", MANY)
def test_clients_that_never_read_cost_little(kind: str, tmp_path: Path) -> None:
    """Each has asked for 4 MiB; memory grows within the limit, and others wait no more than 5 times as long."""
    count = 1000 if FIGURES in os.environ else 400
    with Server(kind, tmp_path) as server, ExitStack() as stack, server.connect() as honest:
        before, alone = server.memory(), latency(honest)
        for _ in range(count):
            stack.enter_context(server.connect()).sendall(b"flood")
        server.until(lambda told: told["threads"] >= count)
        beside, grown = latency(honest), server.memory() - before
        print(f"memory +{grown:.0f} MiB, p99 {alone * 1e3:.2f} -> {beside * 1e3:.2f} ms")
        assert grown < THOUSAND_THREADS * count / 1000
        assert beside < max(5 * alone, 1)  # less is the noise of a busy machine


def latency(client: socket.socket) -> float:
    """Seconds that 99 of 100 questions wait for their answer."""
    took = []
    for _ in range(200):
        since = time.perf_counter()
        client.sendall(b"abc")
        assert client.recv(10) == b"ABC"
        took.append(time.perf_counter() - since)
    return sorted(took)[-3]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("transport", ["plain", "tls"])
@pytest.mark.parametrize("kind", MANY)
def test_silent_clients_are_cut_off(kind: str, transport: str, tmp_path: Path, certfile: Path) -> None:
    """At the handler's timeout, the idle timeout or that of the handshake; nothing is left over of them."""
    count = 1000 if FIGURES in os.environ else 400
    options = {"tls": str(certfile)} if transport == "tls" else {}
    with Server(kind, tmp_path, timeout=1.0, **options) as server:
        cut_off(server.connect())  # from here it serves
        before, since = server.ask(), time.monotonic()
        clients = [server.connect() for _ in range(count)]
        for client in clients:
            cut_off(client)
        took = time.monotonic() - since
        after = server.until(lambda told: told["descriptors"] <= before["descriptors"])
        print(f"{count} silent clients gone after {took:.1f} s, descriptors {after['descriptors']}")
        assert took < 60  # one after the other they would take a second each
        assert after["errors"] == 0
        if after["stats"]:
            server.until(lambda told: told["stats"]["refused" if transport == "tls" else "timed_out"] == count + 1)


def cut_off(client: socket.socket) -> None:
    """Wait until the server has ended the connection."""
    with client, contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""


# Resets


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", *HOSTED])
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.soak)])
def test_resets_at_every_point_leave_nothing(kind: str, count: int, tmp_path: Path) -> None:
    """Before it is accepted, after the first byte, in the middle of a reply: no error, nothing left open."""
    with Server(kind, tmp_path) as server:
        with server.connect() as client:
            latency(client)
        before, memory = server.until(lambda told: told["threads"] >= 2), server.memory()
        for number in range(count):
            with server.connect() as client:
                if number % 3:
                    client.sendall(b"flood" if number % 3 == 2 else b"abc")
                    client.recv(1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with server.connect() as client:
            assert latency(client) < 20
        after = server.until(lambda told: told["descriptors"] <= before["descriptors"])
        grown = server.memory() - memory
        print(f"{count} resets: descriptors {before['descriptors']} -> {after['descriptors']}, memory +{grown:.1f} MiB")
        assert grown < 20
        assert after["errors"] == 0
        assert server.program.errors == ""


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", *HOSTED])
def test_resets_in_the_handshake_leave_nothing(
    kind: str, tmp_path: Path, certfile: Path, client_context: ssl.SSLContext
) -> None:
    """Before, within and, with garbage, at the end of TLS's handshake; who does it properly is served."""

    def ask() -> None:
        with client_context.wrap_socket(server.connect(), server_hostname="localhost") as client:
            client.sendall(b"abc")
            assert client.recv(10) == b"ABC"

    with Server(kind, tmp_path, tls=str(certfile)) as server:
        ask()
        before = server.ask()
        for number in range(300):
            with server.connect() as client:
                client.sendall((b"", b"\x16\x03\x01\x02\0\x01", b"GET / HTTP/1.0\r\n")[number % 3])
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ask()
        after = server.until(lambda told: told["descriptors"] <= before["descriptors"])
        print(f"300 resets: descriptors {before['descriptors']} -> {after['descriptors']}, {after['errors']} errors")
        assert after["errors"] == 0
        assert server.program.errors == ""


# Datagrams


@pytest.mark.parametrize("kind", ["UDPServer", "ThreadingUDPServer", *HOSTED])
@pytest.mark.parametrize("count", [30_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_no_datagram_of_a_flood_is_lost_unaccounted(kind: str, count: int, tmp_path: Path) -> None:
    """Sent = handled + the kernel's drops, exactly; memory stays flat."""
    with Server(kind, tmp_path, datagrams=True) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(tuple(server.address))
        before = server.memory()
        for _ in range(count):
            client.send(b"flood")
        told = server.until(lambda told: told["handled"] + told["drops"] == count)
        grown = server.memory() - before
        print(f"{count} sent = {told['handled']} handled + {told['drops']} dropped; memory +{grown:.0f} MiB")
        assert told["handled"] > 0
        assert grown < 100
        if told["stats"]:
            assert told["stats"]["datagrams_received"] == told["handled"]
