"""States of a stream, each of them a function.

What a stream's next receive or send does is one attribute, `_recv` or `_send`: the socket's own method
while all is well, else one of these. The hot path calls it and asks nothing; to close, to end or to
break a stream is to put another function there, which no check can forget. So the state is told by
asking which function stands there, `self._send is refuse_busy`.

Not in here, since each connection has its own: `_receive_owed` (it drains), `_receive_rest` and
`_refuse_broken` (it broke), `_read_tls` and `_send_tls`.
"""

from __future__ import annotations

from typing import NoReturn

import anyio


def refuse_closed(_: object) -> NoReturn:
    """State: closed by us, in both directions."""
    raise anyio.ClosedResourceError("this stream has been closed")


def refuse_after_eof(_: object) -> NoReturn:
    """State: our sending side has been ended by `send_eof()`."""
    raise anyio.ClosedResourceError("send_eof() has been called on this stream: nothing more can be sent")


def refuse_busy(_: object) -> NoReturn:
    """State: a send is under way."""
    raise anyio.BusyResourceError("sending to")


def refuse_torn(_: object) -> NoReturn:
    """State: TLS stopped in the middle of a record, or its handshake is under way or has failed."""
    raise anyio.BrokenResourceError("TLS was interrupted in the middle of a record: this stream can only be closed")


def refuse_unheard(_: object) -> NoReturn:
    """State: the peer has to speak first, with its handshake or its PROXY header, and has not yet."""
    refuse_torn(None)


def at_end(_: int) -> bytes:
    """State: the peer has ended its side."""
    return b""
