"""The pool of threads: nothing that is added is ever left behind, whatever else happens."""

import contextvars
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from pathlib import Path

import pytest

from compat import ThreadPool
from tests.kit.waiting import wait_until


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    """A pool without a bound that is shut down after the test."""
    with ThreadPool(name="test") as pool:
        yield pool


class UnreliableStart:
    """Makes every second attempt to start one of the pool's threads fail, or all of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bool]) -> None:
        self.attempts = 0
        self.refused = 0
        original = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            if not thread.name.startswith("test-"):
                original(thread)
                return
            self.attempts += 1
            if fails(self.attempts):
                self.refused += 1
                raise RuntimeError("can't start new thread")
            original(thread)

        monkeypatch.setattr(threading.Thread, "start", start)


def test_it_is_an_executor(pool: ThreadPool) -> None:
    """Submit, map and the with statement do what the abstract class promises."""
    assert isinstance(pool, Executor)
    assert pool.submit(divmod, 7, 2).result(5) == (3, 1)
    assert list(pool.map(str, range(5))) == ["0", "1", "2", "3", "4"]
    assert pool.submit(int, "ff", base=16).result(5) == 255


def test_exceptions_reach_the_future(pool: ThreadPool) -> None:
    """Even SystemExit belongs to whoever waits for the result."""
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(5)
    with pytest.raises(SystemExit):
        pool.submit(sys.exit, 3).result(5)


def test_two_hundred_calls_on_one_barrier_meet(pool: ThreadPool) -> None:
    """No call waits for another to end, in each of 40 rounds."""
    for _ in range(40):
        barrier = threading.Barrier(200)
        futures = [pool.submit(barrier.wait, 20) for _ in range(200)]
        assert not wait(futures, 20).not_done
        assert sorted(future.result() for future in futures) == list(range(200))


def test_a_batch_on_one_barrier_meets(pool: ThreadPool) -> None:
    """The same when the calls are added first and the workers woken once."""
    for _ in range(50):
        done = threading.Semaphore(0)
        barrier = threading.Barrier(64, action=partial(done.release, 64))
        for _ in range(64):
            pool.add(barrier.wait, 20)
        pool.wake()
        for _ in range(64):
            assert done.acquire(timeout=20)


def test_several_producers_strand_nothing(pool: ThreadPool) -> None:
    """Calls that wait in pairs for each other, from four producers, with pauses in which workers lie down."""

    def produce(futures: list[Future[int]]) -> None:
        for number in range(400):
            pair = threading.Barrier(2)
            futures += [pool.submit(pair.wait, 20), pool.submit(pair.wait, 20)]
            if number % 7 == 0:
                wait(futures, 20)

    batches: list[list[Future[int]]] = [[] for _ in range(4)]
    producers = [threading.Thread(target=produce, args=(futures,)) for futures in batches]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    futures = [future for batch in batches for future in batch]
    assert len(futures) == 3200
    assert not wait(futures, 20).not_done


def test_workers_that_retire_strand_nothing() -> None:
    """A patience so short that workers leave at the very moment in which they are needed."""
    with ThreadPool(name="test", idle_seconds=0.0005) as pool:
        for number in range(1500):
            assert pool.submit(int, "7").result(10) == 7
            if number % 3 == 0:
                time.sleep(0.0005)  # not a synchronisation: it is the patience whose end is aimed at


def test_calls_are_served_when_some_threads_cannot_be_started(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that live take the calls of those that could not be born."""
    start = UnreliableStart(monkeypatch, lambda attempt: attempt % 2 == 0)
    futures = [pool.submit(time.sleep, 0.001) for _ in range(500)]
    assert not wait(futures, 20).not_done
    assert start.refused > 0


