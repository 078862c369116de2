"""Stopping: the stages in which a program ends, in one process or with workers.

    STARTING -> SERVING -> DELAYED -> DRAINING -> FORCED -> KILLED

Each signal advances one stage. DELAYED comes only with a delay, and only if all servers serve; its
end counts as a signal. The callers, signals.py and supervisor.py, do what a stage means.
"""

from __future__ import annotations

import enum
import os
import time

from .._logger import logger as _logger

# Seconds in which the same signal again is the same: `timeout` of GNU coreutils sends it to the
# program, then to its whole process group, where the program gets it a second time.
_ECHO = 0.1


class Stage(enum.IntEnum):
    """The stages of a program."""

    STARTING = 0
    SERVING = 1
    DELAYED = 2  # serves, but reports that it is not ready: balancers send no new clients
    DRAINING = 3
    FORCED = 4  # what still runs is cancelled
    KILLED = 5


class Stopping:
    """The stage that a program is in; `drain_delay` seconds lie between a signal and the drain."""

    def __init__(self, drain_delay: float) -> None:
        self.drain_delay = drain_delay
        self.stage: Stage = Stage.STARTING
        self.started: bool = False
        self._last_signal = (0, 0.0)
        self._terminals = _open_terminals()

    @property
    def stopping(self) -> bool:
        """Whether a signal has come, or the start has failed."""
        return self.stage >= Stage.DELAYED

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken any more."""
        return self.stage >= Stage.DRAINING

    def start(self) -> None:
        """All servers serve."""
        self.started = True
        self.stage = max(self.stage, Stage.SERVING)

    def fail(self) -> None:
        """The start has failed: drain what has started."""
        self.stage = max(self.stage, Stage.DRAINING)

    def is_echo(self, number: int) -> bool:
        """Whether a signal to stop is the last one, sent twice. Call it once for each signal."""
        now = time.monotonic()
        before, since = self._last_signal
        if number == before and now - since < _ECHO:
            return True
        self._last_signal = (number, now)
        return False

    @property
    def echo_left(self) -> float:
        """Seconds in which the last signal may still come a second time, and must be ignored."""
        return max(0.0, self._last_signal[1] + _ECHO - time.monotonic())

    def has_lost_terminal(self) -> bool:
        """Whether a terminal has closed since the last call: SIGHUP then means what Ctrl-C does."""
        before, self._terminals = self._terminals, _open_terminals()
        return before != self._terminals

    def advance(self, cause: str) -> Stage:
        """Advance one stage, and log what that means, after its cause, such as a signal's name."""
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


def _open_terminals() -> list[int]:
    """Which of the standard streams are a terminal. A closed one no longer is."""
    return [descriptor for descriptor in range(3) if os.isatty(descriptor)]
