"""Features that some kernels lack (old ones, gVisor, qemu's user mode, seccomp); we do without."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from .._logger import logger as _logger

if TYPE_CHECKING:
    from collections.abc import Iterator

_REFUSED = {errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL}
_told: set[str] = set()


def tell_missing(feature: str, consequence: str) -> None:
    """Log what the program does without, once for each feature."""
    if feature not in _told:
        _told.add(feature)
        _logger.warning("this system has no %s, or does not allow it: %s", feature, consequence)


@contextlib.contextmanager
def without(feature: str, consequence: str) -> Iterator[None]:
    """Go on where the system refuses a feature, and tell so."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _REFUSED:
            raise
        tell_missing(feature, consequence)
