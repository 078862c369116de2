"""What handlers send and look for: bytes. An error for anything else names the call."""

from __future__ import annotations

import reprlib

_BYTES = (bytes, bytearray, memoryview)


def octets(given: object, call: str) -> memoryview | bytes:
    """View a bytes-like object as bytes, whatever the format of its items is.

    Args:
        given: what is to be sent.
        call: the method's name, for an error.

    Raises:
        TypeError: it is not bytes-like.
    """
    if isinstance(given, bytes):
        return given
    try:
        view = memoryview(given)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        advice = ": encode it, .encode()" if isinstance(given, str) else ""
        raise TypeError(f"{call}() takes bytes; got {reprlib.repr(given)}{advice}") from None
    return view.cast("B") if view.nbytes else b""


def check_delimiter(delimiter: object) -> None:
    """Raise TypeError or ValueError, unless it is at least one byte."""
    if not isinstance(delimiter, _BYTES):
        raise TypeError(f"receive_until() looks for bytes, such as b'\\n'; got {delimiter!r}")
    if not delimiter:
        raise ValueError("receive_until() needs a delimiter of at least one byte")
