"""Datagram, what a handler gets, and Endpoint, the socket that receives and sends them.

Nothing is queued here: what is not read waits in the kernel's buffer, whose drops the kernel
counts; a handler that sends waits while the socket is full. BatchReader decides when to read.
"""

from __future__ import annotations

import asyncio
import errno
import os
import reprlib
import socket
import struct
from typing import TYPE_CHECKING, TypeAlias

import anyio

from .._logger import logger as _logger
from ..kernel.features import tell_missing, without
from ..kernel.packet_info import CONTROL_SIZE, ask_for_destination, reply_control, sent_to_many, source_address
from ..net.addresses import unmapped, url_of
from ..speedups.extension import accelerate

if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap

    from ..kernel.packet_info import Control
    from ..listening.binding import BoundSocket
    from ..net.addresses import Address
    from ..proxy.proxy_protocol import ProxyHeader

__all__ = ["Datagram"]

# For SO_RCVBUF: about 1,300 small datagrams. Linux's default keeps a quarter of a burst of 1,000.
_RECEIVE_BUFFER = 1 << 20
# Bytes that a datagram takes at most, by IPv4 and by IPv6: a length of 16 bits, less the headers
# that it counts (RFC 791, RFC 768; RFC 8200).
_MOST = (65507, 65527)
# Seconds between attempts, the first and the longest, to send to a Unix peer whose queue
# is full, or while there is no room below the socket (ENOBUFS): poll(2) looks at our own
# socket, and says writable.
_RETRY = (0.001, 0.05)
# Seconds until such a peer is given up: it does not read, and would keep all handlers waiting.
_UNIX_PATIENCE = 5.0

_SO_MEMINFO = 55  # asm-generic/socket.h; Python has no name for it
# It returns the SK_MEMINFO_* numbers of linux/sock_diag.h; here bytes queued, datagrams dropped.
_MEMINFO = struct.Struct("9I")
_QUEUED, _DROPS = 0, 8
# The least that a queued datagram adds to those bytes: the kernel's structures are larger.
_LEAST_QUEUED = 512
# Datagrams a Unix socket may hold, which has no such numbers: far above net.unix.max_dgram_qlen.
_UNIX_QUEUE = 4096

# A plain number: socket's own is looked up twice, and is an enum's member.
_TRUNCATED = int(socket.MSG_TRUNC)

Buffer: TypeAlias = "bytes | bytearray | memoryview"
Writable: TypeAlias = "bytearray | memoryview | mmap"
#: The control data for an answer, as Python and as the kernel wants them; or NotForUs.
Judge: TypeAlias = "Callable[[bytes], tuple[Control | type[NotForUs] | None, bytes]]"


class NotForUs(Exception):  # noqa: N818 - no error
    """A datagram that no handler here gets: a copy of another worker's, or a refused one."""


@accelerate
class DatagramFields:
    """What a datagram consists of. Compiled, `address` is made when somebody asks for it."""

    __slots__ = ("address", "answer", "control", "data", "endpoint", "packed", "replied", "truncated", "unsent")

    if TYPE_CHECKING:  # compiled only, for RingRunner: speedups/datagram.c

        @classmethod
        def _receive_many(
            cls, endpoint: Endpoint | None, fd: int, wanted: int, memory: Writable, judge: Judge | None
        ) -> list[Datagram]:
            """Receive what is there: one datagram, or up to `wanted`. Raises OSError.

            Each passes through a 32nd of the memory. `judge` makes `control` and `packed` of the
            kernel's control data; for data like those before it is not asked again.
            """

        @classmethod
        def _send_many(cls, fd: int, datagrams: list[Datagram]) -> int:
            """Send answers, in order, up to one that Python has to send; returns how many."""


