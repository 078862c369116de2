"""Kinds of handlers: whether one is a protocol's, told without importing what serves protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from ..adapters.protocols import ProtocolHandler


def is_protocol_handler(handler: object) -> TypeGuard[ProtocolHandler]:
    """Whether it is what `from_protocol()` or `from_callback()` returns."""
    return hasattr(type(handler), "__asyncserver_protocols__")
