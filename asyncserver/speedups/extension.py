"""Extension: the compiled hot paths, if they can be used here.

    class Receiving:
        @accelerate
        async def receive(self, max_bytes: int = CHUNK) -> bytes: ...

The Python function is the definition. Without the extension the decorator returns it. With it an
object stands in its place that does the usual case in C, and calls the function for any other. It
has the function's name, signature and docstring.

A class becomes one with the same attributes, kept in a C struct: that is how both reach them.
"""

from __future__ import annotations

import copyreg
import functools
import importlib
import operator
import os
from typing import Any, TypeVar, cast

from .._logger import logger
from .sources import stamp

__all__ = ["accelerated"]

_Definition = TypeVar("_Definition")


def _load() -> Any:
    if os.environ.get("ASYNCSERVER_PURE", "0") not in {"", "0"}:
        return None
    try:
        compiled = importlib.import_module("._compiled", __package__)
    except ModuleNotFoundError:  # it was not built
        return None
    except ImportError as exc:  # as in a subinterpreter
        logger.warning("the compiled extension cannot be used here, Python does its work: %s", exc)
        return None
    if stamp() not in {compiled.stamp, ""}:
        logger.warning(
            "the compiled extension is older or newer than its sources, Python does its work: "
            "build it again, python hatch_build.py"
        )
        return None
    copyreg.pickle(compiled.Method, operator.attrgetter("__qualname__"))  # as functions are: by name
    return compiled


_compiled = _load()

# What of a function its Method has, too; `inspect` wants the last three of a function.
_ATTRIBUTES = (*functools.WRAPPER_ASSIGNMENTS, "__annotations__", "__code__", "__defaults__", "__kwdefaults__")

#: Whether the hot paths are compiled here: False without the extension, or with ASYNCSERVER_PURE=1.
accelerated: bool = _compiled is not None


def accelerate(definition: _Definition) -> _Definition:
    """Take what is compiled in the place of a function or a class, if it can be had.

    Raises:
        LookupError: the extension has nothing for it.
    """
    if _compiled is None:
        return definition
    made: Any
    if isinstance(definition, type):
        made = vars(_compiled)[definition.__name__]
    else:
        made = _compiled.Method(definition)
        functools.update_wrapper(made, cast("Any", definition), _ATTRIBUTES, ())
    return cast("_Definition", made)
