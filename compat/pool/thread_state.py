"""Whether a call has left its thread like a new one: only then it is used for another call.

In the stdlib a thread ends with its request, and with it all that belongs to a thread. So
before a thread is used again it is compared; if something is left over, it ends as well.
CONTRIBUTING.md says what a look costs.
"""

import gc
import sys
import threading
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable
from sys import get_asyncgen_hooks, get_coroutine_origin_tracking_depth, getprofile, gettrace
from weakref import getweakrefcount

from compat.pool.kernel_state import Look, ctypes, kernel_reader


class ThreadState:
    """The state of `thread`, the calling one, now; to be compared later by the same thread."""

    __slots__ = ("_look", "_was")
    _usual: object = None

    def __init__(self, thread: threading.Thread) -> None:
        try:
            self._look: Look = _reader(thread)
            self._was = self._look()
        except (NotImplementedError, OSError):  # a filter of system calls may forbid to look
            self._look, self._was = object, None  # nothing is equal to that
        # One for all threads that began alike: it is half a kilobyte, for each idle connection.
        if self._was == ThreadState._usual:
            self._was = ThreadState._usual
        ThreadState._usual = self._was

    def is_as_new(self) -> bool:
        """Whether nothing is left over; false also where that cannot be known."""
        try:
            return self._look() == self._was
        except OSError:
            return False


def _reader(thread: threading.Thread) -> Look:
    """Make one function for all that is looked at: what costs are the calls in between."""
    attributes, count_locals, read_kernel = vars(thread), _locals_counter(), kernel_reader()

    def read() -> object:
        return (
            gettrace(),
            getprofile(),
            get_asyncgen_hooks(),
            get_coroutine_origin_tracking_depth(),
            _get_running_loop(),
            len(attributes),
            getweakrefcount(thread),  # values for threads in a WeakKeyDictionary
            count_locals(),
            read_kernel(),
        )

    return read


def _locals_counter() -> Callable[[], int]:
    """Make a function that counts the `threading.local` objects with values in this thread."""
    # Another interpreter, or threads are greenlets of gevent's or eventlet's.
    if sys.implementation.name != "cpython" or threading.local.__module__ != "_thread":
        raise NotImplementedError
    if sys.version_info < (3, 13):
        return _entries_counter()
    probe = threading.local()
    probe.value = None
    # From 3.13 on each of them has a weak reference to one object of the thread
    # (Modules/_threadmodule.c).
    (watchdogs,) = (one for one in gc.get_referents(probe) if isinstance(one, set))
    (watchdog,) = watchdogs
    mine = weakref.ref(watchdog())  # not the object itself, whose end means the thread's end

    def count() -> int:
        return getweakrefcount(mine())

    return count


def _entries_counter() -> Callable[[], int]:
    """Up to 3.12: each has an entry in the thread's dictionary, which has other entries too."""
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
