"""Metrics and probes over HTTP: from one process and from workers, under load, while it drains, from bad clients."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import sys
import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncserver
from asyncserver import _http, _monitor
from asyncserver._monitor import Monitor, parse_place, respond
from tests.serverkit import PATIENCE, errors_in, upper
from tests.support import Client as AsyncClient
from tests.support import within
from tests.test_metrics import values
from tests.traffic import Load
from tests.workerkit import Client, Program, Start, ask, ask_udp, start

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

__all__ = ["start"]  # a fixture


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    """Ask; returns status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def monitored(program: Program) -> int:
    """Wait until the log tells where; returns the port."""
    return int(program.expect(r"/metrics, /ready and /live on http://127.0.0.1:(\d+)")[1])


def scrape(port: int, path: str = "/metrics") -> dict[str, float]:
    status, text = get(port, path)
    assert status == 200, text
    return values(text)


def soon(reached: Callable[[], bool]) -> None:
    """Poll what has no event: when a server in another process has noticed that a client has left."""
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


# -- what is asked, and what is answered


def test_request_is_taken_apart() -> None:
    """Path, query and all Accept fields; HEAD is remembered."""
    request = _http.parse(b"HEAD /metrics?by=worker HTTP/1.1\r\nHost: x\r\naccept: a\r\nAccept:b")
    assert request == _http.Request("/metrics", {"by": ["worker"]}, "a,b", head_only=True)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /metrics HTTP/1.1", 405),
        (b"GET /metrics", 400),
        (b"GET  /metrics HTTP/1.1", 400),
        (b"GET /metrics HTTP/2", 400),
        (b"GET http://[/ HTTP/1.1", 400),
        (b"", 400),
        (b"\x16\x03\x01\x02\x00", 400),
    ],
)
def test_what_is_no_request_is_answered_with_what_is(head: bytes, status: int) -> None:
    """Wrong methods, other protocols, noise."""
    response = _http.parse(head)
    assert isinstance(response, _http.Response)
    assert response.status == status
    assert response.encode().startswith(b"HTTP/1.1 %d " % status)
    assert (b"\r\nAllow: GET, HEAD\r\n" in response.encode()) == (status == 405)


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda data: b"GET " + data + b" HTTP/1.1"))
def test_no_bytes_break_the_parser(head: bytes) -> None:
    """Whatever comes is a request, or is answered."""
    assert isinstance(_http.parse(head), _http.Request | _http.Response)


def test_head_gets_the_same_head_and_no_body() -> None:
    """RFC 9110 9.3.2."""
    response = _http.Response(HTTPStatus.OK, b"12345")
    head, _, body = response.encode().partition(b"\r\n\r\n")
    assert body == b"12345"
    assert response.encode(head_only=True) == head + b"\r\n\r\n"
    assert b"\r\nContent-Length: 5\r\n" in head


def request_for(path: str) -> _http.Request:
    return _http.Request(path, {}, "", head_only=False)


def test_without_prometheus_client_probes_answer_and_metrics_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The package is an extra, and Kubernetes' probes need nothing of it."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monitor = Monitor()
    monitor.serving("127.0.0.1:0").close()
    assert "pip install 'asyncserver[metrics]'; until then only /ready and /live answer" in caplog.text
    assert respond(monitor, request_for("/live")).status == 200
    response = respond(monitor, request_for("/metrics"))
    assert response.status == 501
    assert b"pip install 'asyncserver[metrics]'" in response.body


