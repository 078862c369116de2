"""ServedConnection: a connection in a server's hands: counted, told to come to an end, timed out when idle.

between two messages   our last act was to send: the drain may end it here
owed                   bytes that had reached this host when the drain began: answered before it ends
first words            of who has just connected and said nothing yet: they are on their way, and waited for a moment
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

from ._connection import Connection, at_end, refuse_closed, refuse_unheard
from ._kernel import first_words_due
from .exceptions import IdleTimeout

if TYPE_CHECKING:
    import socket

    from ._poller import Poller
    from ._types import Address
    from .proxy_protocol import ProxyHeader


class ServedConnection(Connection):
    """What a Stream has because a server runs it.

    Attributes:
        bytes_received: payload bytes received so far.
        bytes_sent: payload bytes sent so far.
        proxy_header: what the proxy in front has said, if it has.
    """

    __slots__ = (
        "_answered",
        "_begun",
        "_buffer",
        "_closing",
        "_idle_read",
        "_idle_write",
        "_owed",
        "bytes_received",
        "bytes_sent",
        "proxy_header",
    )

    def __init__(self, poller: Poller, sock: socket.socket, peer_address: Address, closing: asyncio.Event) -> None:
        Connection.__init__(self, poller, sock, peer_address)
        self._closing = closing
        self._buffer: bytearray | None = None  # received from the kernel, and not yet by the handler
        self.bytes_received: int = 0
        self.bytes_sent: int = 0
        self._answered = 0  # bytes_received at our last send: equal to it, we are between two messages,
        # unless some of the next was there already, and was taken from the buffer: (bytes_sent then, where it begins).
        self._begun = (0, 0)
        # Bytes both ways when the idle timeout struck, until the one that waits, or the next that would, has told.
        self._idle_read = self._idle_write = -1
        self._owed = 0  # while draining
        self.proxy_header: ProxyHeader | None = None

    @property
    def closing(self) -> asyncio.Event:
        """Set as soon as the server has begun to drain."""
        return self._closing

    @property
    def local_address(self) -> Address:
        """The address on this side.

        Raises:
            anyio.ClosedResourceError: the stream has been closed.
        """
        if self._fd < 0:
            refuse_closed(None)
        address: Address = self._sock.getsockname()
        return address

    async def _half_close_notify(self, sock: ssl.SSLSocket) -> None:
        """See Connection. What OpenSSL has decrypted already is kept here: it would find that, and give up as well."""
        while pending := sock.pending():
            if self._reading.busy:  # at a pause, with nothing taken: it comes first
                await asyncio.sleep(0)
                continue
            data = sock.read(pending)
            self.bytes_received += len(data)
            self._buffer = (self._buffer or bytearray()) + data
        await super()._half_close_notify(sock)

    # -- for the server

    async def _hear(self) -> None:
        if self._closing.is_set():
            self._end_if_unheard_soon()
        await super()._hear()

    async def _take_proxy_header(self) -> ProxyHeader:
        header = await super()._take_proxy_header()
        if self._closing.is_set():
            self._await_first_words()
        return header

    def _begin_drain(self) -> None:
        """End at the next message boundary, but answer what had reached this host by now."""
        if self._recv is refuse_unheard:
            self._end_if_unheard_soon()
        elif self._recv is self._read and self._fd >= 0:  # otherwise at its end
            self._await_first_words()

    def _await_first_words(self, waited: float = 0.0) -> None:
        """Owe what is here; if nothing has ever come, what may be on its way, for as long as that can take."""
        if self._fd < 0 or (waited and (self.bytes_received or self.bytes_sent or self._recv != self._receive_owed)):
            return  # they have come, or it has ended, or is in its handshake
        unread = self._unread()
        silent = not (unread or self.bytes_received or self.bytes_sent)
        if silent and (due := first_words_due(self._sock, waited)):
            self._owe(1)
            self._poller.loop.call_later(due, self._await_first_words, waited + due)
        else:
            self._owe(unread)

    def _close_if_quiet(self) -> bool:
        """Close now, if that cannot cost the peer anything: no TLS to end, nothing unread."""
        if self._sock.fileno() != self._fd >= 0:
            self._release()  # closed behind our back, by way of the raw socket
        if self._fd >= 0:
            # At its end nothing can be unread, unless it was the drain that said so.
            quiet = self._recv is at_end and not self._closing.is_set()
            if isinstance(self._sock, ssl.SSLSocket) or not (quiet or not self._unread()):
                return False
            self._close()
        return True

    def _owe(self, nbytes: int) -> None:
        self._owed = self.bytes_received + nbytes
        self._recv = self._receive_owed
        self._unwatch()
        self._reading.wake_soon()

    def _begin_message(self) -> None:
        """Something is about to be taken from the buffer: if it is the first since our last send, a message begins."""
        if self._begun[0] != self.bytes_sent:
            self._begun = self.bytes_sent, self.bytes_received - len(self._buffer or b"")

    def _receive_owed(self, max_bytes: int) -> bytes:
        """Read while the server drains: to a message boundary, then report the end."""
        self._begin_message()
        # A client that sends without end always has the next message half here.
        if self._answered == self.bytes_received and self._begun[1] >= self._owed:
            return b""
        data = self._read(max_bytes)
        # TLS: its bytes are more than their payload, so what the kernel holds now is the better estimate.
        self._owed = min(self._owed, self.bytes_received + len(data) + self._unread())
        self._unwatch()  # so that the next receive comes by here before it waits
        return data

    def _check_idle_read(self) -> None:
        mark, self._idle_read = self._idle_read, -1
        self._check_idle(mark)

    def _check_idle_write(self) -> None:
        mark, self._idle_write = self._idle_write, -1
        self._check_idle(mark)

    def _check_idle(self, mark: int) -> None:
        if mark == self.bytes_received + self.bytes_sent:
            raise IdleTimeout(f"nothing received from or sent to {self.peer_address!r} for the idle timeout")

    def _expire(self) -> None:
        """Make the pending or the next wait raise IdleTimeout, unless something moves before."""
        self._idle_read = self._idle_write = self.bytes_received + self.bytes_sent
        self._unwatch()
        self._wake_all()
