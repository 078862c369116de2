"""CallbackProtocol: between a connection, or its TLS, and a `(reader, writer)` callback."""

from __future__ import annotations

import asyncio
from typing import Any


class CallbackProtocol(asyncio.StreamReaderProtocol):
    """The protocol between a connection, or its TLS, and a `(reader, writer)` callback."""

    def unconsumed(self) -> int:
        """Count the bytes that the callback has yet to take from its reader."""
        reader: Any = self._stream_reader  # type: ignore[attr-defined] # there is no public way
        return 0 if reader is None else len(reader._buffer)

    def is_waited_for(self) -> bool:
        """Whether its callback waits for the connection, and so learns when that breaks."""
        reader: Any = self._stream_reader  # type: ignore[attr-defined]
        waiting = reader is not None and reader._waiter is not None
        return waiting or bool(self._paused)  # type: ignore[attr-defined] # drain() waits

    def waits_for_tls(self, transport: object) -> bool:
        """Whether it has closed TLS of its own over `transport`, which waits for the peer's end."""
        own: asyncio.Transport | None = self._transport  # type: ignore[attr-defined]
        return own is not None and own is not transport and own.is_closing()

    def close(self) -> None:
        """Close the transport that the callback writes to: the connection's, or that of its TLS."""
        transport: asyncio.Transport | None = self._transport  # type: ignore[attr-defined]
        if transport is not None:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Bring the reader to its end."""
        super().connection_lost(exc)
        # The reader has got the error. Here it is only looked at, so that asyncio does not log it.
        closed: asyncio.Future[None] = self._closed  # type: ignore[attr-defined]
        if not closed.cancelled():
            closed.exception()
