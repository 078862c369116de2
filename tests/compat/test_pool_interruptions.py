"""Exceptions that no call has raised: whatever ends one of the pool's threads, the others serve on."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import itertools
import queue
import re
import sys
import threading
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import asyncserver
import compat
from compat import ThreadPool
from tests.kit.compat import LOOPBACK, ask, connect, echo, serving
from tests.kit.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

OURS = {str(path) for path in Path(compat.__file__).with_name("pool").glob("*.py")}

# A request that was lost with its thread is closed by whoever collects it: here, not in a later test.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
POOLS = ("test-", "ThreadingTCPServer-", "MainThread")  # a server's own thread may be ended as in the stdlib


class Late(BaseException):
    """What a watchdog raises in a thread whose call has just ended."""


@pytest.fixture(autouse=True)
def _ended_quietly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith(POOLS):  # its frames hold the request that it has lost
            thread.join(PATIENCE)
    gc.collect()


def raise_in(thread: threading.Thread, exception: type[BaseException] = Late) -> None:
    """Do what watchdogs do (stopit, and many recipes)."""
    sent = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(exception))
    assert sent == 1


class Tracer:
    """Raises at one of the pool's own steps, the n-th that its threads take after `arm()`."""

    def __init__(self) -> None:
        self.left = 0
        self.steps: list[str] = []

    def arm(self, number: int) -> None:
        """Raise at that step."""
        self.left = number

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        """Be a trace function; Python takes it away where it raises."""
        if frame.f_code.co_filename not in OURS or not threading.current_thread().name.startswith(POOLS):
            return None
        if self.left:
            self.left -= 1
            if self.left == 0:
                self.steps.append(f"{event} {frame.f_code.co_name}:{frame.f_lineno}")
                raise Late(self.steps[-1])
        return self


def is_empty(pool: ThreadPool) -> bool:
    """Whether no call waits or runs."""
    return len(pool) == 0


def usable(pool: ThreadPool) -> None:
    """Four calls at once meet, and the books are empty after them."""
    barrier = threading.Barrier(4)
    futures = [pool.submit(barrier.wait, 20) for _ in range(4)]
    assert not wait(futures, 20).not_done
    assert sorted(future.result() for future in futures) == list(range(4))
    wait_until(functools.partial(is_empty, pool))
    assert pool.calls() == []


@pytest.fixture
def tracer() -> Iterator[Tracer]:
    """Traces all threads of a pool that start meanwhile."""
    tracer = Tracer()
    threading.settrace(
        lambda *now: tracer(*now) if threading.current_thread().name.startswith(("test", "ThreadingTCP")) else None
    )
    yield tracer
    threading.settrace(None)


@pytest.fixture
def producer_tracer() -> Iterator[Tracer]:
    """Traces the thread of the test, as the main thread is where signal handlers raise."""
    tracer = Tracer()
    before = sys.gettrace()
    yield tracer
    sys.settrace(before)


# A pool.


def test_an_exception_at_each_step_of_a_worker_costs_its_thread_only(tracer: Tracer) -> None:
    """A call that it had not begun is run by another one, and no call waits for ever."""
    for number in itertools.count(1):
        pool = ThreadPool(4, name="test", idle_seconds=0.01)
        tracer.arm(number)
        futures = [pool.submit(str, one) for one in range(3)]
        assert not wait(futures, 20).not_done
        failed = [future for future in futures if future.exception()]
        wait_until(functools.partial(is_empty, pool))
        tracer.left, left = 0, tracer.left
        usable(pool)
        pool.shutdown()
        assert pool.alive == 0
        if left:
            break
        assert not failed or (len(failed) == 1 and re.search("_call|fulfil", tracer.steps[-1]))
    assert len(set(tracer.steps)) > 50


def test_an_exception_at_each_step_of_a_producer_costs_its_call_only(producer_tracer: Tracer) -> None:
    """What it had begun with an idle or a new thread is found by the next look."""
    for number in itertools.count(1):
        pool = ThreadPool(4, name="test", idle_seconds=0.3)
        if number % 2:
            pool.submit(int).result(20)
        producer_tracer.arm(number)
        sys.settrace(producer_tracer)
        with contextlib.suppress(Late):
            pool.submit(int)
        sys.settrace(None)
        producer_tracer.left, left = 0, producer_tracer.left
        pool.look()
        usable(pool)
        pool.shutdown()
        assert pool.alive == 0
        if left:
            break
    assert len(set(producer_tracer.steps)) > 25


@pytest.mark.parametrize("callback", ["on_start", "on_room", "clear_tls_errors"])
@pytest.mark.parametrize("exception", [MemoryError, SystemExit])
def test_a_callback_that_raises_ends_its_thread_only(callback: str, exception: type[BaseException]) -> None:
    """Once, in the thread of a call; all others are run."""
    pool, left = ThreadPool(4, name="test"), threading.Semaphore(1)

    def fails(*_: object) -> None:
        if threading.current_thread().name.startswith("test-") and left.acquire(blocking=False):
            raise exception

    setattr(pool, callback, fails)
    usable(pool)
    usable(pool)
    assert not left.acquire(blocking=False)
    pool.shutdown()


