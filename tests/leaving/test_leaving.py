"""The end of a program is bounded: calls in threads that go on are named in the log, and left behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import re
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from asyncserver.leaving import executor as module
from asyncserver.leaving.executor import CallExecutor
from tests.kit.programs import LOOPS, Program
from tests.kit.waiting import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

APP = """
import asyncio, atexit, concurrent.futures, functools, sys, threading, time
import anyio
import asyncserver
from asyncserver.leaving import executor, threads

executor.GRACE = threads.GRACE = 0.2  # nothing here ends in it, however long it is

def hang(word):
    print(word, flush=True)
    time.sleep(1000)

async def handler(stream):
    kind = (await stream.receive()).decode()
    loop = asyncio.get_running_loop()
    call = functools.partial(hang, "calling")
    if kind == "to_thread":
        await asyncio.to_thread(hang, "calling")
    elif kind == "run_in_executor":
        await loop.run_in_executor(None, call)
    elif kind == "background":
        handler.task = asyncio.create_task(asyncio.to_thread(call))
        await stream.send(b"done")
    elif kind == "anyio":
        await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
    elif kind == "own executor":
        await loop.run_in_executor(concurrent.futures.ThreadPoolExecutor(), call)
    elif kind == "thread":
        threading.Thread(target=call).start()

if __name__ == "__main__":
    import logging
    logging.basicConfig(level="INFO")
    workers, loop, drain_timeout = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    atexit.register(print, "atexit")
    sock = asyncserver.serve(handler, "127.0.0.1", int(sys.argv[4]), drain_timeout=drain_timeout)
    asyncserver.run(sock, workers=workers, loop=loop)
    print("run() has returned", flush=True)
    sys.exit(5)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def call(program: Program, kind: str, *, workers: int) -> None:
    """Let the server call hang() in a thread."""
    program.wait_for("workers serve on" if workers > 1 else "serving on tcp://")
    found = re.search(r"127\.0\.0\.1:(\d+)", program.errors)
    assert found is not None
    with socket.create_connection(("127.0.0.1", int(found[1])), PATIENCE) as client:
        client.sendall(kind.encode())
        program.wait_for("calling")
        program.process.send_signal(signal.SIGTERM)
        program.wait_for("no new work")
        if kind == "background":
            return
        while client.recv(99):
            pass


# -- the end of run


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["to_thread", "run_in_executor"])
@pytest.mark.parametrize("loop", LOOPS)
def test_run_returns_and_says_what_it_has_left(folder: Path, workers: int, kind: str, loop: str) -> None:
    """With its exit status and atexit functions, whatever still runs in the loop's threads."""
    with Program(["app.py", str(workers), loop, "0.1", "0"], folder) as program:
        call(program, kind, workers=workers)
        assert program.wait() == 5
    assert re.search(r"calls in threads are left behind, 1: __main__\.hang\(\) since \d", program.errors)
    assert "run() has returned\natexit\n" in program.output


@pytest.mark.parametrize("workers", [1, 2])
def test_second_signal_ends_the_wait_for_calls(folder: Path, workers: int) -> None:
    """Those that no handler waits for have as long as handlers, unless it is said again."""
    with Program(["app.py", str(workers), "asyncio", "1000", "0"], folder) as program:
        call(program, "background", workers=workers)
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == 5
    assert "calls in threads are left behind, 1: " in program.errors


def test_threads_that_python_waits_for_are_told(folder: Path) -> None:
    """run() can do nothing about a program's own threads, but say who holds it."""
    with Program(["app.py", "1", "asyncio", "0.1", "0"], folder) as program:
        call(program, "thread", workers=1)
        program.wait_for("threads of the program still run, and Python waits for them: 'Thread-")
        assert " in hang() (" in program.errors
        assert "run() has returned" in program.output


