"""The live view: what it reads, computes and draws; and once from a real program, on a terminal and off it."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping

import pytest

from asyncserver import live
from tests.kit.monitoring import monitored
from tests.kit.programs import ROOT
from tests.kit.waiting import PATIENCE
from tests.kit.workers import Start, ask, ask_udp

TCP, UDP = "tcp://127.0.0.1:7000", "udp://127.0.0.1:7000"


def text(numbers: Mapping[tuple[str, str, str], float], ready: int = 1) -> str:
    """What /metrics?by=worker tells of (name, server, worker)."""
    lines = ["# HELP asyncserver_ready", f"asyncserver_ready {ready}.0", "asyncserver_workers 2.0"]
    for (name, server, worker), value in numbers.items():
        name, _, rest = name.partition("{")
        lines.append(f'asyncserver_{name}{{{rest}server="{server}",worker="{worker}"}} {value}')
    return "\n".join(lines) + "\n"


def accepted(first: float, second: float) -> dict[tuple[str, str, str], float]:
    return {
        ("connections_accepted_total", TCP, "1"): first,
        ("connections_accepted_total", TCP, "2"): second,
    }


def view(*answers: str) -> live.View:
    """A view that has had these answers, one in two seconds."""
    one = live.View("http://h:1")
    for number, answer in enumerate(answers):
        one.update(answer, 2.0 * number)
    return one


def drawn(one: live.View, width: int = 160) -> list[str]:
    return one.lines(width, colour=False)


def test_numbers_are_read_for_each_worker_and_summed() -> None:
    """Other programs' metrics and comments are passed over; an outcome becomes part of the name."""
    numbers = accepted(2, 3) | {('handlers_ended_total{outcome="failed",', TCP, "1"): 1.0}
    found = live.parse(text(numbers) + 'process_cpu_seconds_total 4.0\npython_info{version="3"} 1.0\nnoise\n')
    assert {place: dict(numbers) for place, numbers in found.items()} == {
        ("", ""): {"ready": 1, "workers": 2},
        (TCP, ""): {"connections_accepted": 5, "handlers_ended failed": 1},
        (TCP, "1"): {"connections_accepted": 2, "handlers_ended failed": 1},
        (TCP, "2"): {"connections_accepted": 3},
    }


def test_label_cannot_steer_the_terminal() -> None:
    """Whoever answers may call a server what they like."""
    found = live.parse('asyncserver_ready{server="a\x1b[2Jb\\"c",worker="1"} 1\n')
    assert ('a?[2Jb\\"c', "1") in found


def test_rates_are_per_second_and_the_workers_stand_below_their_server() -> None:
    """From 2 and 3 to 12 and 33 in two seconds."""
    title, _, headings, server, first, second = drawn(view(text(accepted(2, 3)), text(accepted(12, 33))))
    assert title == "asyncserver at http://h:1: ready, 2 processes"
    assert headings.split() == ["SERVER", "RATE", "ACTIVE", "LAST", "MINUTE"]
    assert server.split()[:3] == [TCP, "20", "conn/s"]
    assert first.split()[:4] == ["worker", "1", "5", "conn/s"]
    assert second.split()[:4] == ["worker", "2", "15", "conn/s"]


def test_first_reading_has_totals_and_no_rates() -> None:
    """A dash is no zero; what has been counted, and is going on, is shown at once."""
    numbers = accepted(2, 3) | {
        ("received_bytes_total", TCP, "1"): 700.0,
        ("handlers_active", TCP, "1"): 4.0,
        ('handlers_ended_total{outcome="failed",', TCP, "1"): 1.0,
    }
    one = view(text(numbers))
    assert drawn(one, 80)[2].split() == ["SERVER", "RATE", "ACTIVE", "IN", "FAILED", "LAST", "MINUTE"]
    assert drawn(one, 80)[3].split() == [TCP, "-", "4", "-", "1"]
    one.update(text(numbers), 2.0)
    assert drawn(one, 80)[3].split()[:7] == [TCP, "0", "conn/s", "4", "0", "B/s", "1"]


