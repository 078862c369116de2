"""Accepted: a connection as accept(2) gives it: its descriptor, its socket, its peer's address.

Compiled, only the descriptor and the address's bytes are kept. A Python socket costs a connection
that is opened, used and closed two system calls, and one that is idle 400 bytes with its methods
and the address. So `_sock` and `peer_address` are made when somebody asks for them, and the states
`_recv`, `_read` and `_send` are the socket's own methods without being kept: compare them with ==.
Before there is a socket they are `_recv_by_sock` and `_send_by_sock`.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from ..net.addresses import task_name
from ..speedups.extension import accelerate
from .dialogue import Dialogue

if TYPE_CHECKING:
    from ..net.addresses import Address


class Accepted(Dialogue):
    """The socket of a connection."""

    __slots__ = ()

    # The extension's: for `_make_sock()`, and what that has made.
    _kind: tuple[int, int, int]
    _made_sock: socket.socket | None

    @accelerate
    def _accept(self, listening: socket.socket, kind: tuple[int, int, int]) -> bool:
        """Be the next connection of a listening socket; false if none waits. Raises OSError.

        Args:
            listening: that socket.
            kind: family, type and protocol of it; its attributes take 2 us, as they make enums.
        """
        try:
            fd, address = listening._accept()  # type: ignore[attr-defined] # typeshed lacks it
        except BlockingIOError:
            return False
        self._sock = sock = socket.socket(*kind, fd)
        sock.setblocking(False)
        self._fd = fd
        self._recv = self._read = sock.recv  # _recv may be a state before _read
        self._send = sock.send
        self.peer_address: Address = address
        return True

    @accelerate
    def _task_name(self) -> str:
        """Name the task that serves the connection."""
        return task_name(self.peer_address)

    def _make_sock(self) -> socket.socket:
        """Make `_sock`, in the extension, which knows only the descriptor."""
        family, kind, proto = self._kind
        if self._fd >= 0:  # with SOCK_NONBLOCK the object knows that; else it would set it
            self._sock = sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, proto, self._fd)
        else:  # closed before anybody has asked
            self._sock = sock = socket.socket(family, kind, proto)
            sock.close()
        return sock

    def _recv_by_sock(self, max_bytes: int) -> bytes:
        return self._sock.recv(max_bytes)

    def _send_by_sock(self, item: Any) -> int:
        return self._sock.send(item)

    def _share(self) -> socket.socket:
        """Give the socket to the program, which may close it."""
        self._shared = True
        return self._sock
