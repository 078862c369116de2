"""Rolling restarts: SIGHUP under load, new code, new certificates."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import socket
import ssl
from collections import Counter
from pathlib import Path

import pytest
import trustme

from tests.kit.traffic import Load
from tests.kit.workers import Start, WorkerClient, ask, ask_udp, both_workers, ended


def test_ten_rolling_restarts_under_load_lose_nothing(start: Start) -> None:
    """SIGHUP: every new connection is served, every answer whole, every datagram answered, the code is new."""
    program = start()
    tcp, udp = program.serving()

    def short(count: Counter[str]) -> None:
        ask(tcp, 20_000)
        count["connections"] += 1
        count["tcp"] += 1

    def long(count: Counter[str]) -> None:
        with WorkerClient(tcp) as client:
            count["connections"] += 1
            for _ in range(50):
                try:
                    client.ask(20_000, 0.001)
                except ConnectionError:  # between two messages the server may leave; within one it must not
                    count["left"] += 1
                    return
                count["tcp"] += 1

    def datagrams(count: Counter[str]) -> None:
        assert ask_udp(udp, b"question")[2] == b"question"
        count["udp"] += 1

    with Load(*[short] * 4, *[long] * 2, *[datagrams] * 2) as load:
        for version in range(2, 12):
            program.write_app(version)
            program.tell(signal.SIGHUP)
            program.serving()
            assert ask_udp(udp, b"")[0] in {version - 1, version}  # the old one may still have the last word
            load.wait_for("tcp", 300)
            load.wait_for("udp", 50)
            program.wait_for("with status 0 while it drained", 2 * (version - 1))
            assert ask(tcp)[0] == version
    assert not load.errors
    assert load.count["tcp"] > 3000
    assert program.end() == 0
    assert program.expect(r"accepted=(\d+)")[1] == str(load.count["connections"] + 10)
    found = program.expect(r"datagrams_received=(\d+).*datagrams_dropped=(\d+)")
    assert int(found[1]) == load.count["udp"] + 10
    assert found[2] == "0"


def test_log_says_whom_to_send_sighup(start: Start) -> None:
    """The supervisor's number, before the workers'."""
    program = start()
    supervisor = int(program.expect(r"INFO the supervisor is process (\d+): SIGHUP to it replaces the workers")[1])
    program.serving()
    os.kill(supervisor, signal.SIGHUP)
    program.expect("SIGHUP: starting new workers")
    program.serving()
    assert program.end() == 0


def drops(port: int) -> int:
    """Read how many datagrams the kernel has dropped at a port: the last column of each of its sockets."""
    lines = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return sum(int(line[-1]) for line in lines if line[1].endswith(f":{port:04X}") and line[2].endswith(":0000"))


def test_every_datagram_of_a_flood_is_accounted_for(start: Start) -> None:
    """Sent without waiting, during rolling restarts: what no handler received the kernel has dropped, and counted."""
    program = start("--udp", "127.0.0.1:0")
    (udp,) = program.serving()

    def flood(count: Counter[str]) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            for _ in range(100):
                count["sent"] += client.sendto(bytes(500), ("127.0.0.1", udp)) == 500

    with Load(*[flood] * 4) as load:
        for roll in range(1, 5):
            load.wait_for("sent", 4000)
            program.tell(signal.SIGHUP)
            program.serving()
            program.wait_for("with status 0 while it drained", 2 * roll)
    assert not load.errors
    dropped = drops(udp)
    assert program.end() == 0
    found = program.expect(r"datagrams_received=(\d+).*datagrams_answered=(\d+).*datagrams_dropped=(\d+)")
    received, answered, told = map(int, found.groups())
    assert received == answered > 1000
    assert received + dropped == load.count["sent"]
    # Both workers of a slot count for a moment, from when the new one has begun until the old one has heard of it.
    assert dropped <= told


def test_worker_told_to_end_is_replaced_first(start: Start) -> None:
    """SIGTERM to one worker is a wish to be replaced: its successor serves before it drains."""
    program = start()
    tcp, _ = program.serving()
    one, other = both_workers(tcp)
    with one, other:
        pid = one.ask()[1]
        gone = ended(pid)
        os.kill(pid, signal.SIGTERM)
        program.serving()
        assert one.file.read(1) == b""
        assert gone(10)
        assert other.ask()
        one_of_now, other_of_now = both_workers(tcp)
        with one_of_now, other_of_now:
            assert pid not in {one_of_now.ask()[1], other_of_now.ask()[1]}
    assert program.end() == 0


def test_reload_of_a_broken_handler_leaves_the_old_workers(start: Start) -> None:
    """New workers that cannot start change nothing; once repaired, SIGHUP brings the new code."""
    program = start()
    tcp, udp = program.serving()
    (program.folder / "app.py").write_text("this is not Python")
    program.tell(signal.SIGHUP)
    for _ in range(2):
        program.expect("with status 1 before it served: the one that serves stays")
    one, other = both_workers(tcp)
    with one, other:
        assert ask_udp(udp, b"")[0] == one.ask()[0] == other.ask()[0] == 1
        program.write_app(2)
        program.tell(signal.SIGHUP)
        program.serving()
        assert one.file.read(1) == other.file.read(1) == b""
    assert ask(tcp)[0] == 2
    assert program.end() == 0


def test_workers_that_cannot_be_started_leave_the_old_ones(start: Start) -> None:
    """Out of descriptors: nobody is forked of whom nothing could be heard, and the slots' sockets serve as before."""
    program = start()
    tcp, _ = program.serving()
    pid = program.process.pid
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = next(number for number in itertools.count() if number not in taken)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free + 1, limits[1]))  # for a pair of sockets one is missing
    program.tell(signal.SIGHUP)
    for _ in range(2):
        program.expect("no new worker could be started .*Too many open files.*the one that serves stays")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    one, other = both_workers(tcp)
    with one, other:
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert {int(worker) for worker in workers} == {one.ask()[1], other.ask()[1]}
    assert program.end() == 0


def certificate(authority: trustme.CA, folder: Path) -> bytes:
    """Issue a new one; returns it as a client sees it."""
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(folder / "chain.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())


CODE = """
import logging, sys, app, asyncserver
logging.basicConfig(level="DEBUG")
calls = []
async def handler(stream):
    calls.append(stream)
    await app.handler(stream)
context = asyncserver.tls_context("chain.pem", "key.pem")
asyncserver.run(asyncserver.serve(handler, "127.0.0.1", 0, ssl=context), workers=2, loop=sys.argv[1])
assert not calls
print("the end", file=sys.stderr)
"""


@pytest.mark.parametrize("script", [None, CODE], ids=["command line", "run"])
def test_new_workers_have_new_certificates(start: Start, tmp_path: Path, script: str | None) -> None:
    """SIGHUP reads TLS's files again, also where workers are forked from a program's own state."""
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def seen(port: int) -> bytes | None:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(b"x 0 0\n")
            assert client.recv(99).split()[0] == b"1"
            return client.getpeercert(binary_form=True)

    first = certificate(authority, tmp_path)
    program = start("--tcp", "127.0.0.1:0", "--certfile", "chain.pem", "--keyfile", "key.pem", script=script)
    (tcp,) = program.serving()
    assert {seen(tcp) for _ in range(10)} == {first}
    second = certificate(authority, tmp_path)
    program.tell(signal.SIGHUP)
    program.wait_for("while it drained", 2)
    assert {seen(tcp) for _ in range(10)} == {second}
    assert program.end(signal.SIGINT) == 0
    if script:
        program.expect("the end")
