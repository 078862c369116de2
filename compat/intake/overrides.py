"""Overrides: which hooks of a server are the program's own, and what can be known of them.

A program may put anything in the place of `get_request()`, `process_request()` and the others: in a
subclass, in a mix-in, on the class or on the object. What is taken in batches, and which thread
makes a TLS handshake, depends on whether a hook may block. That cannot be known, so the rules are:

* A hook is ours, or the standard library's, if it is a function of a module that has called
  `trust()`. The function's globals say so: `functools.wraps` copies `__module__` and `__name__`,
  but not those. Ours never block. If every hook is ours, requests are taken in batches, and
  handshakes of a TLS listener are made step by step (`is_tls_listener`).
* Any other `get_request()` may wrap the socket it accepts, and then waits for its client. It is
  called in a thread if there is a sign of that (`needs_acceptors`): the listener is a TLS socket,
  an earlier call returned one, or the code of the override names `wrap_socket`. Without a sign the
  first call blocks as in the standard library, and its result is the sign.
* All other hooks run in the serving thread, as always.
"""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from compat.intake.batches import Source

_trusted = {socketserver.__name__}


class HookedServer(Protocol):
    """What the loop needs of a server. Hooks may be anything, and may raise anything."""

    ssl_handshake_timeout: float | None
    server_address: Any
    socket: Any
    _compat_error: OSError | None  # what the last get_request() raised
    _compat_wraps: bool  # a get_request() override has returned a TLS socket
    _compat_unwarned: bool
    _compat_batching: int  # the thread that takes a batch

    def fileno(self) -> int:
        """Return the listener's descriptor."""

    def get_request(self) -> tuple[Any, Any]:
        """Accept one connection, or receive one datagram."""

    def _handle_request_noblock(self) -> None:
        """Take one request and go on with it."""

    def service_actions(self) -> None:
        """Do what the program does in each turn."""

    def shutdown_request(self, request: Any) -> None:
        """End a request."""

    def _compat_proceed(self, request: Any, client_address: Any) -> None:
        """Go on with a request."""

    def _compat_take(self, source: Source, poll: Callable[[int], Any], count: int) -> bool:
        """Take up to `count` requests without hooks; false if one has to be called."""

    def _compat_stopping(self) -> bool:
        """Whether `shutdown()` has been called."""

    def _compat_ticks(self) -> bool:
        """Whether `service_actions()` has to be called even if nothing arrives."""

    def _compat_full(self) -> bool:
        """Whether no request should be taken now."""

    def _compat_hand_over(self) -> bool:
        """Wake workers; false when they have to be looked after."""

    def _compat_has_made(self, descriptor: int) -> bool:
        """Whether the listener is the server's own, and not lent to it."""

    def _compat_look(self) -> None:
        """Look after what waits for workers."""


def trust(module: str) -> None:
    """Take the functions of a module, given by its name, for hooks that never block."""
    _trusted.add(module)


def is_ours(hook: Any) -> bool:
    """Whether a hook is a function of a trusted module."""
    return getattr(hook, "__globals__", {}).get("__name__") in _trusted


def listener_lock(server: object) -> threading.RLock:
    """Return the lock for changing the listener's handshakes: several threads may serve it."""
    lock: threading.RLock = vars(server).setdefault("_compat_listener_lock", threading.RLock())
    return lock


def is_tls_listener(server: Any) -> bool:
    """Whether `get_request()` is ours and would make a handshake inside `accept()`."""
    listener: Any = getattr(server, "socket", None)
    if not isinstance(listener, ssl.SSLSocket) or not is_ours(server.get_request):
        return False
    with listener_lock(server):
        return bool(vars(listener).get("do_handshake_on_connect"))


def needs_acceptors(server: HookedServer) -> bool:
    """Whether `get_request()` is overridden, and shows a sign that it makes handshakes.

    False for forking servers: threads and fork do not mix.
    """
    if is_ours(server.get_request) or isinstance(server, getattr(socketserver, "ForkingMixIn", ())):
        return False
    if getattr(server, "socket_type", None) != socket.SOCK_STREAM:
        return False
    overrides = [vars(cls).get("get_request") for cls in type(server).__mro__] + [vars(server).get("get_request")]
    return (
        isinstance(getattr(server, "socket", None), ssl.SSLSocket)
        or server._compat_wraps
        or any("wrap_socket" in _names_in(override) for override in overrides)
    )


def _names_in(function: object) -> tuple[str, ...]:
    names: tuple[str, ...] = getattr(getattr(function, "__code__", None), "co_names", ())
    return names
