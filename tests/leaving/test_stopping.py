"""Stopping: each signal takes the end one stage further."""

from __future__ import annotations

import logging

import pytest

from asyncserver.leaving.stopping import Stage, Stopping


@pytest.mark.parametrize("delay", [0.0, 10.0])
def test_stages(delay: float, caplog: pytest.LogCaptureFixture) -> None:
    """Once to drain, perhaps after a delay; once more to cancel, and again to kill. Each but the last is logged."""
    caplog.set_level(logging.INFO, "asyncserver")
    stopping = Stopping(delay)
    assert stopping.stage is Stage.STARTING
    stopping.start()
    stages = [Stage.DELAYED] * bool(delay) + [Stage.DRAINING, Stage.FORCED, Stage.KILLED, Stage.KILLED]
    for stage in stages:
        assert stopping.advance("SIGTERM") is stage
        assert stopping.stopping
        assert stopping.draining == (stage is not Stage.DELAYED)
    told = [record.message.partition(":")[2].partition(";")[0] for record in caplog.records]
    assert told == [" not ready any more"] * bool(delay) + [
        " no new work, waiting for what runs",
        " cancelling what still runs",
    ]


def test_signal_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from `timeout`, to the program and to its group; another signal, or the same a little later, is a second."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stopping = Stopping(0.0)
    assert not stopping.is_echo(15)
    assert stopping.echo_left == pytest.approx(0.1)
    now = 100.09
    assert stopping.is_echo(15)
    assert stopping.echo_left == pytest.approx(0.01)
    assert not stopping.is_echo(2)
    assert not stopping.is_echo(15)
    now = 100.2
    assert stopping.echo_left == 0.0
    assert not stopping.is_echo(15)


def test_while_it_starts_there_is_no_delay() -> None:
    """Nobody has been sent here yet."""
    stopping = Stopping(10.0)
    assert stopping.advance("SIGTERM") is Stage.DRAINING
    stopping.start()  # the last of the workers, which had begun to start
    assert stopping.started
    assert stopping.stage is Stage.DRAINING


def test_a_start_that_fails_drains_what_has_started() -> None:
    """And the next signal ends that."""
    stopping = Stopping(10.0)
    stopping.fail()
    assert stopping.draining
    assert not stopping.started
    assert stopping.advance("SIGTERM") is Stage.FORCED