def test_a_hook_for_exceptions_that_raises_ends_its_thread_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """`threading.excepthook` belongs to the program, which may even end its thread there."""
    monkeypatch.setattr(threading, "excepthook", lambda _: sys.exit())
    pool, ended = ThreadPool(1, name="test"), threading.Event()
    pool.on_room = ended.set
    pool.add(divmod, 1, 0)
    pool.wake()
    assert ended.wait(20)
    pool.max_threads = 4
    usable(pool)
    pool.shutdown()


def test_an_idle_thread_that_is_hit_wakes_another_for_its_call() -> None:
    """With one thread allowed the next call needs the place of the dead one."""
    pool = ThreadPool(1, name="test")
    for _ in range(20):
        thread = pool.submit(threading.current_thread).result(20)
        wait_until(functools.partial(is_empty, pool))
        raise_in(thread)
        assert pool.submit(int, "7").result(20) == 7
    pool.shutdown()


# Servers.


@pytest.mark.parametrize("bound", [1, None])
def test_a_late_exception_does_not_deafen_a_server(bound: int | None) -> None:
    """Raised in the thread that has just handled a request, as stopit and its like do when they are late."""
    threads: queue.Queue[threading.Thread] = queue.Queue()

    def handler(request: Any, *_: Any) -> None:
        threads.put(threading.current_thread())
        echo(request, None, None)

    server: Any = compat.ThreadingTCPServer(LOOPBACK, handler)
    server.max_threads = bound
    with serving(server):
        for _ in range(10):
            assert ask(server, b"abc") == b"ABC"
            pool = server._compat_pool
            wait_until(functools.partial(is_empty, pool))
            with contextlib.suppress(AssertionError):  # it has ended already
                raise_in(threads.get())
    assert len(server._compat_pool) == 0


def test_a_thread_that_ends_in_its_handler_leaves_the_bound_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server at `max_threads` hears of it, although the hook has ended the thread in its own way."""
    monkeypatch.setattr(threading, "excepthook", lambda _: sys.exit())

    def handler(request: Any, *_: Any) -> None:
        raise SystemExit(request.recv(10))  # beyond Exception, it leaves the stdlib's own net

    server: Any = compat.ThreadingTCPServer(LOOPBACK, handler)
    server.max_threads = 1
    with serving(server):
        clients = [connect(server) for _ in range(3)]
        for client in clients:
            client.sendall(b"abc")
        for client in clients:
            assert client.recv(10) == b""
            client.close()


def test_an_exception_at_each_step_leaves_a_server_serving(tracer: Tracer) -> None:
    """A client whose thread is hit is answered or cut off, the next one is answered, with one thread allowed."""
    server: Any = compat.ThreadingTCPServer(LOOPBACK, echo)
    server.max_threads = 1
    with serving(server):
        for number in range(1, 150, 3):
            tracer.arm(number)
            with contextlib.suppress(OSError):
                assert ask(server, b"abc") in {b"ABC", b""}
            tracer.left = 0
            assert ask(server, b"abc") == b"ABC"
    assert len(server._compat_pool) == 0


async def test_hosted_handlers_serve_on_after_a_late_exception() -> None:
    """One thread, which is hit between two connections."""
    threads: queue.Queue[threading.Thread] = queue.Queue()

    def handler(request: Any, *_: Any) -> None:
        threads.put(threading.current_thread())
        request.sendall(b"abc")

    hosted = compat.hosted(handler, max_threads=1)
    async with asyncserver.serve(hosted, "127.0.0.1", 0) as server:
        for _ in range(10):
            async with asyncio.timeout(20):
                reader, writer = await asyncio.open_connection(*server.addresses[0])
                assert await reader.read() == b"abc"
                writer.close()
                await writer.wait_closed()
                with contextlib.suppress(AssertionError):
                    raise_in(threads.get())
    hosted.pool.shutdown()  # the last exception may still be on its way
    assert hosted.pool.calls() == []


async def test_hosted_connection_ends_although_its_thread_is_hit_before_it_could(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its client gets the answer and the end; the log, which keeps the error, keeps no open socket with it."""
    requests: list[Any] = []

    def hit(request: Any, *_: object) -> None:
        requests.append(request)
        raise Late

    monkeypatch.setattr("compat.hosting.handler._end", hit)
    hosted = compat.hosted(lambda request, *_: request.sendall(b"abc"))
    async with asyncserver.serve(hosted, "127.0.0.1", 0) as server, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        assert await reader.read() == b"abc"
        writer.close()
        await writer.wait_closed()
    assert [request.fileno() for request in requests] == [-1]
    hosted.pool.shutdown()


def test_no_future_is_left_locked() -> None:
    """An exception as the result is set: a loop that asks for it would wait for ever."""

    def interrupt(frame: FrameType, event: str, _: object) -> Any:
        if event == "return" and frame.f_code.co_name == "__enter__":
            raise Late
        return interrupt

    with ThreadPool(daemon=True) as pool:
        future = pool.submit(sys.settrace, interrupt)
        wait_until(lambda: not pool.alive)  # with a trace function it is not used again
        asking = threading.Thread(target=future.done, daemon=True)
        asking.start()
        asking.join(30)
        assert not asking.is_alive()
        assert future.result(0) is None