class Datagram(DatagramFields):
    """One datagram, as its handler sees it.

    Example::

        async def handler(datagram):
            await datagram.reply(b"%d bytes" % len(datagram.data))
            print("from", datagram.address, "to", datagram.local_address)

    Attributes:
        data: the payload.
        address: the sender's address; of a Unix socket without a name "" or None: it
            cannot be answered.
        truncated: whether the datagram was longer than the server's `max_datagram_size`;
            `data` is its beginning.
        proxy_header: what the proxy in front has said, with `proxy_protocol=True`; then `address`
            is the client's, and answers go to the proxy.
    """

    proxy_header: ProxyHeader | None = None  # of those behind a proxy: an attribute of their own

    __slots__ = ()

    def __init__(
        self, endpoint: Endpoint, data: bytes, address: Address, control: Control | None, truncated: bool
    ) -> None:
        self.endpoint: Endpoint = endpoint
        self.data: bytes = data
        self.address: Address = address
        self.truncated: bool = truncated
        self.replied: bool = False
        self.control: Control | None = control
        self.unsent: bytes | None = None
        self.answer: object  # what the handler has returned, when it has
        self.packed: bytes  # `control` as the kernel wants it, for an answer among many

    def __repr__(self) -> str:
        """Show the sender and the size."""
        return f"<Datagram from {self.address!r}, {len(self.data)} bytes{', truncated' if self.truncated else ''}>"

    @property
    def peer_address(self) -> Address:
        """The sender's address, by the name it has on a Stream."""
        return self.address

    @property
    def sender(self) -> Address:
        """The address that it came from, behind a proxy the proxy's, and else `address`."""
        return self.address

    @property
    def local_address(self) -> Address:
        """The address that the datagram was sent to, and that an answer comes from.

        For a broadcast or multicast it is the address of ours that the answer comes from.
        """
        return self.endpoint.local_address(self.control, self.address)

    async def reply(self, data: Buffer) -> None:
        """Send a datagram back, from the address that this one came to. As often as you like.

        Also later, from a timer or a task that has kept the datagram, until the server has closed:
        what is sent after its handler has ended counts as sent, and not as its answer.

        Waits while the socket is full. Cancelled, it has not sent.

        Args:
            data: any bytes-like object.

        Raises:
            TypeError: not bytes.
            OSError: the system refuses; with errno EMSGSIZE the data is too large for one datagram.
            anyio.ClosedResourceError: the server has been closed.
            anyio.BrokenResourceError: the sender has no address, or (a Unix socket) is gone or has
                read nothing for 5 seconds.
        """
        try:
            await self.endpoint.send(data, self.address, self.control)
        except TypeError:
            raise TypeError(f"reply() takes bytes; got {reprlib.repr(data)}") from None
        self.replied = True

    # -- for the server

    def _begin_drain(self) -> None:
        """Nothing to do: a datagram is one message."""

    def abort(self) -> None:
        """Nothing to do: there is no connection."""


