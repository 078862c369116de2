"""Checks of what is given to be called: whether it can be that, else what to write instead."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import types
from typing import Any

# Which server takes a protocol of which kind; any other class may be of either kind.
_PROTOCOLS: dict[str, tuple[type, ...]] = {
    "serve": (asyncio.Protocol, asyncio.BufferedProtocol),
    "serve_datagrams": (asyncio.DatagramProtocol,),
}

# What contextlib's decorators put around a function: the same code around each.
_SYNC_MANAGER: object = getattr(contextlib.contextmanager(iter), "__code__", None)
_ASYNC_MANAGER: object = getattr(contextlib.asynccontextmanager(aiter), "__code__", None)

# Methods written in C, without annotations: `object.__init__`, `object.__new__`, a `__call__`.
_IN_C = (types.WrapperDescriptorType, types.BuiltinFunctionType, types.MethodWrapperType)


def check_handler(handler: object, name: str, argument: str) -> None:
    """Raise TypeError, unless it is called like a coroutine function of one argument."""
    function = handler
    while isinstance(function, functools.partial):
        function = function.func
    shown = name_of(function)
    if isinstance(function, type):
        advice = _wrapping(function, f"{name}({{}}, ...)")
        advice = advice or "a class; give a coroutine function, or an instance with `async def __call__`"
        raise TypeError(f"{name}() got {shown}, {advice}")
    called = getattr(type(function), "__call__", None)  # noqa: B004 - what a call calls
    if not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)):
        raise TypeError(
            f"{name}() expects a coroutine function, `async def handler({argument})`; got {_no_coroutine(function)}"
        )
    if not _takes(handler, 1):
        advice = f"it is called with one argument, the {argument}; for more use functools.partial"
        if _is_method(function):
            advice = f"it is a method: give that of an object, {shown.rpartition('.')[0]}().{shown.rpartition('.')[2]}"
        elif name == "serve" and _takes(handler, 2):
            advice = f"takes (reader, writer)? wrap it: {name}(asyncserver.from_callback({shown}), ...)"
        raise TypeError(f"{name}() got {shown}{_signature(handler)}: {advice}")


def _no_coroutine(function: object) -> str:
    """Show what is no coroutine function, and say what to write instead."""
    shown = name_of(function)
    if isinstance(function, types.CoroutineType):
        function.close()  # or Python says that it was never awaited, too
        return f"what {shown}() returns: leave out the parentheses, so that the server can call it"
    if shown.endswith("<lambda>"):
        return f"{shown}: for more arguments use functools.partial with an `async def` function"
    return f"{shown}: make it `async def`" if callable(function) else shown


def _is_method(function: object) -> bool:
    """Whether it is a method as its class has it, which wants the object first."""
    return inspect.isfunction(function) and function.__code__.co_varnames[:1] == ("self",)


def check_kind(factory: object, name: str) -> None:
    """Raise TypeError for a protocol class of the other kind of server; only classes show that."""
    other = next(one for one in _PROTOCOLS if one != name)
    if _is_kind(factory, _PROTOCOLS[other]) and not _is_kind(factory, _PROTOCOLS[name]):
        shown = name_of(factory)
        raise TypeError(
            f"{name}() got from_protocol({shown}), which is for {other}(): write {other}(from_protocol({shown}), ...)"
        )


def check_factory(factory: object) -> None:
    """Raise TypeError for what `from_protocol()` cannot call."""
    if not callable(factory):
        raise TypeError(f"from_protocol() expects a factory, such as a Protocol class; got {factory!r}")
    if isinstance(factory, type) and not _is_kind(factory, (asyncio.BaseProtocol,)):
        _refuse(factory, "from_protocol")
    if not _takes(factory, 0):
        raise TypeError(
            f"from_protocol() expects a factory that is called without arguments; got {name_of(factory)}"
            f"{_signature(factory)}: give them by functools.partial"
        )


def check_callback(callback: object) -> None:
    """Raise TypeError for what `from_callback()` cannot call with a reader and a writer."""
    _refuse(callback, "from_callback")
    if not callable(callback):
        raise TypeError(f"from_callback() expects a function of (reader, writer); got {callback!r}")
    if not _takes(callback, 2):
        advice = "; a handler of a stream is given to serve() as it is" if _takes(callback, 1) else ""
        raise TypeError(
            f"from_callback() expects a function of (reader, writer); got {name_of(callback)}"
            f"{_signature(callback)}{advice}"
        )


def check_on_error(function: object) -> None:
    """Raise TypeError for what cannot be called with an exception and what its handler handled."""
    shape = "on_error(exception, source)"
    if not callable(function):
        raise TypeError(f"on_error must be a function, `{shape}`, async or not; got {function!r}")
    if not _takes(function, 2):
        raise TypeError(f"on_error is called as {shape}; got {name_of(function)}{_signature(function)}")


def check_close_callback(function: object) -> None:
    """Raise TypeError unless `add_close_callback()` can call it: no arguments, not async."""
    if not callable(function) or not _takes(function, 0):
        signature = _signature(function) if callable(function) else ""
        raise TypeError(f"a close callback is a function without arguments; got {name_of(function)}{signature}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"a close callback is not awaited: it must not be `async def`; got {name_of(function)}")


def check_lifespan(function: object) -> None:
    """Raise TypeError for what cannot be called for an async context manager."""
    advice = "put @contextlib.asynccontextmanager above an `async def` function with one `yield`"
    if isinstance(function, contextlib.AsyncContextDecorator) or (
        hasattr(type(function), "__aenter__") and not callable(function)
    ):
        raise TypeError(
            f"lifespan must be a function that returns an async context manager; got the manager "
            f"itself, {function!r}: leave out the parentheses, or write `lambda: manager`"
        )
    if not callable(function):
        raise TypeError(
            f"lifespan must be a function that returns an async context manager; got {function!r}: {advice}"
        )
    called = type(function).__call__
    if inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(called):
        raise TypeError(
            f"lifespan got the async generator function {name_of(function)}: "
            "put @contextlib.asynccontextmanager above it"
        )
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called):
        raise TypeError(
            f"lifespan got {name_of(function)}, which returns a coroutine, no async context manager: {advice}"
        )
    if inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(called):
        raise TypeError(f"lifespan got the generator function {name_of(function)}: {advice}")
    _check_decorated(function, advice)
    if not _takes(function, 0, unwrap=True) and not _takes(function, 1, unwrap=True):
        raise TypeError(
            f"lifespan is called without arguments, or with the tuple of Servers; got {name_of(function)}"
            f"{_signature(function, unwrap=True)}: give others by functools.partial"
        )


def _check_decorated(given: object, advice: str) -> None:
    """Raise TypeError for what contextlib's decorators have made, if that cannot be entered."""
    function: Any = given
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__  # of an object
    code = getattr(function, "__code__", None)  # a method has its function's
    if code is _SYNC_MANAGER:
        mistake = "is under @contextlib.contextmanager"
    elif code is _ASYNC_MANAGER and inspect.iscoroutinefunction(function.__wrapped__):
        mistake = "has no `yield`"
    elif code is _ASYNC_MANAGER and inspect.isgeneratorfunction(function.__wrapped__):
        mistake = "lacks its `async`"
    else:
        return
    raise TypeError(f"lifespan got {name_of(function)}, which {mistake}; expected an async context manager: {advice}")


