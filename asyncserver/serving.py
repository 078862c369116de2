"""serve and serve_datagrams: check the arguments, and make one object for every way of use.

Each of them imports its own kind of server, streams or datagrams, when it is called: most programs
need one of both. That is before it listens, so also before a program gives up its privileges and
may no longer read the packages.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from .arguments import (
    HANDSHAKE_TIMEOUT,
    PROXY_TIMEOUT,
    check_count,
    check_end,
    check_handler,
    check_keepalive,
    check_seconds,
    check_tls,
    checked_groups,
    checked_proxies,
)
from .servers.handler_kinds import is_protocol_handler
from .starting import Serving

if TYPE_CHECKING:
    import os
    import ssl as _ssl
    from collections.abc import Sequence

    from ._types import DatagramHandler, ErrorHandler, StreamHandler
    from .adapters.protocols import ProtocolHandler
    from .listening.binding import BoundSocket
    from .servers.server import Server

__all__ = ["Serving", "serve", "serve_datagrams"]

# Bytes that may wait for a slow peer: a few seconds of a video, or of any chat.
_MAX_UNSENT = 4 << 20
# Datagrams handled at once: a burst. Each takes a few kilobytes while it waits.
_MAX_PENDING = 1024


def serve(
    handler: StreamHandler | ProtocolHandler,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    # other places to listen on
    path: str | os.PathLike[str] | None = None,
    path_mode: int | None = None,
    sock: socket.socket | None = None,
    fd: int | None = None,
    vsock: int | tuple[int, int] | None = None,
    backlog: int = 1024,
    reuse_port: bool = False,
    # TLS
    ssl: _ssl.SSLContext | None = None,
    ssl_handshake_timeout: float = HANDSHAKE_TIMEOUT,
    # limits
    max_connections: int | None = None,
    max_connections_per_host: int | None = None,
    idle_timeout: float | None = None,
    keepalive: float | None = None,
    max_unsent: int = _MAX_UNSENT,
    # a proxy in front
    proxy_protocol: bool = False,
    trusted_proxies: Sequence[str] = (),
    proxy_timeout: float = PROXY_TIMEOUT,
    # the end
    drain_timeout: float = 30.0,
    on_error: ErrorHandler | None = None,
) -> Serving:
    """Serve connections: TCP, Unix, with or without TLS.

    Use the result in one of three ways:

    * `await serve(...)` binds, serves until closed or cancelled, drains, returns;
    * `async with serve(...) as server:` serves in the background, and drains on exit;
    * `server = await serve(...).start()` serves in the background until `server.close()`.

    Example::

        async def upper(stream):
            async for data in stream:
                await stream.send(data.upper())

        asyncserver.run(asyncserver.serve(upper, "127.0.0.1", 8080, max_connections=1000))

    Args:
        handler: `async def handler(stream)`, called for each connection in a task of its
            own. When it returns or raises, what it sent is delivered and the connection
            closed; an error is logged and hurts no other connection. Or what
            `from_protocol()` or `from_callback()` returns.
        host: a name or address, several, or None for every interface, IPv4 and IPv6.
        port: 0 picks a free one, the same for every address; see `server.addresses`.
        path: a Unix socket's path. A dead server's socket file is replaced, a live one's
            never; removed on close. A str "@name" is an abstract name (unix(7)): it has no file,
            and every user on this host can connect.
        path_mode: permissions of that file, such as 0o660; None leaves them to the umask.
        sock: a bound stream socket instead; the server closes it.
        fd: the same as a descriptor.
        vsock: a port of VSOCK (vsock(7)), for virtual machines and their host; 0 picks a free one.
            A tuple (cid, port) takes those that connect to this cid only. Addresses are such pairs.
        backlog: connections that the kernel queues until we accept; net.core.somaxconn at most.
        reuse_port: with host and port, let other processes of this user listen on the same port,
            balanced by the kernel (socket(7)).
        ssl: a context for the server side, such as `tls_context()` makes; None serves without TLS.
        ssl_handshake_timeout: in seconds; who takes longer is closed and counted as refused.
        max_connections: when so many are open, accepting pauses and the kernel's queue holds the
            rest. Workers count for themselves, and all take from one queue.
        max_connections_per_host: when so many are open from one address (of IPv6: one /64 network),
            more from it are closed at once and counted as refused.
        idle_timeout: seconds without a byte in either direction after which the pending or next
            `receive()` (and a pending `send()`) raises IdleTimeout, up to an eighth later. Uncaught
            it closes the connection, without an error in the log. A handler that pushes is not
            idle as long as the kernel takes what it sends; one that waits for something else, such
            as a queue, meets it at its next `receive()` only. When the peer's host is gone,
            `keepalive` ends both.
        keepalive: seconds, at least 2, in which a peer whose host has vanished without a word is
            found, and its connection broken: idle, in a send, or with bytes under way. The pending
            or next `receive()` or `send()` raises BrokenResourceError from a TimeoutError
            (ETIMEDOUT), `wait_disconnected()` returns; a handler that has met none of them a
            second later, since it waits for a queue, say, is cancelled. Counted as `vanished`. A
            host that answers is never ended, however slowly its program reads. Before Linux 6.15,
            a host that vanishes while its window is closed is found when two of the kernel's probes
            went unanswered, which are up to two minutes apart. Under 10 seconds, a few lost packets
            look like an end. Not for Unix sockets.
        max_unsent: bytes given to `post()` or `broadcast()` that may wait for one peer; each call
            counts as 48 more, the memory that it takes. If more wait, its connection is aborted,
            and counted as `slow_consumers`.
        proxy_protocol: expect the header that a proxy puts before each connection (PROXY protocol 1
            or 2, before TLS), and take the client's address from it: `stream.peer_address`,
            `stream.proxy_header`, logs, limits. A connection without a valid one is refused. A
            proxy's health check (LOCAL, UNKNOWN) is served under its own address.
        trusted_proxies: networks ("10.0.0.0/8"), addresses, "unix" for the peers of Unix sockets,
            "vsock" or "vsock:CID" for those of VSOCK, that may send that header: it can claim any
            address. Others are refused, and counted as `proxy_untrusted`. Nothing means this host
            alone: loopback and Unix sockets.
        proxy_timeout: seconds for that header, then refused, and counted as
            `proxy_timed_out`. If the proxy sends it with the client's first bytes (AWS
            NLB), this bounds the client's silence.
        drain_timeout: seconds for handlers to end when the server closes; then they are cancelled.
        on_error: called as `on_error(exception, stream)` when a handler has raised, besides the log
            line. It may be async: the drain waits for it as for a handler. What it raises is
            logged. Not called for what the peer did: it left, sent too long a line or plain bytes
            behind STARTTLS, or let a deadline of the handler's (`asyncio.timeout()`) pass. Those
            are logged without traceback, at WARNING once a minute, else at DEBUG.

    Raises:
        TypeError, ValueError: at once, for wrong arguments.
        BindError: when it starts, if an address cannot be had; then nothing is left open.
    """
    check_handler(handler, "serve", "stream")
    check_count("backlog", backlog, 0)
    check_count("max_unsent", max_unsent, 0)
    check_count("max_connections", max_connections, none=True)
    check_count("max_connections_per_host", max_connections_per_host, none=True)
    check_tls(ssl, ssl_handshake_timeout)
    check_seconds("idle_timeout", idle_timeout, none=True)
    check_keepalive(keepalive, path, vsock, sock)
    proxies = checked_proxies(trusted_proxies, proxy_protocol, proxy_timeout)
    check_end(drain_timeout, on_error)
    from .listening.binding import Binding  # noqa: PLC0415 - see the head of this file
    from .servers.stream_server import StreamServer  # noqa: PLC0415

    one_queue = max_connections is not None  # a full worker must not keep a queue of its own
    binding = Binding(
        host,
        port,
        path,
        path_mode,
        sock,
        fd,
        backlog,
        reuse_port,
        one_queue=one_queue,
        vsock=vsock,
        keepalive=keepalive,
    )

    def start(bound: list[BoundSocket]) -> Server:
        return StreamServer(
            asyncio.get_running_loop(),
            bound,
            handler,
            ssl=ssl,
            ssl_handshake_timeout=ssl_handshake_timeout,
            max_connections=max_connections,
            max_connections_per_host=max_connections_per_host,
            idle_timeout=idle_timeout,
            keepalive=keepalive,
            proxies=proxies,
            proxy_timeout=proxy_timeout,
            max_unsent=max_unsent,
            drain_timeout=drain_timeout,
            on_error=on_error,
        )

    return Serving("serve", binding, socket.SOCK_STREAM, start, drain_timeout)


def serve_datagrams(
    handler: DatagramHandler | ProtocolHandler,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    # other places to receive on
    path: str | os.PathLike[str] | None = None,
    path_mode: int | None = None,
    sock: socket.socket | None = None,
    fd: int | None = None,
    reuse_port: bool = False,
    groups: Sequence[str] = (),
    # limits
    max_datagram_size: int = 65535,
    max_pending: int = _MAX_PENDING,
    # a proxy in front
    proxy_protocol: bool = False,
    trusted_proxies: Sequence[str] = (),
    # the end
    drain_timeout: float = 30.0,
    on_error: ErrorHandler | None = None,
) -> Serving:
    """Serve datagrams: UDP and Unix datagram sockets. Used like `serve()`.

    Example::

        async def upper(datagram):
            return datagram.data.upper()

        asyncserver.run(asyncserver.serve_datagrams(upper, "127.0.0.1", 8080))

    Args:
        handler: `async def handler(datagram)`, called for each datagram in a task of its own; bytes
            that it returns are sent back. Or what `from_protocol()` returns.
        host: a name or address, several, or None for every interface, IPv4 and IPv6. An answer
            comes from the address that the datagram was sent to; on every interface (None,
            "0.0.0.0", "::") finding that out costs about 1 us per datagram. Of multicast groups it
            hears those of all hosts, and those that it joins.
        port: 0 picks a free one, the same for every address; see `server.addresses`.
        path: a Unix socket's path or "@name", as for `serve()`.
        path_mode: permissions of that file.
        sock: a bound datagram socket instead; the server closes it.
        fd: the same as a descriptor.
        reuse_port: as for `serve()`.
        groups: multicast groups to join until it closes: "239.1.2.3", "ff02::114%eth0" with an
            interface's name or number; else the route chooses that. See docs/datagrams.md.
        max_datagram_size: bytes of a datagram that are kept; of a longer one the beginning, and it
            is marked `truncated`. UDP's can have 65,507 bytes, those of Unix sockets more.
        max_pending: when so many handlers run, reading pauses and the kernel's buffer takes the
            burst. Not for a protocol, which takes each datagram at once.
        proxy_protocol: expect a PROXY header, of version 1 or 2, in each datagram, and take the
            client's address from it: `datagram.address`, `datagram.proxy_header`, logs, and what a
            protocol gets. Answers go to the proxy, without a header. A datagram that has none,
            although others of the same sender had, is refused too: it cannot be told whose it is.
        trusted_proxies: as for `serve()`.
        drain_timeout: seconds for handlers to end when the server closes; then they are cancelled.
        on_error: called as `on_error(exception, datagram)` when a handler has raised; see
            `serve()`.

    Raises:
        TypeError, ValueError: at once, for wrong arguments.
        BindError: when it starts, if an address cannot be had; then nothing is left open.
    """
    check_handler(handler, "serve_datagrams", "datagram")
    check_count("max_datagram_size", max_datagram_size)
    check_count("max_pending", max_pending)
    if is_protocol_handler(handler) and max_pending != _MAX_PENDING:
        raise ValueError(
            f"max_pending={max_pending} has no effect with from_protocol(): a protocol takes each datagram at once"
        )
    proxies = checked_proxies(trusted_proxies, proxy_protocol, PROXY_TIMEOUT)
    check_end(drain_timeout, on_error)
    from .listening.binding import Binding  # noqa: PLC0415 - see the head of this file
    from .servers.datagram_server import DatagramServer  # noqa: PLC0415

    binding = Binding(host, port, path, path_mode, sock, fd, 0, reuse_port, checked_groups(groups, path))

    def start(bound: list[BoundSocket]) -> Server:
        return DatagramServer(
            asyncio.get_running_loop(),
            bound,
            handler,
            max_datagram_size=max_datagram_size,
            max_pending=max_pending,
            proxies=proxies,
            drain_timeout=drain_timeout,
            on_error=on_error,
        )

    return Serving("serve_datagrams", binding, socket.SOCK_DGRAM, start, drain_timeout)
