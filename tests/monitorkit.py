"""What the tests of metrics and probes share: a scrape, and a program that is monitored."""

from __future__ import annotations

import http.client
import time
from typing import TYPE_CHECKING

from tests.serverkit import PATIENCE
from tests.test_metrics import values

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
