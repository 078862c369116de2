"""What the tests of metrics and probes share: a scrape, and a program that is monitored."""

from __future__ import annotations

import http.client
import time
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from tests.serverkit import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.workerkit import Program


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


def soon(reached: Callable[[], bool]) -> None:
    """Poll what has no event: when a server in another process has noticed that a client has left."""
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)
