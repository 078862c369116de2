"""OpenSSL's queue of errors, which belongs to the thread and so outlives a request.

A system error on one TLS socket stays in it, and from OpenSSL 3.4 on whatever else the thread does
with TLS may be told that error: see asyncserver/tls/openssl.py, which these server classes do not
import, as it would bring all of asyncserver.
"""

import _ssl
import contextlib
import functools
import ssl
from collections.abc import Callable


def clear_errors() -> None:
    """Empty the queue of this thread: a handshake without a peer does, as it begins."""
    nothing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        _context().wrap_bio(nothing, nothing, server_side=True).do_handshake()


@functools.cache
def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # making one takes ten times as long as its use


def quick_clearing() -> Callable[[], object]:
    """Find a way for the plain path, where it is done after each request, in 0.2 us.

    It is OpenSSL's own function, in the library that Python's `_ssl` is linked with. Where that cannot
    be reached it is `clear_errors`: OpenSSL is linked in statically, there is no ctypes, no descriptor is
    left, or memory may not be made executable (an older libffi's MemoryError). ctypes keeps one
    descriptor of the process, that of a newer libffi.
    """
    try:
        import ctypes  # noqa: PLC0415 - 5 ms, for those who have threads

        function = ctypes.PyDLL(_ssl.__file__).ERR_clear_error  # ERR_clear_error(3ssl)
    except (ImportError, AttributeError, OSError, MemoryError):
        return clear_errors
    function.restype = None
    return function
