"""What several threads look at and change: each look is one step, which no other thread can come between."""

import os
import signal
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

import compat
import compat.pool.executor
import compat.program.draining
from tests.kit.compat import LOOPBACK, echo


def test_sigterm_while_other_threads_begin_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that served when it came are told to end."""
    live: set[Any] = set()

    class Serving:
        thread = threading.main_thread().ident

        def __init__(self) -> None:
            self.server = SimpleNamespace()
            live.add(self)

        @property
        def pid(self) -> int:
            Serving()  # as another thread does
            return os.getpid()

    expected = [Serving().server for _ in range(3)]
    monkeypatch.setattr(compat.program.draining, "live", live)
    monkeypatch.setattr(signal, "getsignal", lambda _: None)  # no handler is installed
    drain = compat.program.draining.Drain(1.0)
    drain._on_signal(signal.SIGTERM, None)
    assert sorted(map(id, drain.servers)) == sorted(map(id, expected))


class Ending:
    """A loop that its own thread ends at the very moment when another looks at it."""

    def __init__(self, loops: list[Any], *, mine: bool = False) -> None:
        self.loops = loops
        self.mine = mine
        self.restored = False
        loops.append(self)

    def is_mine(self) -> bool:
        self.loops.remove(self)
        return self.mine

    def restore_blocking(self) -> None:
        self.restored = True
        self.loops.remove(self)

    def wake(self) -> None:
        """What there is to wake has gone."""


def test_shutdown_by_a_serving_thread_while_another_ends() -> None:
    """It does not overlook that it is one of those that it would wait for."""

    def wait() -> None:
        pytest.fail("it waits for itself")

    server: Any = compat.TCPServer(LOOPBACK, echo)
    with server:
        loops = vars(server).setdefault("_compat_loops", [])
        Ending(loops)
        Ending(loops, mine=True)
        server._BaseServer__is_shut_down = SimpleNamespace(wait=wait)
        server.shutdown()
        loops.clear()


def test_server_close_while_a_serving_thread_ends() -> None:
    """Every loop gives the listener back."""
    server: Any = compat.TCPServer(LOOPBACK, echo)
    loops = vars(server).setdefault("_compat_loops", [])
    endings = [Ending(loops) for _ in range(3)]
    server.server_close()
    assert all(ending.restored for ending in endings)


def test_pools_are_made_while_all_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the interpreter ends while threads still begin to serve."""
    ended = threading.Event()
    alive = [compat.ThreadPool() for _ in range(300)]  # so that a look takes a while

    def make() -> None:
        while not ended.is_set():
            compat.ThreadPool()

    monkeypatch.setattr("compat.pool.executor.exiting", threading.Event())
    interval = sys.getswitchinterval()
    maker = threading.Thread(target=make)
    maker.start()
    try:
        sys.setswitchinterval(1e-5)
        for _ in range(300):
            compat.pool.executor._send_idle_threads_home()
        assert len(alive) == 300
    finally:
        sys.setswitchinterval(interval)
        ended.set()
        maker.join()


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="from 3.14 on the frames of running threads are locked")
def test_frames_of_other_threads_are_left_alone_without_the_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a look at one may crash the interpreter, so nothing is told."""
    with compat.ThreadPool() as pool:
        gate, begun = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            gate.wait(20)

        pool.submit(work)
        assert begun.wait(20)
        (call,) = pool.calls()
        assert call.stack()
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
        assert call.stack() == ""
        gate.set()
