"""Datagram, what a handler gets, and Endpoint, the socket that receives and sends them.

The loop says readable once for many datagrams; the endpoint takes up to a batch of them each time, hands each to the
server at once, and sends answers straight into the socket. Nothing is queued in between: what is not read waits in
the kernel's buffer, whose drops the kernel counts (`SO_MEMINFO`), and whoever sends waits when the socket is full.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, TypeAlias

import anyio

from ._logger import logger as _logger
from .addresses import url_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .addresses import Address
    from .binding import BoundSocket

__all__ = ["Datagram"]

# Datagrams taken in one wake-up: long enough to save trips through the loop, and with quick handlers a fifth of a
# millisecond for everybody else.
_BATCH = 32
# Asked for as SO_RCVBUF: about 1,300 small datagrams. Of a burst of 1,000 Linux's default keeps a quarter.
_RECEIVE_BUFFER = 1 << 20
# Seconds between attempts to send to a Unix peer whose queue is full, or when there is no room below the socket
# (ENOBUFS): poll(2) looks at our own socket and says writable. The first, and the longest.
_RETRY = (0.001, 0.05)
# Seconds until such a peer is given up: it does not read, and its answers would keep all handlers there may be.
_UNIX_PATIENCE = 5.0

# linux/if_... in asm-generic/socket.h and linux/in.h; Python has no names for them before 3.14.
_SO_MEMINFO = 55
_IP_PKTINFO = 8
_MEMINFO = struct.Struct("9I")
_MEMINFO_QUEUED, _MEMINFO_DROPS = 0, 8
# The least that a queued datagram counts for in SO_MEMINFO: the kernel's own structures are larger.
_LEAST_QUEUED = 512
# Datagrams that a Unix socket may hold when nothing tells: far above net.unix.max_dgram_qlen.
_UNIX_QUEUE = 4096

Buffer: TypeAlias = "bytes | bytearray | memoryview"
_Control: TypeAlias = "list[tuple[int, int, bytes]]"


class Datagram:
    """One datagram, as its handler sees it.

    Attributes:
        data: the payload.
        address: the sender's address; of a Unix socket without a name "" or None: it cannot be answered.
        truncated: whether the datagram was longer than the server's `max_datagram_size`; `data` is its beginning.
    """

    __slots__ = ("address", "control", "data", "endpoint", "replied", "truncated", "unsent")

    def __init__(
        self, endpoint: Endpoint, data: bytes, address: Address, control: _Control | None, truncated: bool
    ) -> None:
        self.endpoint: Endpoint = endpoint
        self.data: bytes = data
        self.address: Address = address
        self.truncated: bool = truncated
        self.replied: bool = False
        self.control: _Control | None = control
        self.unsent: bytes | None = None

    def __repr__(self) -> str:
        """Tell the sender and the size."""
        return f"<Datagram from {self.address!r}, {len(self.data)} bytes{', truncated' if self.truncated else ''}>"

    @property
    def peer_address(self) -> Address:
        """The sender's address, by the name it has on a Stream."""
        return self.address

    @property
    def local_address(self) -> Address:
        """The address that the datagram was sent to, and that an answer comes from."""
        return self.endpoint.local_address(self.control)

    async def reply(self, data: Buffer) -> None:
        """Send a datagram back, from the address that this one came to. As often as you like.

        Waits while the socket is full. Cancelled, it has not sent.

        Args:
            data: any bytes-like object.

        Raises:
            OSError: the system refuses; with errno EMSGSIZE the data is too large for one datagram.
            anyio.BrokenResourceError: the sender has no address, or (a Unix socket) is gone or has read nothing for
                5 seconds.
        """
        self.endpoint.catch_up()
        await self.endpoint.send(data, self.address, self.control)
        self.replied = True

    # -- for the server

    def _begin_drain(self) -> None:
        """Nothing to tell: a datagram is one message."""

    def abort(self) -> None:
        """Nothing to take away: there is no connection."""