# -- the command line


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["to_thread", "anyio", "own executor", "thread"])
def test_command_line_leaves(folder: Path, workers: int, kind: str) -> None:
    """Its process is its own, so whoever started a thread, it ends, and says so; so do workers."""
    arguments = ["--tcp", "127.0.0.1:0", "--workers", str(workers), "--drain-timeout", "0.1"]
    with Program(["-m", "asyncserver", "app:handler", *arguments], folder) as program:
        call(program, kind, workers=workers)
        assert program.wait() == 0
    expected = "calls in threads are left behind, 1: app.hang() since"
    if kind != "to_thread":
        expected = "threads of the program are left behind: '" if workers == 1 else "SIGTERM: no new work"
    assert expected in program.errors


# -- the executor


@pytest.fixture
async def executor() -> CallExecutor:
    return CallExecutor(asyncio.get_running_loop())


async def test_calls_run_and_tell_what_became_of_them(executor: CallExecutor) -> None:
    """As in ThreadPoolExecutor: results, errors, context, many at once and one after the other in few threads."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    variable.set(7)
    assert await asyncio.to_thread(variable.get) == 7
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(lambda: 1 / 0)
    assert executor._alive <= 2
    meeting = threading.Barrier(executor._limit)
    await asyncio.gather(*(asyncio.to_thread(meeting.wait, PATIENCE) for _ in range(executor._limit)))
    assert await asyncio.gather(*(asyncio.to_thread(abs, -number) for number in range(300))) == [*range(300)]
    assert executor._alive == executor._limit
    assert list(executor.map(abs, [-1, -2])) == [1, 2]
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        await asyncio.to_thread(abs, 1)


async def test_call_that_waits_for_a_thread_can_be_cancelled(executor: CallExecutor) -> None:
    """Then it never runs."""
    go_on = threading.Event()
    busy = [executor.submit(go_on.wait, PATIENCE) for _ in range(executor._limit)]
    ran: list[int] = []
    waiting = executor.submit(ran.append, 1)
    assert waiting.cancel()
    go_on.set()
    concurrent.futures.wait(busy, PATIENCE)
    executor.shutdown()
    assert not ran


@pytest.mark.parametrize("end", ["finish", "shutdown"])
async def test_calls_that_end_in_time_are_not_left(
    executor: CallExecutor, end: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that had no thread yet."""
    monkeypatch.setattr(module, "GRACE", PATIENCE)
    go_on = threading.Event()
    called = [executor.submit(go_on.wait, PATIENCE) for _ in range(executor._limit + 3)]
    if end == "finish":
        ending: Any = asyncio.ensure_future(executor.finish())
        await asyncio.sleep(0)
        assert not ending.done()
    else:
        ending = asyncio.get_running_loop().run_in_executor(concurrent.futures.ThreadPoolExecutor(1), executor.shutdown)
    go_on.set()
    await asyncio.wait_for(ending, PATIENCE)
    assert all(future.result(0) for future in called)
    assert not caplog.records


async def test_calls_are_left_once(
    executor: CallExecutor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named by what was called, ten of them; those that had not begun are cancelled; nobody waits a second time."""
    monkeypatch.setattr(module, "GRACE", 0.01)
    go_on = threading.Event()
    running = [executor.submit(functools.partial(go_on.wait, PATIENCE)) for _ in range(executor._limit)]
    waiting = executor.submit(abs, 1)
    await executor.finish()
    executor.shutdown()
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith(f"calls in threads are left behind, {executor._limit + 1}: ")
    assert told.count("Event.wait() since 0.") == min(10, executor._limit)
    assert waiting.cancelled()
    go_on.set()
    concurrent.futures.wait(running, PATIENCE)


async def test_no_thread_to_be_had(executor: CallExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the caller's as long as there is no thread at all; later the call waits for one."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await asyncio.to_thread(abs, 1)
    go_on = threading.Event()
    first = executor.submit(go_on.wait, PATIENCE)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        second = executor.submit(abs, -1)
    go_on.set()
    assert first.result(PATIENCE)
    assert second.result(PATIENCE) == 1
    executor.shutdown()
