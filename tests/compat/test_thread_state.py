"""What one call leaves in its thread never meets the next one, and a thread that is left as new is used again."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import signal
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import asyncserver
import compat
from compat import ThreadPool
from compat.pool import crew, kernel_state
from compat.pool.thread_state import ThreadState
from tests.kit.compat import LOOPBACK, ask, serving
from tests.kit.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

# Of servers that other tests have dropped, collected here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LIBC = ctypes.CDLL(None)
LOCAL = threading.local()
WEAK: weakref.WeakKeyDictionary[threading.Thread, str] = weakref.WeakKeyDictionary()
PRIVILEGED = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def tid_priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def capabilities() -> list[int]:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # capget(2)
    data = (ctypes.c_uint32 * 6)()
    LIBC.capget(header, data)
    return list(data)


def drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    LIBC.capset(header, (ctypes.c_uint32 * 6)())


# What a call does, and what the next one would see.
LEFTOVERS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "local": (lambda: setattr(LOCAL, "user", "alice"), lambda: getattr(LOCAL, "user", None)),
    "weakly keyed": (
        lambda: WEAK.update({threading.current_thread(): "alice"}),
        lambda: WEAK.get(threading.current_thread()),
    ),
    "attribute": (
        lambda: setattr(threading.current_thread(), "user", "alice"),
        lambda: getattr(threading.current_thread(), "user", None),
    ),
    "trace": (lambda: sys.settrace(lambda *_: None), sys.gettrace),
    "profile": (lambda: sys.setprofile(lambda *_: None), sys.getprofile),
    "asyncgen hooks": (lambda: sys.set_asyncgen_hooks(print), sys.get_asyncgen_hooks),
    "origin tracking": (
        lambda: sys.set_coroutine_origin_tracking_depth(5),
        sys.get_coroutine_origin_tracking_depth,
    ),
    "running loop": (lambda: asyncio._set_running_loop(LOOP), asyncio._get_running_loop),
    "signal mask": (
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]),
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, []),
    ),
    "affinity": (
        lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
        lambda: os.sched_getaffinity(0),
    ),
    "nice": (lambda: os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10), tid_priority),
    "scheduler": (
        lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
        lambda: os.sched_getscheduler(0),
    ),
    "name": (
        lambda: Path("/proc/thread-self/comm").write_text("alice"),
        lambda: Path("/proc/thread-self/comm").read_text() == "alice\n",
    ),
}
LOOP: Any = object()

PRIVILEGES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "fsuid": (lambda: LIBC.setfsuid(65534), lambda: LIBC.setfsuid(-1)),
    "fsgid": (lambda: LIBC.setfsgid(65534), lambda: LIBC.setfsgid(-1)),
    "capabilities": (drop_capabilities, capabilities),
}
# Kinds that a thread may leave alone, with what unshare(2) calls them.
NAMESPACES = {
    "mnt": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "pid_for_children": 0x20000000,
    "net": 0x40000000,
}


def check_that_nothing_is_left(leave: Callable[[], object], look: Callable[[], object]) -> None:
    """Between two requests that would find it, one that leaves something; all by one thread at a time."""
    seen = []

    def handler(request: Any, *_: Any) -> None:
        if request.recv(10) == b"leave":
            leave()
        else:
            seen.append(look())

    server: Any = compat.ThreadingTCPServer(LOOPBACK, handler)
    server.max_threads = 1
    with serving(server):
        for question in (b"look", b"leave", b"look"):
            assert ask(server, question) == b""
    assert seen[0] == seen[1]


@pytest.mark.parametrize("what", LEFTOVERS)
def test_nothing_is_left_for_the_next_call(what: str) -> None:
    """Each belongs to a thread, which ends with its request in the stdlib."""
    check_that_nothing_is_left(*LEFTOVERS[what])


@PRIVILEGED
@pytest.mark.parametrize("what", PRIVILEGES)
def test_no_privileges_are_left_for_the_next_call(what: str) -> None:
    """The kernel keeps them for each thread; where they have been changed, that ends."""
    check_that_nothing_is_left(*PRIVILEGES[what])


@PRIVILEGED
@pytest.mark.parametrize("kind", NAMESPACES)
def test_no_namespace_is_left_for_the_next_call(kind: str) -> None:
    """They are looked at only where the kernel says that the thread has used a privilege."""

    def leave() -> None:
        assert LIBC.unshare(NAMESPACES[kind]) == 0

    check_that_nothing_is_left(leave, lambda: Path(f"/proc/thread-self/ns/{kind}").readlink())


def test_a_replacement_does_not_inherit_what_was_left() -> None:
    """A new thread has its starter's signal mask; so a server's thread does not start the next one after a call."""
    masks = []

    def handler(request: Any, *_: Any) -> None:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]))
        request.sendall(b"abc")

    server: Any = compat.ThreadingTCPServer(LOOPBACK, handler)
    server.max_threads = 2
    clients = []
    with serving(server):
        clients = [threading.Thread(target=ask, args=(server,)) for _ in range(30)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(20)
    assert masks == [set()] * 30


def test_threads_that_calls_never_leave_as_new_are_seldom_looked_at() -> None:
    """To note what they are like would double what a call costs; once calls leave nothing, threads are used again."""
    looked = 0

    class Counted(ThreadState):
        def __init__(self, thread: threading.Thread) -> None:
            nonlocal looked
            looked += 1
            super().__init__(thread)

    bound = crew.SPOILT_IN_A_ROW
    with pytest.MonkeyPatch.context() as patch, ThreadPool(1) as pool:
        patch.setattr(crew, "ThreadState", Counted)
        for _ in range(4 * bound):
            pool.submit(LEFTOVERS["local"][0]).result(PATIENCE)
        assert bound <= looked <= bound + 4
        threads = [pool.submit(threading.get_native_id).result(PATIENCE) for _ in range(bound + 2)]
    assert len(set(threads[bound:])) == 1


def test_a_thread_that_is_left_as_new_is_used_again() -> None:
    """What handlers usually do leaves nothing: a name is reset, context variables and dicts are not the thread's."""

    def call() -> int:
        threading.current_thread().name = "mine"
        repr([[]])  # notes itself in the thread's dictionary
        return threading.get_native_id()

    with ThreadPool(1, name="test") as pool:
        threads = [pool.submit(threading.get_native_id).result(20)]
        for _ in range(5):
            wait_until(lambda: len(pool) == 0)
            threads.append(pool.submit(call).result(20))
        assert len(set(threads)) == 1