def test_one_process_has_no_rows_of_workers_and_datagrams_are_messages() -> None:
    """What does not apply has no column."""
    numbers = {("datagrams_received_total", UDP, "1"): 5.0, ("datagrams_dropped_total", UDP, "1"): 1.0}
    *_, headings, server = drawn(view(text(numbers), text(numbers)))
    assert headings.split()[:4] == ["SERVER", "RATE", "ACTIVE", "DROPPED"]
    assert server.split()[:5] == [UDP, "0", "msg/s", "0", "1"]


def test_program_that_was_started_anew_has_no_negative_rates() -> None:
    """Its counters begin again; so does the rate, which takes two readings."""
    one = view(text(accepted(100, 100)), text(accepted(1, 0)))
    assert drawn(one)[3].split()[1:3] == ["-", "0"]
    one.update(text(accepted(5, 0)), 4.0)
    assert drawn(one)[3].split()[1] == "2"


def test_percentiles_are_those_of_recent_handlers() -> None:
    """Linear inside a bucket; what ended before the last ten refreshes does not count."""

    def buckets(low: float, high: float) -> str:
        counts = {"0.01": low, "0.1": low + high, "+Inf": low + high}
        name = "handler_duration_seconds_bucket"
        return text({(f'{name}{{le="{bound}",', TCP, "1"): count for bound, count in counts.items()})

    row = view(buckets(1000, 0), buckets(1000, 100)).rows[TCP, ""]
    assert row.percentile(0.5) == pytest.approx(0.055)
    assert row.percentile(0.99) == pytest.approx(0.0991)
    row = view(buckets(100, 0)).rows[TCP, ""]  # at first, all that has ended so far
    assert row.percentile(0.5) == pytest.approx(0.005)
    assert view(buckets(5, 5), buckets(5, 5)).rows[TCP, ""].percentile(0.5) is None
    name = 'handler_duration_seconds_bucket{le="+Inf",'
    assert view(text({(name, TCP, "1"): 3})).rows[TCP, ""].percentile(0.5) == 0  # more than the highest bound, if any


def test_what_grows_and_should_not_is_red() -> None:
    """Failures that happen now, calls that wait; not those of long ago."""

    def told(failed: float, waiting: float) -> str:
        return text(
            {
                ('handlers_ended_total{outcome="failed",', TCP, "1"): failed,
                ("pool_threads", TCP, "1"): 4.0,
                ("pool_waiting", TCP, "1"): waiting,
                ("pool_starved", TCP, "1"): waiting / 2,
            }
        )

    calm = view(told(7, 0), told(7, 0)).lines(160, colour=True)[-1]
    assert "\x1b[31m" not in calm
    bad = view(told(7, 0), told(8, 2)).lines(160, colour=True)[-1]
    assert "\x1b[31m     8\x1b[0m" in bad
    assert "\x1b[31m4 +2 wait starved\x1b[0m" in bad


@pytest.mark.parametrize("width", [40, 80, 100, 160, 300])
def test_lines_fit_where_they_can(width: int) -> None:
    """The last minute takes what is left, and goes where little is."""
    one = view(text(accepted(0, 0)), *(text(accepted(number, number)) for number in range(80)))
    lines = drawn(one, width)
    bare = len(drawn(one, 1)[3])
    assert max(map(len, lines[2:])) <= max(width, bare)
    assert ("LAST MINUTE" in lines[2]) == (width >= bare + len("  LAST MINUTE"))
    if width > bare + 62:
        assert lines[3].count("█") == 60  # a steady rate, for a minute


def test_not_ready_and_deaths_are_in_the_title() -> None:
    """Two things to see at once."""
    answer = text({}, ready=0) + "asyncserver_worker_deaths_total 3.0\n"
    assert drawn(view(answer))[0] == "asyncserver at http://h:1: not ready, 2 processes, 3 died so far"


def test_sparkline_is_relative_to_its_highest() -> None:
    """Zero is the lowest bar, the highest is full."""
    assert live.sparkline([0, 1, 4, 8]) == "▁▂▅█"
    assert live.sparkline([0, 0]) == "▁▁"
    assert live.sparkline([]) == ""


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, ""), (5e-6, "5 us"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (600, "10 min"), (36000, "10 h")],
)
def test_durations_have_units_for_people(seconds: float | None, shown: str) -> None:
    """Three digits, and the unit that makes them short."""
    assert live._duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 B/s"), (999, "999 B/s"), (1234, "1.23 kB/s"), (5e6, "5 MB/s"), (7.25e9, "7.25 GB/s"), (2e13, "2e+04 GB/s")],
)
def test_bytes_have_units_for_people(number: float, shown: str) -> None:
    """Decimal ones, as networks have them."""
    assert live._bytes(number) == shown


