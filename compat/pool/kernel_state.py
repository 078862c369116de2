"""What the kernel keeps for each thread and programs can change, by clone(2) and pthreads(7).

Only privileged threads can change their privileges, and only with CAP_SYS_ADMIN their namespaces,
capabilities(7); so those of others are not looked at.
"""

# `signal` makes enums of the results, and takes twice as long.
import _signal  # type: ignore[import-not-found]
import functools
import os
import sys
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

Look = Callable[[], object]


def looks() -> list[Look]:
    """Return functions that read the calling thread's state; their results can be compared.

    Raises:
        NotImplementedError: it cannot be read.
    """
    if ctypes is None or not hasattr(_library(), "capget"):
        raise NotImplementedError
    told: list[Look] = [_schedule_reader()]
    capabilities = _capabilities_reader()
    permitted = int.from_bytes(capabilities()[4:8], sys.byteorder)
    if any(capabilities()):
        told += [capabilities, _identity]
    if permitted >> _CAP_SYS_ADMIN & 1:
        told.append(_namespaces_reader())
    return told


@functools.cache
def _library() -> Any:
    return ctypes.PyDLL(None)  # keeps the GIL, as none of these calls waits


def _schedule_reader() -> Look:
    buffer = ctypes.create_string_buffer(16)
    # PR_GET_NAME(2const): the name in /proc/thread-self/comm.
    read_name = functools.partial(_library().prctl, _PR_GET_NAME, buffer)
    read_mask = functools.partial(_signal.pthread_sigmask, _signal.SIG_BLOCK, ())

    def read() -> object:
        read_name()
        return read_mask(), sched_getaffinity(0), getpriority(PRIO_PROCESS, 0), sched_getscheduler(0), buffer.raw

    return read


def _capabilities_reader() -> Callable[[], bytes]:
    """capget(2): effective, permitted and inheritable, 32 of each, then the other 32."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    buffer = ctypes.create_string_buffer(24)
    return _reader(functools.partial(_library().capget, header, buffer), buffer)


def _reader(fill: Callable[[], object], buffer: Any) -> Callable[[], bytes]:
    """Make a function that fills the buffer, and returns what is in it."""

    def read() -> bytes:
        fill()
        found: bytes = buffer.raw
        return found

    return read


def _identity() -> object:
    """setfsuid(2): returns the old ID, which follows the effective one; -1 changes nothing."""
    return _library().setfsuid(-1), _library().setfsgid(-1), os.getgroups()


def _namespaces_reader() -> Look:
    """namespaces(7); kinds that this kernel was built without have no link."""
    buffer = ctypes.create_string_buffer(32 * len(_NAMESPACES))
    readlink = _library().readlink  # os.readlink lets other threads run meanwhile
    reads = [
        functools.partial(readlink, b"/proc/thread-self/ns/" + name, ctypes.byref(buffer, 32 * number), 32)
        for number, name in enumerate(_NAMESPACES)
    ]

    def namespaces() -> object:
        for read in reads:
            read()
        return buffer.raw

    return namespaces