def check_loop(function: object, shown: str) -> None:
    """Raise TypeError for what cannot be called for an event loop; `shown` is how it was given."""
    expected = f"loop={shown} must be a function without arguments that returns a loop"
    if not callable(function):
        raise TypeError(f"{expected}; got {function!r}")
    if not _takes(function, 0):
        raise TypeError(f"{expected}; it takes {_signature(function)}: give them by functools.partial")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{expected}; it is `async def`, and returns a coroutine")


def takes_one(function: object) -> bool:
    """Whether a lifespan is called with the Servers; not, if it cannot be known what it takes."""
    return _signature(function, unwrap=True) is not None and _takes(function, 1, unwrap=True)


def _refuse(given: object, name: str) -> None:
    if isinstance(given, type) and (advice := _wrapping(given, "{}")) is not None:
        raise TypeError(f"{name}() got {name_of(given)}, {advice}")


def _wrapping(given: type, call: str) -> str | None:
    """Say what makes a handler of a class that was written for another library."""
    # A program that has such a class has imported its module.
    legacy = getattr(sys.modules.get("socketserver"), "BaseRequestHandler", ())
    if issubclass(given, legacy):
        return "a socketserver handler class; wrap it: " + call.format(f"compat.hosted({name_of(given)})")
    if issubclass(given, asyncio.BaseProtocol):
        return "a protocol class; wrap it: " + call.format(f"asyncserver.from_protocol({name_of(given)})")
    return None


def _takes(function: object, count: int, *, unwrap: bool = False) -> bool:
    """Whether it can be called with so many arguments; yes, if that cannot be known."""
    signature = _signature(function, unwrap=unwrap)
    if signature is None:
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _signature(function: object, *, unwrap: bool = False) -> inspect.Signature | None:
    """What a function takes; with `unwrap` a decorated one what it wraps, else what it is now."""
    try:
        return inspect.signature(_unannotated(function, unwrap=unwrap), follow_wrapped=False)
    except (TypeError, ValueError):  # written in C, without one
        return None


def _unannotated(given: Any, *, unwrap: bool) -> Any:
    """Make a function that takes the same arguments, and has no annotations.

    From Python 3.14 on `inspect.signature()` runs annotations, in all its formats. They may use
    names that only the type checker knows, or do imports that are lazy.
    """
    bare = functools.partial(_unannotated, unwrap=unwrap)
    if isinstance(given, types.FunctionType):
        if hasattr(given, "__signature__"):  # its author gives another
            return given
        if unwrap and hasattr(given, "__wrapped__"):  # by asynccontextmanager, which takes anything
            return bare(given.__wrapped__)
        made = types.FunctionType(given.__code__, {}, given.__name__, given.__defaults__, given.__closure__)
        made.__kwdefaults__ = given.__kwdefaults__
        return made
    if isinstance(given, types.MethodType):
        return types.MethodType(bare(given.__func__), given.__self__)
    if isinstance(given, functools.partial):
        return functools.partial(bare(given.func), *given.args, **given.keywords)
    if isinstance(given, type):
        found = ((type(given), "__call__"), (given, "__new__"), (given, "__init__"))
        calls = [one for one in (getattr(*where) for where in found) if not isinstance(one, _IN_C)]
        if len(calls) > 1 or not all(isinstance(one, types.FunctionType) for one in calls):
            raise ValueError(f"{given!r}: what {calls} are called with depends on what they are, and return")
        return types.MethodType(bare(calls[0]), given) if calls else given
    call = inspect.getattr_static(type(given), "__call__", None)
    bound = call.__get__(given, type(given)) if hasattr(call, "__get__") else call
    return given if bound is given or isinstance(bound, _IN_C) else bare(bound)


def _is_kind(given: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(given, type) and issubclass(given, kinds)


def name_of(function: object) -> str:
    """Name a function, as in errors."""
    return getattr(function, "__qualname__", repr(function))