class Endpoint:
    """A bound datagram socket.

    Args:
        loop: the loop that watches it.
        bound: the socket. The endpoint closes it.
        max_datagram_size: bytes of a datagram that are kept.

    Attributes:
        sent: datagrams that the socket has taken.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, bound: BoundSocket, max_datagram_size: int) -> None:
        self._loop = loop
        self._bound = bound
        self.sock: socket.socket = bound.sock
        self._fd = self.sock.fileno()
        self._size = max_datagram_size
        self._buffer = memoryview(bytearray(max_datagram_size))
        self._unix = self.sock.family == socket.AF_UNIX
        self._writable: asyncio.Future[None] | None = None  # while handlers wait for it
        self._no_buffers = False  # no room below the socket: poll(2) would say writable
        self._received = 0
        self.sent: int = 0
        self._counting = True  # what the kernel drops
        # The kernel counts from the socket's creation, perhaps in another process.
        self._dropped = -kernel_drops(self.sock)
        # recvmsg takes about 1 us more than recvfrom: only where answers need the destination.
        self._receive = self._receive_one
        self._asks_destination = ask_for_destination(self.sock)
        if self._asks_destination:
            self._receive = self._receive_own if bound.twin else self._receive_any
        self._enlarge_buffer()

    # -- receiving: self._receive()

    def _receive_one(self) -> Datagram:
        # With MSG_TRUNC the size is the datagram's own, recv(2). `recvfrom` would then return
        # memory that was never written; so use our buffer.
        size, address = self.sock.recvfrom_into(self._buffer, 0, _TRUNCATED)
        return Datagram(self, self._buffer[:size].tobytes(), address, None, size > self._size)

    def _receive_any(self) -> Datagram:
        size, control, _, address = self.sock.recvmsg_into([self._buffer], CONTROL_SIZE, socket.MSG_TRUNC)
        data = self._buffer[:size].tobytes()
        return Datagram(self, data, address, reply_control(control), size > self._size)

    def _receive_own(self) -> Datagram:
        """Receive where other workers have sockets on the same address; raises NotForUs."""
        size, control, _, address = self.sock.recvmsg_into([self._buffer], CONTROL_SIZE, socket.MSG_TRUNC)
        if sent_to_many(control):
            raise NotForUs
        data = self._buffer[:size].tobytes()
        return Datagram(self, data, address, reply_control(control), size > self._size)

    def local_address(self, control: Control | None, peer: Address) -> Address:
        """The address from which the peer is answered."""
        return source_address(self.sock, control, peer) if self._asks_destination else self._bound.address

    def _enlarge_buffer(self) -> None:
        if self._unix:
            return  # the sender's buffer counts there
        if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 2 * _RECEIVE_BUFFER:
            return  # set by the program, and larger
        with without("SO_RCVBUF", "the kernel keeps a quarter of a burst of 1,000 datagrams"):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        # The kernel doubles it, socket(7).
        granted = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
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
    def received(self) -> int:
        """Datagrams that were taken from the socket, each for a handler."""
        return self._received

    @property
    def dropped(self) -> int:
        """Datagrams that reached this host for this socket, and no handler."""
        return self._dropped + (kernel_drops(self.sock) if self._counting else 0)

    def _queued_at_most(self) -> int:
        """As many datagrams as the kernel may hold now, or more."""
        if self._unix:
            return _UNIX_QUEUE
        numbers = _meminfo(self.sock)
        queued = numbers[_QUEUED] if numbers else self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        return queued // _LEAST_QUEUED + 1

    # -- sending

    def try_send(self, data: Buffer, address: Address, control: Control | None) -> bool:
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
            if self.sock.fileno() < 0:
                raise anyio.ClosedResourceError("nothing can be sent: the server has been closed") from exc
            if isinstance(address, tuple) and not address[1]:
                # Any client can forge port 0: no error of the handler's.
                raise anyio.BrokenResourceError(f"the sender {address!r} has no port: it cannot be answered") from exc
            if exc.errno == errno.ENOBUFS:  # the interface's queue is full: udp(7)
                self._no_buffers = True
                return False
            if self._unix and (not address or exc.errno in {errno.ECONNREFUSED, errno.ENOENT}):
                raise anyio.BrokenResourceError(f"the sender {address!r} cannot be answered: {exc}") from exc
            if exc.errno == errno.EMSGSIZE:
                raise _too_large(self.sock, memoryview(data).nbytes, address) from exc
            raise
        self.sent += 1
        return True

    async def send(self, data: Buffer, address: Address, control: Control | None) -> None:
        """Send as soon as there is room. Raises as `Datagram.reply()`."""
        delay, longest = _RETRY
        give_up = self._loop.time() + _UNIX_PATIENCE
        while not self.try_send(data, address, control):
            if self._unix and self._loop.time() >= give_up:
                full = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                raise anyio.BrokenResourceError(f"the sender {address!r} does not read its answers") from full
            if self._unix or self._no_buffers:
                self._no_buffers = False
                await asyncio.sleep(delay)
                delay = min(2 * delay, longest)
            else:
                await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()
            self._loop.add_writer(self._fd, self._on_writable)
        # One future for all handlers that wait: cancelling one of them must not cancel it.
        await asyncio.wait([self._writable])

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._fd)
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set_result(None)

    # -- ending

    def _stop_counting(self) -> None:
        """Stop counting what the kernel drops; another process may do it from now on."""
        self._dropped, self._counting = self.dropped, False

    def close(self) -> None:
        """Close the socket; count what it held as dropped, unless other processes may read it."""
        if self._writable is not None:
            self._on_writable()
        for _ in range(0 if self._bound.shared else _RECEIVE_BUFFER // _LEAST_QUEUED):
            try:
                self._receive()
            except NotForUs:
                continue
            except OSError:
                break
            self._dropped += 1
        self._stop_counting()
        self._bound.close()


def _too_large(sock: socket.socket, size: int, address: Address) -> OSError:
    """Say how large a datagram may be; the kernel only says "Message too long"."""
    if sock.family == socket.AF_UNIX:
        limit = (
            f"the send buffer takes {sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)} (SO_SNDBUF), less its own"
        )
    elif size > (most := _MOST[":" in address[0] and unmapped(address[0]) == address[0]]):
        limit = f"UDP takes at most {most}"
    else:
        limit = f"the way to {address!r} takes less (its MTU)"
    return OSError(
        errno.EMSGSIZE, f"{size} bytes are too many for one datagram: {limit}; send several, or use a stream"
    )


def kernel_drops(sock: socket.socket) -> int:
    """Datagrams that the kernel has dropped since it made this socket, for want of room."""
    numbers = _meminfo(sock)
    return numbers[_DROPS] if numbers else 0


def _meminfo(sock: socket.socket) -> tuple[int, ...]:
    """The kernel's numbers about a socket's memory; none for Unix sockets, or on some systems."""
    if sock.family == socket.AF_UNIX:
        return ()
    try:
        return _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
    except (OSError, struct.error):  # qemu's user mode knows all options as one number each
        tell_missing("SO_MEMINFO", "datagrams that the kernel drops are not counted")
        return ()
