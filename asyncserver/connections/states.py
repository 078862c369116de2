"""States of a stream, each of them a function.

A stream's attributes `_recv` and `_send` are the functions that its next receive or send calls: the
socket's own methods while all is well, else one of these. So the hot path needs no checks, and none
can be forgotten: to close, end or break a stream is to set another function. To read the state,
compare: `self._send is refuse_busy`.

More states are methods of the connection: `_receive_owed` (it drains), `_receive_rest` and
`_refuse_broken` (it broke), `_read_tls` and `_send_tls`.
"""

from __future__ import annotations

from typing import NoReturn

import anyio

from ..net.waiter import busy


def refuse_closed(_: object) -> NoReturn:
    """State: closed by us, in both directions."""
    raise anyio.ClosedResourceError("this stream has been closed")


def refuse_undelivered(_: object) -> NoReturn:
    """State: closed by us, before the peer had taken all that was sent."""
    refuse_closed(None)


def refuse_after_eof(_: object) -> NoReturn:
    """State: our sending side was ended by `send_eof()`."""
    raise anyio.ClosedResourceError("send_eof() has been called on this stream: nothing more can be sent")


def refuse_busy(_: object) -> NoReturn:
    """State: a send is under way."""
    raise busy("sending to")


def behind_posts(_: object) -> NoReturn:
    """State: what was posted before has to be sent first."""
    raise BlockingIOError


def refuse_torn(_: object) -> NoReturn:
    """State: TLS stopped in the middle of a record, or its handshake is under way or has failed."""
    raise anyio.BrokenResourceError("TLS was interrupted in the middle of a record: this stream can only be closed")


def refuse_unadmitted(_: object) -> NoReturn:
    """State: not let in yet: PROXY header, limit of its host or TLS handshake are to come."""
    raise anyio.ClosedResourceError("this connection has not been let in: nothing can be sent on it yet")


def refuse_before_first_byte(_: object) -> NoReturn:
    """State: the first byte of the peer's TLS handshake or PROXY header has not come yet."""
    refuse_torn(None)


def at_end(_: int) -> bytes:
    """State: the peer has ended its side."""
    return b""


#: The states in which nothing can be sent, apart from `_refuse_broken`.
NOT_SENDING = frozenset((refuse_busy, refuse_closed, refuse_torn, refuse_unadmitted, refuse_undelivered))
