"""Metrics and probes over HTTP: what is asked and answered, one process, bad clients."""

from __future__ import annotations

import contextlib
import socket
import sys
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncserver
from asyncserver.monitoring import http as _http
from asyncserver.monitoring import monitor as _monitor
from asyncserver.monitoring.monitor import Monitor, respond
from tests.kit.checks import errors_in
from tests.kit.clients import Client as AsyncClient
from tests.kit.handlers import upper
from tests.kit.monitoring import monitored, scrape
from tests.kit.waiting import wait_until, within
from tests.kit.workers import Start

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
    assert (
        "pip install prometheus-client, or '.[metrics]' in the clone; until then only /ready and /live answer"
        in caplog.text
    )
    assert respond(monitor, request_for("/live")).status == 200
    response = respond(monitor, request_for("/metrics"))
    assert response.status == 501
    assert b"pip install prometheus-client" in response.body


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


@pytest.mark.parametrize("accept", ["text/plain;version=\xff", "application/openmetrics-text;version=x", ";=,", ""])
def test_no_header_makes_it_fail(accept: str, caplog: pytest.LogCaptureFixture) -> None:
    """prometheus-client raises for some; whoever sends such a thing gets plain text, and nothing is logged."""
    response = respond(Monitor(), _http.Request("/metrics", {}, accept, head_only=False))
    assert response.status == 200
    assert response.content_type.startswith("text/plain")
    assert not errors_in(caplog)


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


async def test_oldest_client_gives_way(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """However many come and say nothing, a probe that comes now is answered, and at once."""
    monkeypatch.setattr(_monitor, "PATIENCE", 1000)
    async with Monitor().serving("127.0.0.1:0") as server:
        silent = [await AsyncClient.connect(server.addresses[0]) for _ in range(_monitor.MOST_CLIENTS + 8)]
        client = await AsyncClient.connect(server.addresses[0])
        await client.send(b"GET /live HTTP/1.1\r\n\r\n")
        assert (await within(client.receive_all())).startswith(b"HTTP/1.1 200 ")
        with pytest.raises(ConnectionResetError):
            await within(silent[0].receive_all())
        await silent[-1].send(b"GET /live HTTP/1.1\r\n\r\n")
        assert (await within(silent[-1].receive_all())).startswith(b"HTTP/1.1 200 ")
        for one in (*silent, client):
            one.close()
    assert not errors_in(caplog)


async def test_head_that_is_too_long_is_refused() -> None:
    """Memory is bounded."""
    async with Monitor().serving("127.0.0.1:0") as server, AsyncClient.connect(server.addresses[0]) as client:
        await client.send(b"GET /live HTTP/1.1\r\nA: ".ljust(_http.LONGEST_HEAD, b"a"))
        assert (await client.receive_all()).startswith(b"HTTP/1.1 431 ")


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
    served = int(program.expect(r"serving on tcp://127.0.0.1:(\d+)")[1])
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", served)) as client:
            client.sendall(b"x")
            assert client.recv(9) == b"x"
    found = scrape(port)
    assert found["asked_total"] == 3
    assert found["before"] == 0
    assert found["process_cpu_seconds_total"] > 0
    program.expect("a collector of the program has failed")
    wait_until(lambda: scrape(port)["handlers_ended_total completed"] == 3)
    found = scrape(port, "/metrics?by=worker")
    assert found["connections_accepted_total 1"] == 3
    assert found["handler_duration_seconds_count 1"] == 3
    assert program.end() == 0
