"""Stopping: how a program that serves comes to its end, whether one process serves or workers do.

    STARTING -> SERVING -> DELAYED -> DRAINING -> FORCED -> KILLED

Each signal goes one stage further. DELAYED comes only with a delay, and only if all had started; when it
is over, that counts as a signal. What a stage means is done by whoever asks (running.py, workers.py).
"""

from __future__ import annotations

import enum

from .._logger import logger as _logger


class Stage(enum.IntEnum):
    """How far the end has come."""

    STARTING = 0
    SERVING = 1
    DELAYED = 2  # still serving everybody, but told to be not ready, so that balancers send nobody new
    DRAINING = 3
    FORCED = 4  # what still runs is cancelled
    KILLED = 5


class Stopping:
    """The stage that a program is in.

    Args:
        drain_delay: seconds between the first signal and the drain.
    """

    def __init__(self, drain_delay: float) -> None:
        self.drain_delay = drain_delay
        self.stage: Stage = Stage.STARTING
        self.started: bool = False

    @property
    def stopping(self) -> bool:
        """Whether a signal has come, or the start has failed."""
        return self.stage >= Stage.DELAYED

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken any more."""
        return self.stage >= Stage.DRAINING

    def start(self) -> None:
        """All that shall serve does."""
        self.started = True
        self.stage = max(self.stage, Stage.SERVING)

    def fail(self) -> None:
        """The start has failed: drain what has started."""
        self.stage = max(self.stage, Stage.DRAINING)

    def advance(self, cause: str) -> Stage:
        """Go one stage further, and log what that means.

        Args:
            cause: the signal's name, or what else it was.
        """
        if self.stage is Stage.SERVING and self.drain_delay:
            self.stage = Stage.DELAYED
            _logger.info("%s: not ready any more; in %g s, or when told again, the drain", cause, self.drain_delay)
        elif not self.draining:
            self.stage = Stage.DRAINING
            _logger.info("%s: no new work, waiting for what runs; once more to end it now", cause)
        elif self.stage is Stage.DRAINING:
            self.stage = Stage.FORCED
            _logger.warning("%s again: cancelling what still runs", cause)
        else:
            self.stage = Stage.KILLED
        return self.stage
