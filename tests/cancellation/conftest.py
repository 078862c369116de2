"""Short times, and nothing in the log that is an error, whatever is cut off."""

from __future__ import annotations

from tests.kit.sweep import no_errors, short_times

__all__ = ["no_errors", "short_times"]  # fixtures