def test_no_thread_at_all_is_an_error_of_the_producer(pool: ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread that could ever take it, a call is given back, and the next one is served."""
    UnreliableStart(monkeypatch, lambda attempt: attempt <= 2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="can't start new thread"):
            pool.submit(int, "7")
    assert len(pool) == 0
    assert pool.submit(int, "7").result(5) == 7


def test_producers_in_parallel_learn_that_there_is_no_thread(pool: ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever found the token taken learns from its future what the other's attempt came to."""
    UnreliableStart(monkeypatch, lambda _: True)
    outcomes: list[str] = []

    def produce() -> None:
        for _ in range(200):
            try:
                pool.submit(int, "7").result(10)
            except RuntimeError as error:
                outcomes.append(str(error))

    producers = [threading.Thread(target=produce) for _ in range(4)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    assert outcomes == ["can't start new thread"] * 800
    assert len(pool) == 0


def test_a_worker_that_cannot_start_the_next_says_so(pool: ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls that wait for each other meet once wake() is tried again, as `on_starved` asks for."""
    UnreliableStart(monkeypatch, lambda attempt: attempt == 2)
    monkeypatch.setattr("compat.pool.crew.LATE_SECONDS", 60)  # on a busy machine it tries again by itself
    starved, met = threading.Event(), threading.Event()
    pool.on_starved = starved.set
    pair = threading.Barrier(2, action=met.set)
    for _ in range(2):
        pool.add(pair.wait, 20)
    pool.wake()
    assert starved.wait(10)
    assert not met.is_set()
    pool.wake()
    assert met.wait(10)


def test_a_bound_holds_and_everything_is_served() -> None:
    """Never more than max_threads at a time, and the queue empties in order."""
    running, most, order = 0, 0, []
    lock = threading.Lock()

    def call(number: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            order.append(number)
        time.sleep(0.001)
        with lock:
            running -= 1

    with ThreadPool(3, name="test") as pool:
        assert not wait([pool.submit(call, number) for number in range(60)], 20).not_done
    assert most == 3
    assert sorted(order) == list(range(60))


def test_shutdown_runs_what_is_queued() -> None:
    """Calls that wait when the pool is closed still run, and no thread is left after a waiting shutdown."""
    gate = threading.Event()
    pool = ThreadPool(1, name="test")
    first = pool.submit(gate.wait, 10)
    others = [pool.submit(int, "7") for _ in range(20)]
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="is closed"):
        pool.submit(int, "7")
    gate.set()
    pool.shutdown()
    assert first.result(0)
    assert [future.result(0) for future in others] == [7] * 20
    assert not any(thread.name.startswith("test-") for thread in threading.enumerate())


def test_shutdown_can_cancel_what_is_queued() -> None:
    """`cancel_futures` means what it means for every executor."""
    gate = threading.Event()
    pool = ThreadPool(1, name="test")
    first, second = pool.submit(gate.wait, 10), pool.submit(int, "7")
    pool.shutdown(wait=False, cancel_futures=True)
    gate.set()
    assert first.result(5)
    assert second.cancelled()


def _submit_until_closed(pool: ThreadPool, futures: list[Future[int]], begun: threading.Event) -> None:
    while True:
        try:
            futures.append(pool.submit(int, "7"))
        except RuntimeError:
            return
        begun.set()


def test_close_between_strands_nothing() -> None:
    """A pool that is closed while producers add has either run a call or refused it."""
    for _ in range(30):
        pool = ThreadPool(name="test")
        futures: list[Future[int]] = []
        begun = threading.Event()

        producer = threading.Thread(target=_submit_until_closed, args=(pool, futures, begun))
        producer.start()
        assert begun.wait(10)
        pool.shutdown()
        producer.join()
        assert {future.result(10) for future in futures} == {7}


def test_idle_threads_are_reused_and_retire() -> None:
    """One thread serves calls one after the other, and is gone soon after the last."""
    with ThreadPool(name="test", idle_seconds=0.5) as pool:
        names = set()
        for _ in range(5):
            names.add(pool.submit(lambda: threading.current_thread().name).result(5))
            wait_until(lambda: pool._idle or not pool.alive)  # its thread looks at itself after the result
        assert len(names) == 1
        for thread in pool.threads:
            thread.join(5)
            assert not thread.is_alive()


def test_names_are_unique_among_pools_and_survive_a_rename() -> None:
    """Programs key sessions by the name of the thread."""

    def rename() -> str:
        name = threading.current_thread().name
        threading.current_thread().name = "mine"
        return name

    with ThreadPool(name="test") as one, ThreadPool(name="test") as other:
        name = one.submit(rename).result(5)
        assert other.submit(rename).result(5) != name
        wait_until(lambda: one._idle)
        assert one.submit(rename).result(5) == name


def test_every_call_has_an_empty_context(pool: ThreadPool) -> None:
    """As a new thread of the stdlib has, also in a reused one."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="empty")
    variable.set("producer")

    def call() -> str:
        before = variable.get()
        variable.set("call")
        return before

    assert [pool.submit(call).result(5) for _ in range(3)] == ["empty"] * 3


def test_an_uncaught_exception_goes_to_the_hook_and_the_thread_lives(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`threading.excepthook` gets what `threading.Thread` would give it."""
    seen: queue.Queue[threading.ExceptHookArgs] = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", seen.put)
    pool.add(sys.exit, 4)
    pool.wake()
    args = seen.get(timeout=10)
    assert args.exc_type is SystemExit
    assert args.thread is not None
    assert args.thread.name.startswith("test-")
    wait_until(lambda: pool._idle)
    assert pool.submit(threading.current_thread).result(5) is args.thread


def test_what_it_is_doing_can_be_asked(pool: ThreadPool) -> None:
    """The oldest call comes first, with its age and its stack."""
    gate, begun = threading.Event(), threading.Event()

    def recognisable() -> None:
        begun.set()
        gate.wait(10)

    future = pool.submit(recognisable)
    assert begun.wait(10)
    assert len(pool) == 1
    call = pool.calls()[0]
    assert "recognisable" in call.stack()
    assert call.age() > 0
    gate.set()
    future.result(5)
    pool.shutdown()
    assert pool.calls() == []


def test_a_pool_thread_cannot_wait_for_itself(pool: ThreadPool) -> None:
    """Like every executor's, a waiting shutdown in a thread of the pool is an error, not a deadlock."""
    with pytest.raises(RuntimeError, match="cannot join current thread"):
        pool.submit(pool.shutdown).result(5)


def test_a_forked_child_has_an_empty_pool() -> None:
    """The parent's threads do not exist in the child, which can use the pool all the same."""
    program = """
import os, threading
from compat import ThreadPool
pool = ThreadPool()
gate = threading.Event()
pool.submit(gate.wait)
def fork():
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os._exit(0 if len(pool) == 0 and pool.submit(int, "7").result(5) == 7 else 1)
print(fork(), pool.submit(fork).result(10))
gate.set()
"""
    assert _run(program) == "0 0\n"


def test_the_interpreter_waits_for_running_calls_only() -> None:
    """Not for idle threads, and for daemonic pools not at all."""
    program = """
import threading, time
from compat import ThreadPool
ThreadPool(idle_seconds=60).submit(int).result(5)
ThreadPool(daemon=True).submit(time.sleep, 60)
ThreadPool().submit(lambda: (time.sleep(0.2), print("finished")))
"""
    begun = time.monotonic()
    assert _run(program) == "finished\n"
    assert time.monotonic() - begun < 20


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="3.12 starts no threads once the main thread has ended")
def test_a_pool_still_works_while_the_interpreter_waits_for_threads() -> None:
    """A server in a non-daemon thread goes on after the main thread has ended."""
    program = """
import threading
from compat import ThreadPool
pool = ThreadPool(idle_seconds=60)
def late():
    threading.main_thread().join()
    print([pool.submit(int, "7").result(5) for _ in range(3)])
threading.Thread(target=late).start()
"""
    assert _run(program) == "[7, 7, 7]\n"


def test_a_future_that_is_cancelled_before_its_turn_never_runs() -> None:
    """A worker skips it."""
    gate = threading.Event()
    with ThreadPool(1, name="test") as pool:
        pool.submit(gate.wait, 10)
        second = pool.submit(int, "7")
        assert second.cancel()
        gate.set()
        with pytest.raises(FutureTimeout):
            pool.submit(threading.Event().wait, 0.01).result(0)


def _run(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=30, env=_env()
    ).stdout


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
