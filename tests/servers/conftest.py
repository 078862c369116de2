"""Servers that give up soon."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Abort a third of a second after the cancellation; how long a real one takes is tested among the drains."""
    monkeypatch.setattr("asyncserver.servers.server.Server._cancel_grace", 0.3)
