"""Metrics of servers in this process: what is counted, and what the collector makes of it."""

from __future__ import annotations

import asyncio
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest

import asyncserver
import compat
from asyncserver import Server
from asyncserver.monitoring.metrics import METRICS, Row, exposition, families, summed
from asyncserver.reports.stats import add, retired
from tests.kit.checks import errors_in, is_idle
from tests.kit.clients import Client
from tests.kit.handlers import upper
from tests.kit.monitoring import values
from tests.kit.programs import ROOT
from tests.kit.waiting import until, within


def collected(*servers: Server) -> dict[str, float]:
    registry = prometheus_client.CollectorRegistry()
    registry.register(asyncserver.ServerCollector(*servers))
    return values(prometheus_client.generate_latest(registry).decode())


async def echo_datagram(datagram: asyncserver.Datagram) -> bytes | None:
    if datagram.data == b"fail":
        raise ValueError("as asked")
    return None if datagram.data == b"silent" else datagram.data


async def test_connections_are_told_as_the_client_counts_them() -> None:
    """Accepted, active, ended and bytes, in the words of Prometheus."""
    async with asyncserver.serve(upper, "127.0.0.1", 0) as server:
        for _ in range(3):
            client = await Client.connect(server.addresses[0])
            assert await client.ask(b"x" * 100) == b"X" * 100
            client.close()
        last = await Client.connect(server.addresses[0])
        assert await last.ask(b"abc") == b"ABC"
        await until(lambda: server.stats().completed == 3)
        found = collected(server)
        last.close()
    assert found["connections_accepted_total"] == 4
    assert found["handlers_active"] == 1
    assert found["handlers_ended_total completed"] == 3
    assert found["handlers_ended_total failed"] == 0
    assert found["received_bytes_total"] == found["sent_bytes_total"] == 303
    assert not [name for name in found if name.startswith(("datagrams", "pool"))]


async def test_datagrams_are_told_as_the_client_counts_them() -> None:
    """Answered, silent and failed make up what was received."""
    loop = asyncio.get_running_loop()
    async with asyncserver.serve_datagrams(echo_datagram, "127.0.0.1", 0) as server:
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=server.addresses[0][:2]
        )
        for data in [b"echo"] * 5 + [b"silent"] * 2 + [b"fail"]:
            transport.sendto(data)
        await until(lambda: server.stats().datagrams_received == 8 and is_idle(server))
        found = collected(server)
        transport.close()
    assert found["datagrams_received_total"] == 8
    assert found["datagrams_answered_total"] == found["datagrams_sent_total"] == 5
    assert found["datagrams_silent_total"] == 2
    assert found["datagrams_dropped_total"] == 0
    assert found["handlers_ended_total failed"] == 1
    assert not [name for name in found if name.startswith(("connections", "proxy", "received_bytes"))]


async def test_durations_cover_every_handler_that_ran_however_it_ended() -> None:
    """Completed, failed and cancelled ones are observed, refused connections are not."""

    async def handler(stream: asyncserver.Stream) -> None:
        word = await stream.receive()
        if word == b"fail":
            raise ValueError("as asked")
        if word == b"cancel":
            raise asyncio.CancelledError
        await asyncio.sleep(0.06)

    options: dict[str, Any] = {"proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}
    async with asyncserver.serve(handler, "127.0.0.1", 0, **options) as server:
        server.measure_durations()
        server.measure_durations()  # not twice as much
        clients = []
        for word in (b"fail", b"cancel", b"sleep"):
            clients.append(await Client.connect(server.addresses[0]))
            await clients[-1].send(b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + word)
        clients.append(await Client.connect(server.addresses[0]))
        await clients[-1].send(b"no header\r\n")
        await until(lambda: is_idle(server))
        found = collected(server)
        for client in clients:
            client.close()
    assert found["proxy_refused_total invalid"] == found["connections_refused_total"] == 1
    assert found["handler_duration_seconds_count"] == 3
    assert found["handler_duration_seconds_bucket 0.05"] <= 2  # the one that sleeps is none of these
    assert found["handler_duration_seconds_bucket +Inf"] == 3
    assert found["handler_duration_seconds_bucket 300.0"] == 3
    assert 0 < found["handler_duration_seconds_sum"] < 300


async def test_durations_of_datagrams_are_measured_from_the_registration_on() -> None:
    """Also those of a handler that runs in a task which was there before."""
    loop = asyncio.get_running_loop()
    async with asyncserver.serve_datagrams(echo_datagram, "127.0.0.1", 0) as server:
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=server.addresses[0][:2]
        )
        assert server.durations is None
        for number in range(1, 4):
            transport.sendto(b"echo")
            await until(lambda: server.stats().completed == number)  # noqa: B023 - called at once
        assert collected(server)["handler_duration_seconds_count"] == 0
        for number in range(4, 7):
            transport.sendto(b"echo")
            await until(lambda: server.stats().completed == number)  # noqa: B023
        assert collected(server)["handler_duration_seconds_count"] == 3
        assert server.durations is not None
        assert sum(server.durations.counts) == 3
        transport.close()


