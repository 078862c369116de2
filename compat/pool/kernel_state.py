"""What the kernel keeps for each thread and programs can change, by clone(2) and pthreads(7).

Only privileged threads can change their privileges, and only with CAP_SYS_ADMIN their namespaces,
capabilities(7); so those of others are not looked at.
"""

import functools
import itertools
import os
import sys

# `signal` makes enums of the results, and takes twice as long.
from _signal import SIG_BLOCK, pthread_sigmask  # type: ignore[import-not-found]
from collections.abc import Callable
from os import PRIO_PROCESS, getpriority, sched_getaffinity, sched_getscheduler
from typing import Any

ctypes: Any
try:
    import ctypes
except ImportError:  # an interpreter without libffi
    ctypes = None

# linux/prctl.h, linux/capability.h
_PR_GET_NAME = 16
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_SYS_ADMIN = 21
_NAMESPACES = (b"net", b"mnt", b"uts", b"ipc", b"cgroup", b"pid_for_children", b"time_for_children")

# linux/sched.h, and what holds the first fields of proc_pid_stat(5)
_PF_FORKNOEXEC = 0x40
_PF_SUPERPRIV = 0x100
_STAT_BYTES = 256

Look = Callable[[], object]


def kernel_reader() -> Look:
    """Return a function that reads the calling thread's state; its results can be compared.

    Raises:
        NotImplementedError: it cannot be read. Where a filter forbids it, they raise OSError.
    """
    if ctypes is None or not hasattr(_library(), "capget"):
        raise NotImplementedError
    schedule = _schedule_reader()
    capabilities = _capabilities_reader()
    held = capabilities()
    if not any(held):
        return schedule
    if not int.from_bytes(held[4:8], sys.byteorder) >> _CAP_SYS_ADMIN & 1:
        return lambda: (schedule(), capabilities(), _identity())
    namespaces = _namespaces_reader()
    return lambda: (schedule(), capabilities(), _identity(), namespaces())


@functools.cache
def _library() -> Any:
    return ctypes.PyDLL(None)  # keeps the GIL, as none of these calls waits


def _schedule_reader() -> Look:
    buffer = ctypes.create_string_buffer(16)
    # PR_GET_NAME(2const): the name in /proc/thread-self/comm.
    read_name = functools.partial(_library().prctl, _PR_GET_NAME, ctypes.byref(buffer))
    if read_name() == -1:
        raise NotImplementedError

    def read() -> object:
        read_name()
        return (
            pthread_sigmask(SIG_BLOCK, ()),
            sched_getaffinity(0),
            getpriority(PRIO_PROCESS, 0),
            sched_getscheduler(0),
            buffer.raw,
        )

    return read


def _capabilities_reader() -> Callable[[], bytes]:
    """capget(2): effective, permitted and inheritable, 32 of each, then the other 32."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    buffer = ctypes.create_string_buffer(24)
    return _reader(functools.partial(_library().capget, header, buffer), buffer)


def _reader(fill: Callable[[], int], buffer: Any) -> Callable[[], bytes]:
    """Make a function that fills the buffer, and returns what is in it."""
    if fill() == -1:
        raise NotImplementedError

    def read() -> bytes:
        fill()
        found: bytes = buffer.raw
        return found

    return read


def _identity() -> object:
    """setfsuid(2): returns the old ID, which follows the effective one; -1 changes nothing."""
    return _library().setfsuid(-1), _library().setfsgid(-1), os.getgroups()


def _namespaces_reader() -> Look:
    """Read the namespaces where they may have changed: 20 us. The look whether they may costs 9."""
    read, may_have_changed = _links_reader(), _privileges_reader()
    known = read()
    if type(known) is object:
        raise NotImplementedError
    return lambda: read() if may_have_changed() else known


def _links_reader() -> Look:
    """namespaces(7); kinds that this kernel was built without have no link.

    After unshare(CLONE_NEWPID) there is none for children until there is one
    (pidns_for_children_get() in kernel/pid_namespace.c).
    """
    buffer = ctypes.create_string_buffer(32 * len(_NAMESPACES))
    library = _library()  # os.readlink lets other threads run meanwhile
    readlink, close = library.readlinkat, library.close
    # Opened for each look: the way to the folder takes as long as a few links.
    enter = functools.partial(library.open, b"/proc/thread-self/ns", os.O_PATH | os.O_CLOEXEC)
    places = [ctypes.byref(buffer, 32 * number) for number in range(len(_NAMESPACES))]
    sizes = [32] * len(_NAMESPACES)

    def links() -> object:
        folder = enter()
        if folder < 0:  # no descriptor is left, and so nothing is known: equal to nothing
            return object()
        found = list(map(readlink, itertools.repeat(folder), _NAMESPACES, places, sizes))
        close(folder)
        return (found, buffer.raw) if any(size > 0 for size in found) else object()

    return links


def _privileges_reader() -> Callable[[], bool]:
    """Make a function that tells whether the thread may have used a capability since it began.

    PF_SUPERPRIV in the flags of proc_pid_stat(5): the kernel sets it, and never clears it, where it
    asks for a capability and the thread has it (ns_capable_common() in kernel/capability.c), as
    setns(2) and unshare(2) do for each namespace. A new thread begins without (copy_process() in
    kernel/fork.c), and with PF_FORKNOEXEC: systems that only look like Linux show neither.
    """
    buffer = ctypes.create_string_buffer(_STAT_BYTES)
    library = _library()

    def may_have_used() -> bool:
        descriptor = library.open(b"/proc/thread-self/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = library.read(descriptor, buffer, _STAT_BYTES)
        finally:
            library.close(descriptor)
        if size <= 0:  # no descriptor was left
            return True
        flags = int(buffer.raw[:size].rpartition(b")")[2].split(None, 7)[6])
        return flags & (_PF_FORKNOEXEC | _PF_SUPERPRIV) != _PF_FORKNOEXEC

    return may_have_used
