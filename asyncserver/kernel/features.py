"""Features that some kernels lack (old ones, gVisor, qemu's user mode, seccomp); we do without."""

from __future__ import annotations

from .._logger import logger as _logger

_told: set[str] = set()


def tell_missing(feature: str, consequence: str) -> None:
    """Log what the program does without, once for each feature."""
    if feature not in _told:
        _told.add(feature)
        _logger.warning("this system has no %s, or does not allow it: %s", feature, consequence)
