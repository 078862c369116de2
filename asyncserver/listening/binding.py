"""Binding: where a server listens, checked when it is made and bound when it is opened.

host and port   one name or address, several, or None for every interface, IPv4 and IPv6
path            a Unix socket's file, or "@name", which has none
vsock           a port between virtual machines
sock, fd        a socket that is bound already; from then on it is the server's
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..exceptions import BindError
from ..kernel.features import without
from ..kernel.groups import hear_own_groups
from ..kernel.packet_info import ask_for_destination
from ..kernel.scopes import parse_ip
from ..kernel.twins import may_have_twins
from ..net.addresses import format_address
from ..net.probes import ask_often
from . import unix_path, vsock
from .advice import ADVICE, CONNECTED, explained, is_connected, resolving
from .systemd import is_kept

if TYPE_CHECKING:
    from ..kernel.memberships import Group, Membership
    from ..net.addresses import Address

_KINDS = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "datagram"}
_TCP = {0, socket.IPPROTO_TCP, socket.IPPROTO_MPTCP}

# How often another free port is tried when the first is not free on all addresses.
_PORT_DRAWS = 20


@dataclass(frozen=True)
class Binding:
    """Exactly one place to listen on. Raises TypeError or ValueError for anything else."""

    host: str | Sequence[str] | None = None
    port: int | None = None
    path: str | os.PathLike[str] | None = None
    path_mode: int | None = None
    sock: socket.socket | None = None
    fd: int | None = None
    backlog: int = 0
    reuse_port: bool = False
    groups: Sequence[Group] = ()
    twin: bool = False
    one_queue: bool = False
    vsock: int | tuple[int, int] | None = None
    keepalive: float | None = None

    def __post_init__(self) -> None:
        names = [name for name in ("path", "vsock", "sock", "fd") if getattr(self, name) is not None]
        if self.host is not None or self.port is not None:
            names.insert(0, "host and port")
        if len(names) != 1:
            raise TypeError(
                "give one place to listen on: host and port, path, sock, fd, or (not for datagrams) vsock; got "
                + (" together with ".join(names) or "none of them")
            )
        if names == ["host and port"]:
            self._check_port()
        self._check_types()

    def _check_types(self) -> None:
        unix_path.check(self.path, self.path_mode)
        if self.vsock is not None:
            vsock.check(self.vsock)
        sock, fd = self.sock, self.fd
        if self.reuse_port and self.port is None:
            raise ValueError("reuse_port=True has an effect on host and port only: set SO_REUSEPORT before you bind")
        if sock is not None and not isinstance(sock, socket.socket):
            raise TypeError(f"sock must be a socket.socket, got {sock!r}")
        if fd is not None and (isinstance(fd, bool) or not isinstance(fd, int)):
            raise TypeError(f"fd must be a whole number, got {fd!r}")
        if fd is not None and fd < 0:
            raise ValueError(f"fd must be at least 0, got {fd}")

    def _check_port(self) -> None:
        if self.port is None:
            advice = "give them as two arguments" if isinstance(self.host, tuple) else "port=0 picks a free one"
            raise TypeError(f"host={self.host!r} needs a port too; {advice}")
        if isinstance(self.port, bool) or not isinstance(self.port, int):
            raise TypeError(f"port must be a whole number, got {self.port!r}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, got {self.port}")
        host: Any = self.host
        if isinstance(host, str | None):
            return
        if not isinstance(host, Sequence) or not host or not all(isinstance(name, str) for name in host):
            raise TypeError(f"host must be a name or address, a sequence of them, or None, got {host!r}")

    async def open(self, kind: socket.SocketKind) -> list[BoundSocket]:
        """Bind every address, or none and raise BindError. Sockets of SOCK_STREAM also listen."""
        if self.port is None:
            return self._joined([self._open_one(kind)])
        return self._joined(self._open_all(kind, await self._resolve(kind)))

    def open_slots(self, kind: socket.SocketKind, count: int) -> list[list[BoundSocket]]:
        """Bind sockets for several processes to inherit. Blocks to resolve names; needs no loop.

        Each process has its own sockets on the same addresses, and the kernel picks one for each
        client (SO_REUSEPORT). A Unix socket, a `sock` or `fd`, and one on a multicast group or
        broadcast address is the same for all of them; so are all with `one_queue`.

        Returns:
            for each of `count` processes its sockets.

        Raises:
            BindError: an address could not be bound; then nothing is left open.
        """
        first = [self._open_one(kind)] if self.port is None else self._open_all(kind, self._resolve_blocking(kind))
        self._joined(first)
        separate = count > 1 and self.port is not None and not self.one_queue
        multiple = [one for one in first if separate and may_have_twins(one.sock)]
        for one in first:
            one.contended = count > 1 and one not in multiple
        if not multiple:
            return [first] * count
        slots = [first]
        try:
            addresses: list[Any] = [(one.sock.family, one.sock.getsockname()) for one in multiple]
            further = replace(self, port=first[0].sock.getsockname()[1], reuse_port=True, twin=True)
            for _ in range(count - 1):
                twins = iter(further._open_all(kind, addresses))
                slots.append([next(twins) if one in multiple else one for one in first])
        except BaseException:
            for bound in (one for slot in slots for one in slot):
                bound.close()
            raise
        return slots

    def _open_all(self, kind: socket.SocketKind, addresses: list[tuple[int, tuple[Any, ...]]]) -> list[BoundSocket]:
        for draws in range(_PORT_DRAWS, -1, -1):
            opened: list[BoundSocket] = []
            try:
                self._open_addresses(kind, addresses, opened)
            except BaseException as exc:
                for bound in opened:
                    bound.close()
                # The port that the system chose for the first address may be taken on the next.
                redraw = self.port == 0 and opened and getattr(exc, "errno", 0) == errno.EADDRINUSE
                if not redraw or not draws:
                    raise
            else:
                return opened
        raise AssertionError("unreachable")

    def _joined(self, bound: list[BoundSocket]) -> list[BoundSocket]:
        """Join the groups, or close the sockets and raise BindError; a given one stays open."""
        if not self.groups:
            return bound
        from ..kernel.memberships import join_groups  # noqa: PLC0415 - for groups only

        try:
            memberships = join_groups([one.sock for one in bound], self.groups)
        except BaseException:
            for one in bound:
                if self.fd is not None:
                    one.sock.detach()
                elif self.sock is None:
                    one.close()
            raise
        for one in bound:
            one.memberships = [membership for membership in memberships if membership.sock is one.sock]
        return bound

    async def _resolve(self, kind: socket.SocketKind) -> list[tuple[int, tuple[Any, ...]]]:
        loop = asyncio.get_running_loop()
        found: list[Any] = []
        for host in self._hosts():
            with resolving(host):
                try:
                    found += await loop.getaddrinfo(host or None, self.port, type=kind, flags=socket.AI_PASSIVE)
                except NotImplementedError:  # a loop that is neither asyncio's nor uvloop's
                    found += await loop.run_in_executor(None, self._look_up, host, kind)
        return _distinct(found)

    def _resolve_blocking(self, kind: socket.SocketKind) -> list[tuple[int, tuple[Any, ...]]]:
        found: list[Any] = []
        for host in self._hosts():
            with resolving(host):
                found += self._look_up(host, kind)
        return _distinct(found)

    def _look_up(self, host: str | None, kind: socket.SocketKind) -> list[Any]:
        return socket.getaddrinfo(host or None, self.port, type=kind, flags=socket.AI_PASSIVE)

    def _hosts(self) -> Sequence[str | None]:
        return [self.host] if isinstance(self.host, str | None) else self.host

    def _open_addresses(
        self, kind: socket.SocketKind, addresses: list[tuple[int, tuple[Any, ...]]], opened: list[BoundSocket]
    ) -> None:
        missing: BindError | None = None
        for family, address in addresses:
            # All addresses of a server have the same port, also when the system chooses it.
            port = opened[0].sock.getsockname()[1] if opened else self.port
            target = (address[0], port, *address[2:])
            try:
                opened.append(self._open_address(kind, family, target))
            except BindError as exc:
                # Without IPv6 "every interface" and "localhost" are those of IPv4.
                if self._is_address() or exc.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                    raise
                missing = exc
        if missing is not None and not opened:
            raise missing

    def _is_address(self) -> bool:
        """Whether the host is one address, which must be bound, and not a name for several."""
        if not isinstance(self.host, str):
            return self.host is not None
        try:
            parse_ip(self.host.partition("%")[0])
        except ValueError:
            return False
        return True

    def _open_address(self, kind: socket.SocketKind, family: int, address: tuple[Any, ...]) -> BoundSocket:
        with explained(f"{_KINDS[kind]} address {format_address(address)}"), _new_socket(family, kind) as sock:
            if family == socket.AF_INET6:
                # IPv4 has its own sockets; mapped addresses would confuse (RFC 4942, 2.2).
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if kind == socket.SOCK_STREAM:
                # Bind although connections of an earlier server are in TIME_WAIT. On UDP
                # it would share the port.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address)
            return self._configure(kind, sock)

    def _open_one(self, kind: socket.SocketKind) -> BoundSocket:
        if self.vsock is not None:
            return self._open_vsock(kind, vsock.address(self.vsock))
        return self._adopt(kind) if self.path is None else self._open_path(kind, unix_path.name(self.path))

    def _open_vsock(self, kind: socket.SocketKind, address: tuple[int, int]) -> BoundSocket:
        place = f"VSOCK address {format_address(address)}"
        with explained(place, vsock.ADVICE), _new_socket(vsock.family(), kind) as sock:
            sock.bind(address)
            return self._configure(kind, sock)

    def _open_path(self, kind: socket.SocketKind, path: str) -> BoundSocket:
        with (
            explained(f"Unix {_KINDS[kind]} socket {unix_path.shown(path)}"),
            _new_socket(socket.AF_UNIX, kind) as sock,
        ):
            unix_path.check_length(path)
            if path.startswith("\0"):  # an abstract name has no file: unix(7)
                sock.bind(path)
                return self._configure(kind, sock)
            unix_path.bind(sock, path, self.path_mode)
            ours = unix_path.identity(path)
            try:
                bound = self._configure(kind, sock, path)
            except BaseException:
                os.unlink(path)
                raise
            # Before listen() another server that starts there sees ours as dead.
            if unix_path.identity(path) != ours:
                raise BindError(errno.EADDRINUSE, f"{path!r} was taken by another server just now: stop one")
            return bound

    def _adopt(self, kind: socket.SocketKind) -> BoundSocket:
        sock = self.sock
        if sock is None:
            with explained(f"file descriptor {self.fd}"):
                sock = socket.socket(fileno=self.fd)
                sock.set_inheritable(False)  # we inherited it, but our children must not
        with explained(f"{sock!r}", ADVICE | CONNECTED), contextlib.ExitStack() as on_error:
            if self.sock is None:
                on_error.callback(sock.detach)  # refused: the descriptor stays the caller's
            if sock.type != kind:
                raise BindError(
                    errno.EPROTOTYPE,
                    f"{sock!r} is not a {_KINDS[kind]} socket: use serve() for streams, "
                    "serve_datagrams() for datagrams",
                )
            address = sock.getsockname()
            unbound = not address or (sock.family != socket.AF_UNIX and address[1] == 0)
            if unbound and kind == socket.SOCK_STREAM and is_connected(sock):  # one of a socketpair()
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            if unbound or vsock.is_unbound(sock):
                raise BindError(errno.EINVAL, f"{sock!r} is not bound to an address: bind() it first")
            bound = self._configure(kind, sock)
            on_error.pop_all()
        return bound

    def _configure(self, kind: socket.SocketKind, sock: socket.socket, path: str | None = None) -> BoundSocket:
        kept = is_kept(sock)
        if kind == socket.SOCK_DGRAM:
            ask_for_destination(sock)  # now, for what comes before it is read
            hear_own_groups(sock, first=not self.twin)
        elif kind == socket.SOCK_STREAM:
            if sock.family in {socket.AF_INET, socket.AF_INET6} and sock.proto in _TCP:
                # Accepted sockets inherit it. Without it a reply may wait until the peer has
                # acknowledged the one before: RFC 896, against delayed acknowledgements.
                with without("TCP_NODELAY", "short messages may wait for a moment"):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.keepalive is not None:
                    with without("TCP_KEEPIDLE", "keepalive finds no vanished peers on idle connections"):
                        ask_often(sock, self.keepalive)  # inherited, too
            # systemd's listens already, with the queue length of its unit: Backlog=.
            if not (kept and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
                sock.listen(self.backlog)
        sock.setblocking(False)
        bound = BoundSocket(sock, path, kept=kept, given=self.sock is not None or self.fd is not None)
        bound.twin = self.twin
        return bound


class BoundSocket:
    """A bound socket, and its file if it is a Unix socket that we made.

    Attributes:
        given: the program passed it as `sock` or `fd`, and may go on using it.
        twin: another process has its own socket on the address, and handles what is sent to many.
        contended: other processes take from its queue at the same time.
        shared: another process has it open too, and may go on using it.
        handed_over: another process goes on using it: when we close, its queue is left to that one.
        memberships: the groups to leave when it is closed.
    """

    def __init__(self, sock: socket.socket, path: str | None = None, kept: bool = False, given: bool = False) -> None:
        self.given: bool = given
        self.twin: bool = False
        self.contended: bool = False
        self.sock: socket.socket = sock
        self._path = path
        self._identity = unix_path.identity(path) if path is not None else None
        self._kept = kept  # by systemd, which starts us again for what is in the queue
        self.shared: bool = kept
        self.handed_over: bool = kept
        self.memberships: list[Membership] = []

    @property
    def address(self) -> Address:
        """The address at which clients reach it."""
        return self.sock.getsockname()

    def close(self) -> None:
        """Close the socket; remove its file unless another server has replaced it. Idempotent."""
        if self._path is not None and unix_path.identity(self._path) == self._identity:
            # The folder may have become read-only; a file that stays does no harm.
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._path = None
        for membership in self.memberships:
            membership.leave()
        self.sock.close()

    def share(self) -> None:
        """In a process that inherited it: leave it to others for good, but see `take_back()`."""
        self._path, self.memberships = None, []
        self.shared = self.handed_over = True

    def take_back(self) -> None:
        """Take over the queue from a process that is gone, unless systemd keeps the socket."""
        self.handed_over = self._kept


def _distinct(infos: list[Any]) -> list[tuple[int, tuple[Any, ...]]]:
    return list({(info[0], info[4]): None for info in infos})  # keeps their order


@contextlib.contextmanager
def _new_socket(family: int, kind: socket.SocketKind) -> Iterator[socket.socket]:
    """Make a socket, to be closed if an error follows."""
    sock = socket.socket(family, kind)
    try:
        yield sock
    except BaseException:
        sock.close()
        raise