def test_plain_lines_where_there_is_no_terminal(
    start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real workers, real requests; no escape sequence, and no proxy asked."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    program = start("--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    port = monitored(program)
    tcp, udp = program.serving()
    ask(tcp)
    ask_udp(udp, b"x")
    assert live.main([f"127.0.0.1:{port}", "--count", "2", "--interval", "0.05"]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert output.count(f"tcp://127.0.0.1:{tcp}") == output.count(f"udp://127.0.0.1:{udp}") == 2
    assert output.count("  worker 1") == output.count("  worker 2") == 4
    assert program.end() == 0
    assert live.main([f"http://127.0.0.1:{port}/metrics", "--count", "1"]) == 1
    output = capsys.readouterr().out
    assert f"asyncserver at http://127.0.0.1:{port}: " in output
    assert "refused" in output


def test_terminal_is_left_as_it_was(start: Start) -> None:
    """The alternate screen, without a cursor, and back; also when Ctrl-C ends it."""
    program = start("--tcp", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    port = monitored(program)
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        viewer = subprocess.Popen(
            [sys.executable, "-m", "asyncserver.live", f"127.0.0.1:{port}", "--interval", "0.05"],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True, close_fds=True,
        )  # fmt: skip
        os.close(theirs)
        try:
            shown = b""
            while shown.count(b"\x1b[H") < 3:
                shown += terminal.read(4096)
            viewer.send_signal(2)
            try:
                while data := terminal.read(4096):
                    shown += data
            except OSError:  # EIO: the other side is closed, pty(7)
                pass
            assert viewer.wait(PATIENCE) == 0
        finally:
            viewer.kill()
            viewer.wait()
    assert shown.startswith(b"\x1b[?1049h\x1b[?25l")
    assert shown.endswith(b"\x1b[?25h\x1b[?1049l")
    assert f"tcp://127.0.0.1:{program.serving()[0]}".encode() in shown
    assert b"Traceback" not in shown
    assert program.end() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--interval", "0"], "--interval must be more than 0 seconds, got 0.0"),
        *(
            ([place], "expected HOST:PORT, such as 127.0.0.1:9100")
            for place in ("9100", "127.0.0.1", ":9100", "h:http")
        ),
        (["file:///etc/passwd"], "expected HOST:PORT, such as 127.0.0.1:9100, or a URL of http or https"),
    ],
)
def test_wrong_arguments_say_what_was_expected(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2."""
    with pytest.raises(SystemExit) as leaving:
        live.main(arguments)
    assert leaving.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 500 Failed\r\nContent-Length: 7\r\n\r\nsee log", "500 Failed: see log"),
        (b"GET /METRICS HTTP/1.1\r\n\r\n", "expected the address of --metrics, got BadStatusLine"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ncut off",
            "address of --metrics, got IncompleteRead",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nasyncserver_ready x\n",
            "not convert string to float: 'x'",
        ),
        (b"", "Remote end closed connection"),
    ],
)
def test_answer_that_is_none_is_shown_with_its_words(
    answer: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another port of the program, most likely."""
    with answering(answer) as place:
        assert live.main([place, "--count", "1"]) == 1
    assert words in capsys.readouterr().out


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The address of somebody who answers one request, and no other."""

    def serve() -> None:
        sock, _ = other.accept()
        with sock:
            sock.recv(4096)
            sock.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as other:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{other.getsockname()[1]}"
        thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"501 Not Implemented\r\nContent-Length: 12\r\n\r\ninstall this", "501 Not Implemented: install this"),
        (b"404 Not Found\r\nContent-Length: 4\r\n\r\nn\x1b[o", "404 Not Found: n?[o"),
    ],
)
def test_who_has_no_metrics_is_asked_once(answer: bytes, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1 and the words, without --count: asked again, it would say the same."""
    with answering(b"HTTP/1.1 " + answer) as place:
        assert live.main([place]) == 1
        assert capsys.readouterr().err == f"python -m asyncserver.live: http://{place}: {words}\n"