async def test_threads_of_a_hosted_handler_are_told() -> None:
    """One runs, one waits for the only thread that there may be."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            inside.set()
            go_on.wait(20)

    handler = compat.hosted(Slow, max_threads=1)
    async with asyncserver.serve(handler, "127.0.0.1", 0) as server:
        clients = [await Client.connect(server.addresses[0]) for _ in range(2)]
        await within(asyncio.to_thread(inside.wait))
        await until(lambda: handler.pool.waiting == 1)
        found = collected(server)
        go_on.set()
        for client in clients:
            client.close()
    assert found["pool_threads"] == 1
    assert found["pool_waiting"] == 1
    assert found["pool_starved"] == 0


async def test_pool_that_cannot_tell_costs_only_its_own_numbers(caplog: pytest.LogCaptureFixture) -> None:
    """What `pool_stats()` raises is logged, and the rest is told."""

    class Handler:
        def __asyncserver_handler__(self, server: object) -> Handler:
            return self

        def pool_stats(self) -> dict[str, int]:
            raise LookupError("no pool")

        async def __call__(self, stream: asyncserver.Stream) -> None:
            await upper(stream)

    async with asyncserver.serve(Handler(), "127.0.0.1", 0) as server:
        found = collected(server)
    assert found["connections_accepted_total"] == 0
    assert "pool_threads" not in found
    assert "no pool" in str(errors_in(caplog)[0].exc_info)


async def test_collector_may_be_called_in_another_thread() -> None:
    """The numbers come from the loop, as prometheus_client's own HTTP server would ask for them."""
    async with asyncserver.serve(upper, "127.0.0.1", 0) as server:
        registry = prometheus_client.CollectorRegistry()
        registry.register(asyncserver.ServerCollector(server))
        client = await Client.connect(server.addresses[0])
        assert await client.ask(b"x") == b"X"
        text = await within(asyncio.to_thread(prometheus_client.generate_latest, registry))
        assert values(text.decode())["handlers_active"] == 1
        client.close()
    # Closed, it is asked nothing any more, and tells what it had.
    text = await within(asyncio.to_thread(prometheus_client.generate_latest, registry))
    assert values(text.decode())["handlers_ended_total completed"] == 1


async def test_server_whose_loop_does_not_answer_is_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are told; the log says which is missing."""
    monkeypatch.setattr("asyncserver.monitoring.metrics._PATIENCE", 0.05)
    async with asyncserver.serve(upper, "127.0.0.1", 0) as server:
        collector = asyncserver.ServerCollector(server)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.extend(collector.collect()))
        thread.start()
        thread.join()  # and block the loop
        await asyncio.sleep(0)
    assert not [sample for family in found for sample in family.samples]
    assert "no metrics of <StreamServer" in errors_in(caplog)[0].getMessage()


async def test_what_goes_wrong_in_the_loop_is_told_where_it_was_asked(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scrape goes on without that server; its loop hears nothing of it."""
    async with asyncserver.serve(upper, "127.0.0.1", 0) as server:

        def fail() -> None:
            raise LookupError("no reading")

        monkeypatch.setattr(server, "reading", fail)
        collector = asyncserver.ServerCollector(server)
        found = await within(asyncio.to_thread(lambda: list(collector.collect())))
    assert not [sample for family in found for sample in family.samples]
    assert "no reading" in str(errors_in(caplog)[0].exc_info)


async def test_labels_are_places_or_names_and_never_the_same() -> None:
    """TCP and UDP on one port differ; a name may be given; a second server cannot take it."""
    async with (
        asyncserver.serve(upper, "127.0.0.1", 0) as tcp,
        asyncserver.serve_datagrams(echo_datagram, *tcp.addresses[0]) as udp,
    ):
        port = tcp.addresses[0][1]
        assert (tcp.label, udp.label) == (f"tcp://127.0.0.1:{port}", f"udp://127.0.0.1:{port}")
        collector = asyncserver.ServerCollector(tcp)
        collector.add(tcp)
        collector.add(udp, "questions")
        with pytest.raises(ValueError, match="another server has the label 'questions' already; give each a name"):
            collector.add(tcp, "questions")
        text = exposition(collector.collect(), "")[1].decode()
    assert f'asyncserver_handlers_active{{server="tcp://127.0.0.1:{port}"}}' in text
    assert 'asyncserver_handlers_active{server="questions"}' in text


