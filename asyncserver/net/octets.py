"""What handlers send and look for: bytes. An error for anything else names the call."""

from __future__ import annotations

import reprlib
from collections.abc import Coroutine


def octets(given: object, call: str) -> memoryview | bytes:
    """View a bytes-like object as bytes, whatever the format of its items is; else TypeError."""
    if isinstance(given, bytes):
        return given
    try:
        view = memoryview(given)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        raise no_octets(given, call) from None
    return view.cast("B") if view.nbytes else b""


def no_octets(given: object, call: str) -> TypeError:
    """Make the error for anything but bytes."""
    if isinstance(given, Coroutine):
        name = getattr(given, "__name__", "a coroutine function")
        return TypeError(f"{call}() takes bytes; got what {name}() returns: write `await` before that call")
    advice = ": encode it, .encode()" if isinstance(given, str) else ""
    return TypeError(f"{call}() takes bytes; got {reprlib.repr(given)}{advice}")


def check_number(given: object, call: str) -> None:
    """Raise TypeError, unless it can be a number of bytes."""
    if not hasattr(given, "__index__"):
        raise TypeError(f"{call}() takes a number of bytes, a whole one; got {reprlib.repr(given)}") from None


def check_delimiter(delimiter: object) -> None:
    """Raise TypeError or ValueError, unless it is at least one byte."""
    if not isinstance(delimiter, (bytes, bytearray, memoryview)):
        raise TypeError(f"receive_until() looks for bytes, such as b'\\n'; got {delimiter!r}")
    if not delimiter:
        raise ValueError("receive_until() needs a delimiter of at least one byte")
