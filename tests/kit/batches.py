"""Batches of datagrams: sent so that their server takes them together."""

from __future__ import annotations

from typing import Any

import asyncserver
from tests.kit.datagrams import DatagramClient
from tests.kit.waiting import until

NUMBERS = [b"%d" % number for number in range(10)]
MIDDLE = NUMBERS[3]


def endpoint_of(server: asyncserver.Server) -> Any:
    (endpoint,) = server._endpoints  # type: ignore[attr-defined]
    return endpoint


async def send_numbers(client: DatagramClient, server: asyncserver.Server) -> None:
    """Send them so that they are one batch, for a task that is ready."""
    assert await client.ask(b"first") == b"first"
    await until(lambda: endpoint_of(server)._next_batch.busy)
    for number in NUMBERS:
        client.send(number)