def test_threads_need_not_be_used_again() -> None:
    """`reuse_threads = False` gives each request a thread of its own, as the stdlib does."""
    threads = []

    def handler(request: Any, *_: Any) -> None:
        threads.append(threading.current_thread())
        request.sendall(b"abc")

    server: Any = compat.ThreadingTCPServer(LOOPBACK, handler)
    server.reuse_threads = False
    with serving(server):
        for _ in range(5):
            assert ask(server) == b"abc"
    assert len(set(threads)) == 5
    assert not any(thread.is_alive() for thread in threads)


class Database:
    """Keeps a connection for each thread, as peewee does, and says so when it is opened twice."""

    def __init__(self) -> None:
        self._state = threading.local()

    def connect(self) -> None:
        """Open the connection of the calling thread."""
        if getattr(self._state, "open", False):
            raise RuntimeError("connection already opened")
        self._state.open = True


def test_a_program_with_a_connection_for_each_thread_is_served() -> None:
    """It never closes the connection: its thread ends, in the stdlib."""
    database = Database()

    def handler(request: Any, *_: Any) -> None:
        database.connect()
        request.sendall(b"abc")

    with serving(compat.ThreadingTCPServer(LOOPBACK, handler)) as server:
        for _ in range(10):
            assert ask(server) == b"abc"


async def test_such_a_program_is_served_when_hosted() -> None:
    """Under asyncserver, too."""
    database = Database()

    def handler(request: Any, *_: Any) -> None:
        database.connect()
        request.sendall(b"abc")

    async with asyncserver.serve(compat.hosted(handler), "127.0.0.1", 0) as server:
        for _ in range(10):
            async with asyncio.timeout(20):
                reader, writer = await asyncio.open_connection(*server.addresses[0])
                assert await reader.read() == b"abc"
                writer.close()
                await writer.wait_closed()


def test_a_bound_below_one_is_refused() -> None:
    """It would never run anything."""
    with pytest.raises(ValueError, match="max_threads is 0, expected at least 1"):
        ThreadPool(0)


@pytest.mark.parametrize("name", ["sched_getaffinity", "sched_getscheduler", "getpriority"])
@pytest.mark.parametrize(
    ("after", "expected"), [(0, 7), (1, 7), (5, 3)], ids=["at once", "after the first look", "later"]
)
async def test_where_threads_cannot_be_looked_at_each_call_gets_a_new_one(
    name: str, after: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a filter of system calls: no thread dies of it, which would start threads without end."""
    looked, original = 0, getattr(kernel_state, name)

    def refuse(*arguments: Any) -> Any:
        nonlocal looked
        looked += 1
        if looked > after:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return original(*arguments)

    monkeypatch.setattr(kernel_state, name, refuse)
    with ThreadPool(1) as pool:
        threads = {pool.submit(threading.current_thread).result(PATIENCE) for _ in range(7)}
    assert len(threads) == expected
    assert looked > after


@pytest.mark.parametrize("call", ["capget", "prctl", "readlinkat"])
def test_calls_of_the_c_library_that_fail(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read is not taken for unchanged: -1 leaves nothing in the buffer."""

    class Library:
        def __getattr__(self, name: str) -> Any:
            return (lambda *_: -1) if name == call else getattr(library, name)

    library = kernel_state._library()
    monkeypatch.setattr(kernel_state, "_library", Library)
    with pytest.raises(NotImplementedError):
        if call == "readlinkat":
            kernel_state._namespaces_reader()
        else:
            kernel_state.kernel_reader()
