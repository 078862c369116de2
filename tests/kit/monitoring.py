"""Scrapes of metrics, and where they are."""

from __future__ import annotations

import http.client

from prometheus_client.parser import text_string_to_metric_families

from tests.kit.waiting import PATIENCE
from tests.kit.workers import WorkerProgram


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    """Ask; returns status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def monitored(program: WorkerProgram) -> int:
    """Wait until the log tells where; returns the port."""
    return int(program.expect(r"/metrics, /ready and /live on http://127.0.0.1:(\d+)")[1])


def values(text: str) -> dict[str, float]:
    """What Prometheus' own parser reads, by name and labels; all servers together."""
    found: dict[str, float] = {}
    seen = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series = (sample.name, *sorted(sample.labels.items()))
            assert series not in seen, f"twice: {sample}"
            seen.add(series)
            labels = [value for name, value in sample.labels.items() if name != "server"]
            key = " ".join((sample.name.removeprefix("asyncserver_"), *labels))
            found[key] = found.get(key, 0) + sample.value
    return found


def scrape(port: int, path: str = "/metrics") -> dict[str, float]:
    status, text = get(port, path)
    assert status == 200, text
    return values(text)
