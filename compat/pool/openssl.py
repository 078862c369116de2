"""OpenSSL's queue of errors, one for each thread, which outlives a request.

A system error on one TLS socket stays in it, and from OpenSSL 3.4 on other TLS sockets of
the thread may report it: see asyncserver/tls/openssl.py, which is not imported here, as
it would bring all of asyncserver.
"""

import _ssl
import contextlib
import functools
import ssl
from collections.abc import Callable


def clear_errors() -> None:
    """Empty the queue of this thread: a handshake does that as it begins, also without a peer."""
    nothing, nowhere = ssl.MemoryBIO(), ssl.MemoryBIO()  # one for both would never be freed
    with contextlib.suppress(ssl.SSLWantReadError):
        _context().wrap_bio(nothing, nowhere, server_side=True).do_handshake()


@functools.cache
def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # making one takes ten times as long as its use


def quick_clearing() -> Callable[[], object]:
    """Return a quick way, 0.2 us, since it is done after each request.

    It is OpenSSL's own function, in the library that Python's `_ssl` is linked with. Where that
    cannot be called it is `clear_errors`: OpenSSL is linked in statically, there is no ctypes, no
    descriptor is left, or memory may not be made executable (MemoryError of an older libffi).
    ctypes keeps one descriptor of the process open, for a newer libffi.
    """
    try:
        import ctypes  # noqa: PLC0415 - 5 ms, only for programs with threads

        function = ctypes.PyDLL(_ssl.__file__).ERR_clear_error  # ERR_clear_error(3ssl)
    except (ImportError, AttributeError, OSError, MemoryError):
        return clear_errors
    function.restype = None
    return function
