"""OpenSSL's queue of errors, one for each thread, not for each connection.

A system error, such as the reset of one connection, is raised as OSError and stays in the queue.
From OpenSSL 3.4 on, every later operation of the thread that only wants to wait is then reported
as that error, on whatever TLS connection it was called: python/cpython gh-127257, gh-148594;
SSL_get_error(3ssl), "the error queue must be empty before".
"""

from __future__ import annotations

import contextlib
import functools
import ssl


def clear_errors() -> None:
    """Empty the queue of this thread, where a system error on a TLS socket has just been met.

    Python offers no call for it. OpenSSL empties the queue itself as a handshake begins, and one
    without a peer ends right there. About 10 us, for each connection that breaks.
    """
    # Two: one for both directions is never freed, as Python counts it twice and OpenSSL once.
    nothing, nowhere = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        _context().wrap_bio(nothing, nowhere, server_side=True).do_handshake()


@functools.cache
def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
