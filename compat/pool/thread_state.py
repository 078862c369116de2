"""Whether a call has left its thread as a new thread would be: only then the next call may have it.

A thread ends with its request in the stdlib, and with it all that belongs to a thread. So a thread that is used again
is looked at first; where something is left over it ends as well. What a look costs stands in CONTRIBUTING.md.
"""

import gc
import sys
import threading
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable
from typing import Any

from compat.pool.kernel_state import looks

ctypes: Any
try:
    import ctypes
except ImportError:  # an interpreter without libffi
    ctypes = None


class ThreadState:
    """What the calling thread is like now, to be compared later by the same thread.

    Args:
        thread: the calling thread.
    """

    def __init__(self, thread: threading.Thread) -> None:
        self._thread = thread
        try:
            self._looks = [_locals_counter(), *looks()]
        except NotImplementedError:
            self._looks = []
        self._was = self._look()

    def is_as_new(self) -> bool:
        """Whether nothing is left over; false as well where that cannot be known."""
        return bool(self._looks) and self._look() == self._was

    def _look(self) -> list[object]:
        return [
            sys.gettrace(),
            sys.getprofile(),
            sys.get_asyncgen_hooks(),
            sys.get_coroutine_origin_tracking_depth(),
            _get_running_loop(),
            len(vars(self._thread)),
            weakref.getweakrefcount(self._thread),  # values kept for each thread in a WeakKeyDictionary
        ] + [look() for look in self._looks]


def _locals_counter() -> Callable[[], int]:
    """What counts the `threading.local` objects that have values in the calling thread."""
    if sys.implementation.name != "cpython" or threading.local.__module__ != "_thread":
        raise NotImplementedError  # another interpreter, or a thread is a greenlet of gevent's or eventlet's
    if sys.version_info < (3, 13):
        return _entries_counter()
    probe = threading.local()
    probe.value = None
    # From 3.13 on each of them has a weak reference to one object of the thread (Modules/_threadmodule.c).
    (watchdogs,) = (one for one in gc.get_referents(probe) if isinstance(one, set))
    (watchdog,) = watchdogs
    mine = weakref.ref(watchdog())  # not the object itself, whose end tells that the thread has ended

    def count() -> int:
        return weakref.getweakrefcount(mine())

    return count


def _entries_counter() -> Callable[[], int]:
    """Until 3.12 each of them has an entry in the thread's dictionary, where other things are as well."""
    if ctypes is None:
        raise NotImplementedError
    python = ctypes.PyDLL(None)
    python.PyThreadState_GetDict.restype = ctypes.c_void_p
    address = ctypes.c_void_p(python.PyThreadState_GetDict())
    size = python.PyDict_Size
    known = number = 0

    def count() -> int:
        nonlocal known, number
        if (now := size(address)) != known:
            known = now
            entries = ctypes.cast(address, ctypes.py_object).value
            number = sum(isinstance(key, str) and key.startswith("thread.local.") for key in entries)
        return number

    return count
