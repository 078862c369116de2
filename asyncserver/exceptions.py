"""The errors of our own.

    Exception
     +-- OSError
          +-- BindError          an address could not be bound or listened on
          +-- TimeoutError
               +-- IdleTimeout   nothing was received or sent for `idle_timeout` seconds

Everything else that a stream raises is anyio's: EndOfStream, IncompleteRead, DelimiterNotFound (the
peer's bytes ended, or are not what was asked for), BrokenResourceError (the connection broke),
ClosedResourceError (we closed it), BusyResourceError (two tasks used one direction at once). Wrong
arguments are TypeError and ValueError.
"""

from __future__ import annotations

__all__ = ["BindError", "IdleTimeout"]


class BindError(OSError):
    """An address could not be bound: which, why, and what to do.

    `errno` is the system's, `__cause__` its error.

    Example::

        try:
            server = await asyncserver.serve(handler, "127.0.0.1", 80).start()
        except asyncserver.BindError as error:
            print(error)  # the address, the reason, and what to do
    """


class IdleTimeout(TimeoutError):  # noqa: N818 - named like TimeoutError, whose kind it is
    """The connection was silent in both directions for `idle_timeout` seconds.

    Example::

        try:
            data = await stream.receive()
        except asyncserver.IdleTimeout:
            await stream.send(b"are you there?")  # the stream can still be used
    """


class InjectionError(RuntimeError):
    """A peer sent plain bytes behind its request to start TLS. For users a RuntimeError."""


class HeaderError(ValueError):
    """The bytes are not a valid header. The connection cannot be used."""


class Refused(Exception):  # noqa: N818 - not an error, but how a connection ended
    """A connection was closed before its handler saw it. Never leaves the package."""
