"""WriteLimits: when a protocol is to pause writing and to resume, by asyncio's rules."""

from __future__ import annotations

from typing import Any

# Bytes: asyncio's defaults (asyncio/constants.py), without TLS and with it.
_HIGH_WATER = 64 * 1024
HIGH_WATER_TLS = 512 * 1024


def water_marks(high: int | None, low: int | None, default: int) -> tuple[int, int]:
    """Complete limits, in bytes, as asyncio does: `low` is a quarter of `high` unless it is given.

    Raises:
        ValueError: not high >= low >= 0.
    """
    if high is None:
        high = default if low is None else 4 * low
    if low is None:
        low = high // 4
    if not high >= low >= 0:
        raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
    return high, low


class WriteLimits:
    """Flow control of a transport. Names that asyncio looks for are as in `_FlowControlMixin`."""

    _protocol_paused = False
    _default_high = _HIGH_WATER
    _high_water = _HIGH_WATER
    _low_water = _HIGH_WATER // 4

    def _tell(self, name: str, *arguments: object) -> Any:
        """Call the protocol, and handle what it may raise."""
        raise NotImplementedError

    def get_write_buffer_size(self) -> int:
        """Count the bytes that wait to be sent."""
        raise NotImplementedError

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Bytes, the lower limit first."""
        return self._low_water, self._high_water

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set them, see `water_marks()`."""
        self._high_water, self._low_water = water_marks(high, low, self._default_high)
        self._pause_if_full()

    def _pause_if_full(self) -> None:
        if not self._protocol_paused and self.get_write_buffer_size() > self._high_water:
            self._protocol_paused = True
            self._tell("pause_writing")

    def _resume_if_low(self) -> None:
        if self._protocol_paused and self.get_write_buffer_size() <= self._low_water:
            self._protocol_paused = False
            self._tell("resume_writing")
