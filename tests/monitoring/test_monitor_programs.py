"""Metrics and probes of programs: one process and workers alike, under load and while they drain."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections import Counter

import pytest

from tests.kit.monitoring import get, monitored, scrape
from tests.kit.traffic import Load
from tests.kit.waiting import PATIENCE, wait_until
from tests.kit.workers import Start, WorkerClient, WorkerProgram, ask, ask_udp

# -- both


def serving(program: WorkerProgram, workers: str) -> int:
    """Wait until it serves; returns the first port."""
    if workers == "2":
        return program.serving()[0]
    return int(program.expect(r"serving on tcp://127.0.0.1:(\d+)")[1])


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
    with WorkerClient(tcp) as client:  # comes after the signal, and is served
        client.ask()
        client.send(1000, "held")
        size = client.head()[2]
        program.tell(signal.SIGINT)
        program.expect("SIGINT: no new work")
        assert get(port, "/ready") == (503, "not ready\n")
        assert scrape(port)["handlers_active"] == 1
        (program.folder / "released").touch()
        client.rest(size)
    assert program.process.wait(PATIENCE) == 0


def test_worker_that_drains_is_not_counted_as_serving(start: Start) -> None:
    """During a rolling restart there are as many workers as before, however long the old ones have to answer."""
    program = start("--tcp", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    port = monitored(program)
    (tcp,) = program.serving()
    with WorkerClient(tcp) as client:
        client.send(1000, 60)
        client.head()
        program.tell(signal.SIGHUP)
        program.serving()
        found = scrape(port)
        assert (found["workers"], found["handlers_active"]) == (2, 1)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_delay_ends_by_itself(start: Start, workers: str) -> None:
    """Then it drains, without another signal."""
    program = start("--tcp", "127.0.0.1:0", "--workers", workers, "--drain-delay", "0.3")
    serving(program, workers)
    program.tell(signal.SIGTERM)
    program.expect("not ready any more; in 0.3 s")
    program.expect("no new work")
    assert program.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_delay_without_end_lasts_until_told_again(start: Start, workers: str) -> None:
    """Whoever stops it decides when the drain begins."""
    program = start("--tcp", "127.0.0.1:0", "--workers", workers, "--drain-delay", "inf")
    serving(program, workers)
    program.tell(signal.SIGTERM)
    program.expect("not ready any more; in inf s")
    program.tell(signal.SIGINT)
    program.expect("no new work")
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
        wait_until(lambda: agree(scrape(port), load.count))

        pid = ask(tcp)[1]
        load.count["connections"] += 1
        wait_until(lambda: agree(scrape(port), load.count))  # and so this has been reported
        os.kill(pid, signal.SIGKILL)
        program.expect("ended by signal 9")
        assert scrape(port)["worker_deaths_total"] == 1
        for _ in range(20):
            counted(load.count, tcp, udp)
        wait_until(lambda: agree(scrape(port), load.count))
        wait_until(lambda: get(port, "/ready")[0] == 200)
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
logging.root.handlers[0].setFormatter(asyncserver.JSONFormatter())

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
    wait_until(lambda: scrape(port)["workers"] == 2)
    wait_until(lambda: accounted(scrape(port)) == 5000)
    assert scrape(port)["datagrams_dropped_total"] > 1000
    assert program.end() == 0
    program.expect(r'"total_datagrams_dropped": [1-9]\d{3}\b')


def accounted(found: dict[str, float]) -> float:
    return found["datagrams_received_total"] + found["datagrams_dropped_total"]


QUICK_WATCH = """
import logging, sys
import app, asyncserver
from asyncserver.workers import counters, watchdog

counters._PATIENCE = 0.3
watchdog._SILENCE, watchdog._REPORT_EVERY = 3.0, 0.2
logging.basicConfig(level=logging.INFO)
serving = asyncserver.serve(app.handler, "127.0.0.1", 0)
asyncserver.run(serving, loop=sys.argv[1], workers=2, metrics="127.0.0.1:0")
"""


def test_worker_that_does_not_answer_delays_a_scrape_by_a_second_and_is_not_ready_in_the_end(start: Start) -> None:
    """Its last numbers are told, and the probes do not wait for it; stuck for long, it takes no new work."""
    program = start(script=QUICK_WATCH)
    port = monitored(program)
    (tcp,) = program.serving()
    with WorkerClient(tcp) as client:
        client.sock.sendall(b"block\n")
        client.head()
        assert get(port, "/ready")[0] == 200
        found = scrape(port)
        assert found["workers"] == 2
        program.expect("has said nothing for 3 s")
        assert get(port, "/ready")[0] == 503
        assert scrape(port)["workers"] == 1
        for number, words in ((15, "no new work"), (2, "again: cancelling"), (15, "killed")):
            program.tell(number)
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
    wait_until(lambda: scrape(port)["handlers_active"] == 0)
    lost = load.count["tried"] + 1 - scrape(port)["connections_accepted_total"]
    assert 0 <= lost <= since + 4
    assert not load.errors
    assert program.end() == 0
