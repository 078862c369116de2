"""Each style of existing handlers, and no patience with peers that do not answer."""

from __future__ import annotations

import pytest

from asyncserver import ProtocolHandler
from tests.kit.handlers import HANDLERS
from tests.servers.conftest import short_grace

__all__ = ["handler", "impatience", "short_grace"]  # fixtures


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for peers that do not answer waits for a short time only."""
    monkeypatch.setattr("asyncserver.adapters.protocol_connection._CLOSE_TIMEOUT", 0.3)


@pytest.fixture(params=list(HANDLERS))
def handler(request: pytest.FixtureRequest) -> ProtocolHandler:
    """Each style there is."""
    return HANDLERS[request.param]()
