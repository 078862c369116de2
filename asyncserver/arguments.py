"""Checks of what serve(), serve_datagrams() and run() are given."""

from __future__ import annotations

import socket
import ssl as _ssl
from typing import TYPE_CHECKING

from .adapters.checks import check_handler as check_callable
from .adapters.checks import check_kind, check_on_error
from .net.probes import SHORTEST
from .servers.handler_kinds import is_protocol_handler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._types import ErrorHandler
    from .kernel.memberships import Group
    from .proxy.proxy_protocol import TrustedProxies

# Seconds for a TLS handshake; the 60 of asyncio and uvloop let silent clients gather.
HANDSHAKE_TIMEOUT = 30.0
# Seconds for a PROXY header: the specification asks for at least 3, a retransmission.
PROXY_TIMEOUT = 5.0


def check_handler(handler: object, name: str, argument: str) -> None:
    """Raise TypeError, unless `name`, serve or serve_datagrams, can call it for each `argument`."""
    if is_protocol_handler(handler):
        check_kind(getattr(handler, "_factory", None), name)  # a callback has none
    else:
        check_callable(handler, name, argument)


def check_count(name: str, value: object, least: int = 1, *, none: bool = False) -> None:
    """Raise TypeError or ValueError, unless it is at least `least`, or an allowed None."""
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_seconds(name: str, value: object, *, zero: bool = False, none: bool = False) -> None:
    """Raise TypeError or ValueError, unless it is a time: more than 0, or an allowed 0 or None."""
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, got {value!r}")
    if not (value > 0 or (zero and value == 0)):
        raise ValueError(f"{name} must be {'at least' if zero else 'more than'} 0 seconds, got {value!r}")


def checked_proxies(names: Sequence[str], proxy_protocol: object, timeout: float) -> TrustedProxies | None:
    """Make what knows the proxies; None without PROXY. Raises TypeError, ValueError."""
    check_seconds("proxy_timeout", timeout)
    if not isinstance(proxy_protocol, bool):
        raise TypeError(f"proxy_protocol must be True or False, got {proxy_protocol!r}; networks go to trusted_proxies")
    if names and not proxy_protocol:
        raise ValueError(f"trusted_proxies={names!r} are for the PROXY protocol: add proxy_protocol=True")
    if not proxy_protocol and timeout != PROXY_TIMEOUT:
        raise ValueError(f"proxy_timeout={timeout!r} is for the PROXY protocol: add proxy_protocol=True")
    if not proxy_protocol:
        return None
    from .proxy.proxy_protocol import TrustedProxies  # noqa: PLC0415 - a tenth of the import's time

    return TrustedProxies(names)


def checked_groups(groups: Sequence[str], path: object) -> tuple[Group, ...]:
    """Read multicast groups. Raises TypeError, ValueError."""
    if groups and path is not None:
        raise ValueError(f"groups={groups!r} are for UDP: a Unix socket, {path!r}, is in no group")
    if groups == ():
        return ()
    from .kernel.memberships import parse_groups  # noqa: PLC0415 - for groups only

    return parse_groups(groups)


def check_tls(context: object, handshake_timeout: float) -> None:
    """Raise TypeError or ValueError, unless servers can use it, or it is None."""
    if context is not None and not isinstance(context, _ssl.SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext, such as asyncserver.tls_context() makes; got {context!r}")
    if isinstance(context, _ssl.SSLContext) and context.protocol == _ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError("ssl got a context for clients: make one with asyncserver.tls_context(certfile, keyfile)")
    check_seconds("ssl_handshake_timeout", handshake_timeout)
    if context is None and handshake_timeout != HANDSHAKE_TIMEOUT:
        raise ValueError(f"ssl_handshake_timeout={handshake_timeout!r} has no effect without ssl: leave it out")


def check_keepalive(seconds: object, path: object, vsock: object, sock: object) -> None:
    """Raise TypeError or ValueError, unless connections can be kept so, or it is None."""
    check_seconds("keepalive", seconds, none=True)
    if isinstance(seconds, int | float) and seconds < SHORTEST:
        raise ValueError(
            f"keepalive must be at least {SHORTEST:g} seconds, got {seconds!r}: the kernel counts it in whole seconds"
        )
    family = getattr(sock, "family", None)
    if seconds is not None and (path is not None or family == socket.AF_UNIX):
        raise ValueError(f"keepalive={seconds!r} has no effect on a Unix socket: its peer cannot vanish; leave it out")
    if seconds is not None and (vsock is not None or family == getattr(socket, "AF_VSOCK", "none")):
        raise ValueError(f"keepalive={seconds!r} has no effect on VSOCK, whose kernel asks no peer; leave it out")


def check_end(drain_timeout: float, on_error: ErrorHandler | None) -> None:
    """Raise TypeError or ValueError for what is said about the end."""
    check_seconds("drain_timeout", drain_timeout, zero=True)
    if on_error is not None:
        check_on_error(on_error)