async def test_closed_server_can_be_collected_from() -> None:
    """Its counters are still there."""
    async with asyncserver.serve(upper, "127.0.0.1", 0) as server:
        label = server.label
    text = exposition(asyncserver.ServerCollector(server).collect(), "")[1].decode()
    assert f'asyncserver_connections_accepted_total{{server="{label}"}} 0' in text


async def test_places_of_unix_and_ipv6_sockets(tmp_path: Path) -> None:
    """A path as it is, an abstract name with @, an IPv6 address in brackets, several joined."""
    async with (
        asyncserver.serve(upper, path=tmp_path / "s") as unix,
        asyncserver.serve(upper, path=f"\0asyncserver-{id(tmp_path)}") as abstract,
        asyncserver.serve(upper, ["127.0.0.1", "::1"], 0) as both,
    ):
        port = both.addresses[0][1]
        assert [one.label for one in (unix, abstract, both)] == [
            f"unix:{tmp_path}/s",
            f"unix:@asyncserver-{id(tmp_path)}",
            f"tcp://127.0.0.1:{port},tcp://[::1]:{port}",
        ]


async def test_reading_has_every_counter_of_a_server_and_nothing_unknown() -> None:
    """METRICS tells all that ServerStats counts, once."""
    async with (
        asyncserver.serve(upper, "127.0.0.1", 0) as server,
        asyncserver.serve_datagrams(echo_datagram, "127.0.0.1", 0) as datagrams,
    ):
        keys = {*server.reading(), *datagrams.reading()}
    told = [key for metric in METRICS for key in metric.keys.values()]
    assert keys == set(asyncserver.ServerStats.__slots__)
    assert keys <= set(told)
    assert len(told) == len(set(told))


def test_readings_add_up_and_outlive_their_process_without_what_was_of_the_moment() -> None:
    """Counters of a worker that has ended stay; its handlers and threads do not."""
    ended = retired({"accepted": 5, "active": 2, "pool_threads": 3, "duration_0": 1, "duration_sum": 0.5})
    assert ended == {"accepted": 5, "duration_0": 1, "duration_sum": 0.5}
    totals: list[dict[str, float]] = [{}]
    add(totals, [ended])
    add(totals, [{"accepted": 1, "active": 1}])
    assert totals == [{"accepted": 6, "active": 1, "duration_0": 1, "duration_sum": 0.5}]
    rows = [
        Row({"ready": 1}),
        *(Row({"accepted": 2}, ("a", worker)) for worker in "12"),
        Row({"accepted": 1}, ("b", "1")),
    ]
    assert summed(rows) == [Row({"ready": 1}), Row({"accepted": 4}, ("a",)), Row({"accepted": 1}, ("b",))]


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("", "text/plain; version=0.0.4", ""),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text; version=1.0.0", "# EOF\n"),
    ],
)
def test_scraper_gets_the_format_that_it_accepts(accept: str, content_type: str, end: str) -> None:
    """Prometheus asks for OpenMetrics; a browser or curl gets plain text."""
    got, body = exposition(families([Row({"accepted": 1}, ("a",))]), accept)
    assert got.startswith(content_type)
    assert body.decode().endswith(end)
    assert 'asyncserver_connections_accepted_total{server="a"} 1.0' in body.decode()


def test_without_prometheus_client_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is an extra."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ModuleNotFoundError, match="pip install prometheus-client"):
        asyncserver.ServerCollector()


def rows_of_the_docs() -> Iterator[tuple[str, ...]]:
    section = (ROOT / "docs/metrics.md").read_text().partition("\n## All metrics\n")[2].partition("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `asyncserver_"):
            yield tuple(cell.strip(" `") for cell in line.strip("|").split(" | "))


def test_table_in_the_docs_is_the_table_of_the_code() -> None:
    """Every metric, its kind, its labels and what it says, in the same order."""
    expected = [
        (
            f"asyncserver_{metric.name}"
            + ("_total" if metric.kind == "counter" else "")
            + (f"{{{metric.label}}}" if metric.label else ""),
            metric.kind,
            metric.help.removesuffix("."),
        )
        for metric in METRICS
    ]
    assert list(rows_of_the_docs()) == expected