class Endpoint:
    """A bound datagram socket.

    Args:
        loop: the loop that watches it.
        bound: the socket. The endpoint closes it.
        ready: called with the endpoint when it is readable; takes datagrams with `take()`, and may call `pause()`.
        drained: called when nothing is left to read after `drain()`.
        max_datagram_size: bytes of a datagram that are kept.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bound: BoundSocket,
        ready: Callable[[Endpoint], object],
        drained: Callable[[], object],
        max_datagram_size: int,
    ) -> None:
        self._loop = loop
        self._bound = bound
        self._ready = ready
        self._drained = drained
        self.sock: socket.socket = bound.sock
        sock = self.sock
        self._fd = sock.fileno()
        self._size = max_datagram_size
        self._buffer = memoryview(bytearray(max_datagram_size))
        self._unix = sock.family == socket.AF_UNIX
        self._watching = False
        self._closed = False
        self.left: int = 0  # to take in this batch
        self._room: asyncio.Future[None] | None = None
        self._full_below = False  # no room, but not in the socket: poll(2) would say writable
        self._owed: int | None = None  # while draining: how many datagrams to read at most
        # Sends what the handlers before have returned and the server still holds; what comes later goes out later.
        self.catch_up: Callable[[], object] = bool
        self.received: int = 0
        self.sent: int = 0
        # The kernel has counted since the socket was bound, which may have been in another process.
        self._left = False  # to another process, which counts what the kernel drops from then on
        self._dropped = -self._meminfo()[_MEMINFO_DROPS]
        # On one address the kernel answers from that address by itself. On every interface it would choose one by the
        # route back, so there each datagram tells where it was sent to: recvmsg instead of recvfrom, about 1 us more.
        self._receive = self._receive_any if self._wildcard() else self._receive_one
        self._ask_for_room()

    # -- receiving

    def resume(self) -> None:
        """Receive datagrams."""
        if not self._watching and self._owed != 0:
            self._loop.add_reader(self._fd, self._on_readable)
            self._watching = True
            if self._owed is not None:  # what is owed may be nothing at all, which no event would tell
                self._loop.call_soon(self._on_readable)

    def pause(self) -> None:
        """Leave datagrams in the kernel's buffer."""
        if self._watching:
            self._loop.remove_reader(self._fd)
            self._watching = False

    def _on_readable(self) -> None:
        if self._watching:
            self.left = _BATCH
            self._ready(self)
            if self._owed == 0:
                self.pause()
                self._drained()
            elif self._owed is not None:  # if that was the last one, no event would tell
                self._loop.call_soon(self._on_readable)

    def take(self) -> Datagram | None:
        """Receive a datagram; None if there is none, or the batch is over, or the endpoint pauses."""
        while self.left and self._watching and self._owed != 0:
            self.left -= 1
            try:
                datagram = self._receive()
            except BlockingIOError:
                self.left = 0
                if self._owed is not None:
                    self._owed = 0
            except OSError as exc:  # an ICMP error for something we sent; the next call goes on
                _logger.debug("receiving on %s: %s", self._bound.address, exc, extra={"server": url_of(self._bound)})
            else:
                self.received += 1
                if self._owed is not None:
                    self._owed -= 1
                return datagram
        return None

    def _receive_one(self) -> Datagram:
        # With MSG_TRUNC the size is the datagram's own, recv(2). `recvfrom` would then return memory that was never
        # written, so it has to be the buffer of ours.
        size, address = self.sock.recvfrom_into(self._buffer, 0, socket.MSG_TRUNC)
        return Datagram(self, self._buffer[:size].tobytes(), address, None, size > self._size)

    def _receive_any(self) -> Datagram:
        size, control, _, address = self.sock.recvmsg_into([self._buffer], 64, socket.MSG_TRUNC)
        data = self._buffer[:size].tobytes()
        return Datagram(self, data, address, _answering(control), size > self._size)

    def _wildcard(self) -> bool:
        sock = self.sock
        if sock.family == socket.AF_INET and sock.getsockname()[0] == "0.0.0.0":
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            return True
        if sock.family == socket.AF_INET6 and sock.getsockname()[0] == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            return True
        return False

    def local_address(self, control: _Control | None) -> Address:
        """The address that a datagram with this control data was sent to."""
        own = self._bound.address
        if not control:
            return own
        level, _, data = control[0]
        if level == socket.IPPROTO_IP:
            return socket.inet_ntop(socket.AF_INET, data[4:8]), int(own[1])
        return socket.inet_ntop(socket.AF_INET6, data[:16]), int(own[1]), 0, 0

    def _ask_for_room(self) -> None:
        if self._unix:
            return  # what is queued there counts against the sender
        if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 2 * _RECEIVE_BUFFER:
            return  # somebody else's, and larger
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        granted = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # socket(7): the kernel doubles it
        if granted < _RECEIVE_BUFFER:
            _logger.info(
                "%s: the kernel grants a receive buffer of %d bytes instead of %d, so long bursts will be dropped; "
                "raise net.core.rmem_max",
                self._bound.address,
                granted,
                _RECEIVE_BUFFER,
                extra={"server": url_of(self._bound)},
            )

    @property
    def dropped(self) -> int:
        """Datagrams that reached this host for this socket and were given to nobody."""
        return self._dropped + (0 if self._left else self._meminfo()[_MEMINFO_DROPS])

    def _meminfo(self) -> tuple[int, ...]:
        return (0,) * 9 if self._closed else _meminfo(self.sock)

    # -- sending

    def try_send(self, data: Buffer, address: Address, control: _Control | None) -> bool:
        """Send now; false if there is no room. Raises as `Datagram.reply()`."""
        try:
            if control is None:
                self.sock.sendto(data, address)
            else:
                self.sock.sendmsg([data], control, 0, address)
        except BlockingIOError:
            return False
        except TypeError:
            if address:
                raise  # the handler's: not bytes
            nowhere = OSError(errno.EDESTADDRREQ, os.strerror(errno.EDESTADDRREQ))
            raise anyio.BrokenResourceError("the sender has no address: it cannot be answered") from nowhere
        except OSError as exc:
            if isinstance(address, tuple) and not address[1]:  # anybody can forge port 0: no error of the handler's
                raise anyio.BrokenResourceError(f"the sender {address!r} has no port: it cannot be answered") from exc
            if exc.errno == errno.ENOBUFS:  # the interface's queue is full: udp(7)
                self._full_below = True
                return False
            if self._unix and (not address or exc.errno in {errno.ECONNREFUSED, errno.ENOENT}):
                raise anyio.BrokenResourceError(f"the sender {address!r} cannot be answered: {exc}") from exc
            raise
        self.sent += 1
        return True

    async def send(self, data: Buffer, address: Address, control: _Control | None) -> None:
        """Send as soon as there is room. Raises as `Datagram.reply()`."""
        delay, longest = _RETRY
        give_up = self._loop.time() + _UNIX_PATIENCE
        while not self.try_send(data, address, control):
            if self._unix and self._loop.time() >= give_up:
                full = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                raise anyio.BrokenResourceError(f"the sender {address!r} does not read its answers") from full
            if self._unix or self._full_below:
                self._full_below = False
                await asyncio.sleep(delay)
                delay = min(2 * delay, longest)
            else:
                await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        if self._room is None:
            self._room = self._loop.create_future()
            self._loop.add_writer(self._fd, self._on_writable)
        await asyncio.wait([self._room])  # one future for all who wait: cancelling one must not cancel it

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._fd)
        room, self._room = self._room, None
        if room is not None:
            room.set_result(None)

    # -- ending

    @property
    def draining(self) -> bool:
        """Whether datagrams are still to be read before the end."""
        return bool(self._owed)

    def drain(self) -> None:
        """Read what the kernel holds now, then no more; sending goes on.

        If another process goes on with the socket, it reads that.
        """
        self.pause()
        if self._bound.handed_over:
            self._owed = 0
            self._dropped, self._left = self.dropped, True
            return
        queued = self._meminfo()[_MEMINFO_QUEUED]
        self._owed = _UNIX_QUEUE if self._unix else queued // _LEAST_QUEUED + 1

    def close(self) -> None:
        """Close the socket; what it still held is counted as dropped, unless another process may read it."""
        if self._closed:
            return
        self.pause()
        if self._room is not None:
            self._on_writable()
        for _ in range(0 if self._bound.shared else _RECEIVE_BUFFER // _LEAST_QUEUED):
            try:
                self.sock.recv(1)
            except OSError:
                break
            self._dropped += 1
        self._dropped = self.dropped
        self._closed = True
        self._bound.close()


def kernel_drops(sock: socket.socket) -> int:
    """Datagrams that the kernel has dropped since it made this socket, for want of room."""
    return _meminfo(sock)[_MEMINFO_DROPS]


def _meminfo(sock: socket.socket) -> tuple[int, ...]:
    if sock.family == socket.AF_UNIX:  # has no such thing
        return (0,) * 9
    return _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))


def _answering(control: _Control) -> _Control | None:
    """The control data that sends an answer from where the datagram was sent to: ip(7), RFC 3542 6.2."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            # ipi_spec_dst is our own address also when the datagram was a broadcast. Interface 0: route as usual.
            return [(level, kind, bytes(4) + data[4:8] + bytes(4))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and data[0] != 0xFF:  # not a multicast group
            scoped = data[:2] == b"\xfe\x80"  # a link-local address means something on its own link only
            return [(level, kind, data[:16] + (data[16:20] if scoped else bytes(4)))]
    return None
