"""Event loops by name: the standard library's, uvloop's, and what a program's own function returns.

The only place that knows uvloop.
"""

from __future__ import annotations

import asyncio
import functools
import pkgutil
from typing import TYPE_CHECKING, TypeAlias

from ..adapters.checks import check_loop, name_of

if TYPE_CHECKING:
    from collections.abc import Callable

#: Makes a loop.
LoopFactory: TypeAlias = "Callable[[], asyncio.AbstractEventLoop]"

#: The names of those that need no module and function.
NAMES = ("auto", "uvloop", "asyncio")

# What servers call. Without getaddrinfo(), add_signal_handler() or get_task_factory() they do.
_NEEDED = (
    "add_reader",
    "add_writer",
    "call_at",
    "call_later",
    "call_soon",
    "call_soon_threadsafe",
    "close",
    "create_future",
    "create_task",
    "remove_reader",
    "remove_writer",
    "run_in_executor",
    "run_until_complete",
    "set_default_executor",
    "time",
)


def loop_factory(loop: str | LoopFactory) -> LoopFactory:
    """Return what makes such a loop.

    Args:
        loop: one of NAMES, "module:function", or the function.

    Raises:
        TypeError, ValueError: it is none of these, or there is no such function.
        ModuleNotFoundError: there is no such module; uvloop was asked for and is not installed.
    """
    if callable(loop):
        check_loop(loop, name_of(loop))
        return functools.partial(_made, loop, name_of(loop))
    if loop in NAMES:
        return _by_name(loop)
    if not all(str(loop).partition(":")):
        names = ", ".join(f'"{name}"' for name in NAMES)
        raise ValueError(f'loop must be {names}, "module:function" or a function that returns a loop; got {loop!r}')
    try:
        function = pkgutil.resolve_name(loop)
    except AttributeError as exc:
        module, _, name = loop.partition(":")
        raise ValueError(f"loop={loop!r}: module {module!r} has no {name!r}") from exc
    check_loop(function, repr(loop))
    return functools.partial(_made, function, repr(loop))


def _by_name(name: str) -> LoopFactory:
    if name != "asyncio":
        try:
            import uvloop  # noqa: PLC0415 - optional; takes 10 ms
        except ModuleNotFoundError:
            if name == "uvloop":
                raise
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop


def _made(function: LoopFactory, shown: str) -> asyncio.AbstractEventLoop:
    """Make a loop, and see whether a server can do with it."""
    loop = function()
    missing = [name for name in _NEEDED if not _has(loop, name)]
    if "run_until_complete" in missing:
        raise TypeError(f"loop={shown} must be a function without arguments that returns a loop; it returned {loop!r}")
    if missing:
        loop.close()
        raise RuntimeError(
            f"loop={shown}: {type(loop).__qualname__} has no {', '.join(f'{name}()' for name in missing)}, which "
            "servers need: use another loop, such as uvloop"
        )
    return loop


def _has(loop: object, name: str) -> bool:
    """Whether it has a method of its own; those of AbstractEventLoop raise NotImplementedError."""
    found = getattr(type(loop), name, None)
    return found is not None and found is not getattr(asyncio.AbstractEventLoop, name)