def test_failure_inside_is_told_and_contained(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Status 500, and the log has the error."""
    monitor = Monitor()

    def fail() -> None:
        raise LookupError("no rows")

    monkeypatch.setattr(monitor, "rows", fail)
    assert respond(monitor, request_for("/metrics")).status == 500
    assert "/metrics could not be answered" in errors_in(caplog)[0].getMessage()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9100", ("127.0.0.1", 9100)),
        ("[::1]:9100", ("::1", 9100)),
        (":9100", (None, 9100)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_place_is_host_and_port(text: str, place: tuple[str | None, int]) -> None:
    """As on the command line."""
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["9100", "localhost", "::1:9100", "localhost:http", "[::1]", ""])
def test_what_is_no_place_says_what_is(text: str) -> None:
    """At once, from run(); nothing is left unawaited."""
    with pytest.raises(ValueError, match=r'metrics must be "HOST:PORT", such as "127.0.0.1:9100"'):
        asyncserver.run(asyncserver.serve(upper, "127.0.0.1", 0), metrics=text)
    wrong: Any = 9100
    with pytest.raises(TypeError, match="got 9100"):
        asyncserver.run(asyncserver.serve(upper, "127.0.0.1", 0), metrics=wrong)


@pytest.mark.parametrize("delay", [-1, "5", None, True])
def test_wrong_delay_says_what_was_expected(delay: Any) -> None:
    """At once, too."""
    with pytest.raises((TypeError, ValueError), match="drain_delay must be"):
        asyncserver.run(asyncserver.serve(upper, "127.0.0.1", 0), drain_delay=delay)


# -- one process


async def test_readiness_follows_the_servers() -> None:
    """Not before they are there, not while one is paused, not once one closes."""
    monitor = Monitor()
    assert not monitor.ready
    async with asyncserver.serve(upper, "127.0.0.1", 0) as one, asyncserver.serve(upper, "127.0.0.1", 0) as other:
        monitor.watch([one, other], measure=False)
        assert monitor.ready
        one.pause()
        assert not monitor.ready
        one.resume()
        assert monitor.ready
        await other.close()
        assert not monitor.ready
        assert one.durations is None
        assert monitor.rows()[0].reading == {"ready": 0, "workers": 1, "worker_deaths": 0}
        assert len(monitor.rows()) == 3  # that of a closed server is still told


@pytest.mark.parametrize("sent", [b"", b"GET /metr", b"GET /live HTTP/1.1\r\nHost: x\r\n"])
async def test_slow_client_is_cut_off_without_a_word(
    sent: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole request has to come in time."""
    monkeypatch.setattr(_monitor, "PATIENCE", 0.1)
    async with Monitor().serving("127.0.0.1:0") as server:
        client = await AsyncClient.connect(server.addresses[0])
        await client.send(sent)
        with contextlib.suppress(ConnectionResetError):
            assert await client.receive_all() == b""
        client.close()
        await within(server.close())
        assert server.stats().completed == 1
    assert not errors_in(caplog)


async def test_head_that_is_too_long_is_refused() -> None:
    """Memory is bounded."""
    async with Monitor().serving("127.0.0.1:0") as server:
        client = await AsyncClient.connect(server.addresses[0])
        await client.send(b"GET /live HTTP/1.1\r\nA: ".ljust(_http.LONGEST_HEAD, b"a"))
        assert (await client.receive_all()).startswith(b"HTTP/1.1 431 ")
        client.close()


PROGRAM = """
import sys
import prometheus_client
import asyncserver, logging

logging.basicConfig(level=logging.INFO)
asked = prometheus_client.Counter("asked", "How often.")

class Raising:
    def collect(self):
        yield from prometheus_client.Gauge("before", "", registry=None).collect()
        raise LookupError("no numbers today")

    def describe(self):
        return []

async def handler(stream):
    asked.inc()
    await stream.send(await stream.receive())

prometheus_client.REGISTRY.register(asyncserver.ServerCollector())  # told once all the same
prometheus_client.REGISTRY.register(Raising())
asyncserver.run(asyncserver.serve(handler, "127.0.0.1", 0), loop=sys.argv[1], metrics="127.0.0.1:0")
"""


def test_program_of_one_process_tells_its_own_metrics_too_and_a_failing_collector_hurts_nothing(start: Start) -> None:
    """One endpoint for both; the scrapes are not counted as the program's connections."""
    program = start(script=PROGRAM)
    port = monitored(program)
    served = int(program.expect(r"serving on \('127.0.0.1', (\d+)\)")[1])
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", served)) as client:
            client.sendall(b"x")
            assert client.recv(9) == b"x"
    found = scrape(port)
    assert found["asked_total"] == 3
    assert found["before"] == 0
    assert found["process_cpu_seconds_total"] > 0
    program.expect("a collector of the program has failed")
    soon(lambda: scrape(port)["handlers_ended_total completed"] == 3)
    found = scrape(port, "/metrics?by=worker")
    assert found["connections_accepted_total 1"] == 3
    assert found["handler_duration_seconds_count 1"] == 3
    assert program.end() == 0


# -- both


def serving(program: Program, workers: str) -> int:
    """Wait until it serves; returns the first port."""
    if workers == "2":
        return program.serving()[0]
    return int(program.expect(r"serving on \('127.0.0.1', (\d+)\)")[1])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_probes_and_other_paths(start: Start, workers: str) -> None:
    """/ready, /live, what is not there, what is not allowed, HEAD."""
    program = start("--tcp", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--workers", workers)
    port = monitored(program)
    serving(program, workers)
    assert get(port, "/ready") == (200, "ready\n")
    assert get(port, "/live") == (200, "live\n")
    assert get(port, "/") == (404, "there are /metrics, /ready and /live\n")
    assert get(port, "/metrics", "DELETE") == (405, "DELETE is not served here, GET and HEAD are\n")
    assert get(port, "/metrics", "HEAD") == (200, "")
    found = scrape(port)
    assert found["ready"] == 1
    assert found["workers"] == int(workers)
    assert program.end() == 0
    with pytest.raises(ConnectionRefusedError):
        get(port, "/live")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_second_signal_skips_the_delay_and_the_drain_is_seen(start: Start, workers: str) -> None:
    """From the first signal on not ready, but serving; then the drain, as without a delay, and still not ready."""
    options = ("--metrics", "127.0.0.1:0", "--workers", workers, "--drain-delay", "300")
    program = start("--tcp", "127.0.0.1:0", *options)
    port = monitored(program)
    tcp = serving(program, workers)
    program.tell(signal.SIGTERM)
    program.expect("SIGTERM: not ready any more; in 300 s, or when told again, the drain")
    assert get(port, "/ready") == (503, "not ready\n")
    assert get(port, "/live")[0] == 200
    assert scrape(port)["ready"] == 0
    with Client(tcp) as client:  # comes after the signal, and is served
        client.ask()
        client.send(1000, 1.0)
        size = client.head()[2]
        program.tell(signal.SIGINT)
        program.expect("SIGINT: no new work")
        assert get(port, "/ready") == (503, "not ready\n")
        assert scrape(port)["handlers_active"] == 1
        client.rest(size)
    assert program.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_delay_ends_by_itself(start: Start, workers: str) -> None:
    """Then it drains, without another signal."""
    program = start("--tcp", "127.0.0.1:0", "--workers", workers, "--drain-delay", "0.3")
    serving(program, workers)
    begun = time.monotonic()
    program.tell(signal.SIGTERM)
    program.expect("not ready any more; in 0.3 s")
    program.expect("no new work")
    assert time.monotonic() - begun >= 0.3
    assert program.process.wait(PATIENCE) == 0


def test_place_that_is_taken_is_told_before_anything_is_served(start: Start) -> None:
    """As for every other address: status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for workers in ("1", "2"):
            place = f"127.0.0.1:{taken.getsockname()[1]}"
            program = start("--tcp", "127.0.0.1:0", "--metrics", place, "--workers", workers)
            assert program.process.wait(PATIENCE) == 1
            program.expect("it is taken")


# -- workers


def counted(count: Counter[str], tcp: int, udp: int) -> None:
    """Ask once over each, and count what was answered."""
    ask(tcp)
    count["connections"] += 1
    ask_udp(udp, b"x")
    count["datagrams"] += 1


def agree(found: dict[str, float], count: Counter[str]) -> bool:
    """Whether all has been accounted for that the load has counted."""
    return (
        found["connections_accepted_total"] == count["connections"]
        and found["datagrams_received_total"] == found["datagrams_answered_total"] == count["datagrams"]
        and found["handlers_ended_total completed"] == found["handler_duration_seconds_count"]
        and found["handler_duration_seconds_count"] == count["connections"] + count["datagrams"]
    )


class Watch(threading.Thread):
    """Scrapes all the while; keeps what has gone backwards."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.stop = threading.Event()
        self.scrapes = 0
        self.backwards: list[str] = []

    def run(self) -> None:
        before: dict[str, float] = {}
        while not self.stop.wait(0.005):
            found = scrape(self.port)
            self.backwards += [name for name, value in found.items() if counts(name) and value < before.get(name, 0)]
            before = found
            self.scrapes += 1


def counts(name: str) -> bool:
    return "_total" in name or "_bucket" in name or "_count" in name


def test_metrics_agree_with_the_load_over_two_workers_and_a_rolling_restart_and_a_death(start: Start) -> None:
    """Nothing is counted twice, or lost, or taken back; a killed worker's numbers are those of its last report."""
    program = start("--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    port = monitored(program)
    tcp, udp = program.serving()
    watch = Watch(port)
    watch.start()
    try:
        with Load(*[lambda count: counted(count, tcp, udp)] * 4) as load:
            load.wait_for("datagrams", 500)
            program.tell(signal.SIGHUP)
            program.serving()
            load.wait_for("datagrams", 500)
        assert not load.errors
        soon(lambda: agree(scrape(port), load.count))

        pid = ask(tcp)[1]
        load.count["connections"] += 1
        soon(lambda: agree(scrape(port), load.count))  # and so this has been reported
        os.kill(pid, signal.SIGKILL)
        program.expect("ended by signal 9")
        assert scrape(port)["worker_deaths_total"] == 1
        for _ in range(20):
            counted(load.count, tcp, udp)
        soon(lambda: agree(scrape(port), load.count))
        soon(lambda: get(port, "/ready")[0] == 200)
    finally:
        watch.stop.set()
        watch.join()
    assert watch.scrapes > 5
    assert not watch.backwards
    shares = scrape(port, "/metrics?by=worker")
    assert min(shares[f"connections_accepted_total {worker}"] for worker in "12") > 0
    assert sum(shares[f"connections_accepted_total {worker}"] for worker in "12") == load.count["connections"]
    assert program.end() == 0


def children(pid: int) -> set[int]:
    """The processes that it has started and that live."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return set(map(int, file.read().split()))


DATAGRAMS = """
import logging, socket, sys
import asyncserver

logging.basicConfig(level=logging.INFO)

async def handler(datagram):
    return None

sock = socket.socket(type=socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
serving = asyncserver.serve_datagrams(handler, PLACE)
asyncserver.run(serving, loop=sys.argv[1], workers=2, metrics="127.0.0.1:0")
"""


@pytest.mark.parametrize("place", ['"127.0.0.1", 0', "sock=sock"])
def test_what_the_kernel_drops_is_counted_once_whoever_watches(start: Start, place: str) -> None:
    """While old and new workers have the socket, and where all of them have the same one."""
    program = start(script=DATAGRAMS.replace("PLACE", place))
    port = monitored(program)
    (udp,) = program.serving()
    stopped = children(program.process.pid)
    for pid in stopped:  # so that they neither read nor leave
        os.kill(pid, signal.SIGSTOP)
    program.tell(signal.SIGHUP)
    program.serving()
    stopped |= children(program.process.pid)
    assert len(stopped) == 4
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", udp))
        for _ in range(5000):  # of a kilobyte: more than the megabyte there may be room for
            client.send(bytes(1000))
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    soon(lambda: scrape(port)["workers"] == 2)
    soon(lambda: accounted(scrape(port)) == 5000)
    assert scrape(port)["datagrams_dropped_total"] > 1000
    assert program.end() == 0
    program.expect(r"datagrams_dropped=[1-9]\d{3}\b")


def accounted(found: dict[str, float]) -> float:
    return found["datagrams_received_total"] + found["datagrams_dropped_total"]


def test_worker_that_does_not_answer_delays_a_scrape_by_a_second_and_is_not_ready_in_the_end(start: Start) -> None:
    """Its last numbers are told, and the probes do not wait for it; stuck for long, it takes no new work."""
    program = start("--tcp", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    port = monitored(program)
    (tcp,) = program.serving()
    with Client(tcp) as client:
        client.sock.sendall(b"block\n")
        client.head()
        begun = time.monotonic()
        assert get(port, "/ready")[0] == 200
        assert time.monotonic() - begun < 1
        found = scrape(port)
        assert 1 <= time.monotonic() - begun < 5
        assert found["workers"] == 2
        program.expect("has said nothing for 10 s")
        assert get(port, "/ready")[0] == 503
        assert scrape(port)["workers"] == 1
        for words in ("no new work", "again: cancelling", "killed"):
            program.tell(signal.SIGTERM)
            program.expect(words)
        assert program.process.wait(PATIENCE) == 0


def test_worker_killed_under_load_takes_at_most_its_last_reports_with_it(start: Start) -> None:
    """What a scrape has told stays; what has come since may be lost, and nothing is counted twice."""
    program = start("--tcp", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    port = monitored(program)
    (tcp,) = program.serving()

    def job(count: Counter[str]) -> None:
        count["tried"] += 1
        with contextlib.suppress(ConnectionError, AssertionError):  # at the victim just then
            ask(tcp)

    victim = ask(tcp)[1]
    with Load(*[job] * 4) as load:
        load.wait_for("tried", 300)
        told = scrape(port)["connections_accepted_total"]
        os.kill(victim, signal.SIGKILL)
        since = load.count["tried"] + 1 + 4 - told  # with the first, and those under way
        load.wait_for("tried", 300)
    soon(lambda: scrape(port)["handlers_active"] == 0)
    lost = load.count["tried"] + 1 - scrape(port)["connections_accepted_total"]
    assert 0 <= lost <= since + 4
    assert not load.errors
    assert program.end() == 0
