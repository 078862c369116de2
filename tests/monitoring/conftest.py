"""Programs with workers, started on each loop."""

from tests.kit.workers import start

__all__ = ["start"]
