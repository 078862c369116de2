"""The server classes: the standard library's own, with another way to wait.

Every class subclasses its namesake in `socketserver`, so hooks, their order and `isinstance` stay
what they were. Replaced are: how `serve_forever()` waits (`compat.intake`), where threaded handlers
run (`compat.threads`), TLS handshakes (`compat.intake.handshake`), which children are reaped
(`compat.forking`), and how `shutdown()` wakes the loop.

Programs use everything they can see, so names of our own begin with `_compat_`, except for the
class attributes that programs are to set: `ssl_handshake_timeout` here, `max_threads`,
`reuse_threads` and `graceful_timeout` in `ThreadingMixIn`.
"""

import asyncio
import os
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable
from socket import SOMAXCONN
from typing import Any, TypeVar, cast

from compat.intake.batches import Source
from compat.intake.handshake import with_limited_handshake
from compat.intake.loop import EXHAUSTED, RETRY_SECONDS, ServingLoop, warn_of_waiting
from compat.intake.overrides import is_ours, is_tls_listener, trust
from compat.pool.openssl import clear_errors

trust(__name__)

_C = TypeVar("_C", bound=type)
_Factory = Callable[[Any, Any, Any], Any]


def redeclares(cls: _C) -> _C:
    """Give a class every attribute of its namesake in `socketserver` as its own.

    In `class UDPServer(TCPServer, socketserver.UDPServer)` our TCPServer comes before the
    stdlib's UDPServer and would win. Also, an attribute that a program sets on TCPServer
    must not show in UDPServer.
    """
    for name, value in vars(getattr(socketserver, cls.__name__)).items():
        calls_super = "__class__" in getattr(getattr(value, "__code__", None), "co_freevars", ())
        special = name.startswith("__") and name.endswith("__")
        if name not in vars(cls) and not special and not calls_super:
            setattr(cls, name, value)
    return cls


@redeclares
class BaseServer(socketserver.BaseServer):
    """The base of all servers; see `socketserver.BaseServer` for what may be called and overridden.

    `shutdown()` takes effect at once, from any thread, before, while and after serving.
    Called by the serving thread itself (from a handler of a server without threads, or a
    signal handler) it returns at once, and serving ends after the current request; the
    stdlib deadlocks there. Before serving it makes the next `serve_forever()` return at
    once, as in the stdlib, but does not wait for that.
    """

    # Seconds that a TLS listener gives a client for the handshake; None is no limit. asyncio and
    # nginx give 60; a client that needs more than 30 will not succeed.
    ssl_handshake_timeout: float | None = 30.0

    __is_shut_down: threading.Event
    _compat_loops: list[ServingLoop] | tuple[()] = ()
    _compat_error: OSError | None = None  # what the last get_request() raised
    _compat_wraps = False  # a get_request() override has returned a TLS socket
    _compat_made = 0  # the inode of the socket that it has made
    _compat_unwarned = False
    _compat_batching = 0  # the thread that takes a batch and will wake the workers at its end

    def __init__(self, server_address: Any, RequestHandlerClass: _Factory) -> None:  # noqa: N803
        socketserver.BaseServer.__init__(self, server_address, RequestHandlerClass)
        self.__is_shut_down.set()  # so that shutdown() waits only for a serve_forever() that runs

    # Public code sets `_BaseServer__shutdown_request` from handlers and signal handlers. As a
    # property it wakes the loop at once; so the loop need not look every poll_interval.
    @property
    def __shutdown_request(self) -> bool:
        requested: bool = vars(self).get("_BaseServer__shutdown_request", False)
        return requested

    @__shutdown_request.setter
    def __shutdown_request(self, requested: bool) -> None:
        vars(self)["_BaseServer__shutdown_request"] = requested
        if requested:
            self._compat_wake()

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve until `shutdown()`.

        Args:
            poll_interval: seconds between two calls of `service_actions()` while nothing
                arrives, None for none. Nothing else is polled; a server that does not
                override it does not wake up at all.

        In a thread that runs an event loop already, the stdlib's own loop serves: no other can
        run there.
        """
        if asyncio._get_running_loop() is not None:
            super().serve_forever(poll_interval)
            return
        self.__is_shut_down.clear()
        try:
            if not self.__shutdown_request:
                self._compat_serve(poll_interval)
        finally:
            if not self._compat_loops:  # the last of several threads that serve ends the shutdown
                self.__shutdown_request = False
                self.__is_shut_down.set()

    def _compat_serve(self, poll_interval: float | None) -> None:
        serving = self._compat_make_loop(poll_interval)
        if serving is None:
            return
        loops: list[ServingLoop] = vars(self).setdefault("_compat_loops", [])
        loops.append(serving)  # before the loop first looks whether to stop: no wake-up is missed
        try:
            serving.run()
        finally:
            loops.remove(serving)
            self._compat_look()  # once more: other threads rely on the loop to do it
            serving.close()

    def _compat_make_loop(self, poll_interval: float | None) -> ServingLoop | None:
        """Make the loop as soon as there are descriptors; None if `shutdown()` comes first."""
        warned = False
        while not self.__shutdown_request:
            try:
                return ServingLoop(cast("Any", self), poll_interval)  # its hooks may be anything
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                if not warned:
                    warned = True
                    warn_of_waiting(self, error)
                time.sleep(RETRY_SECONDS)
        return None

    def shutdown(self) -> None:
        """End `serve_forever()` and wait for its end, unless it runs in the calling thread."""
        self.__shutdown_request = True
        if not any(serving.is_mine() for serving in list(self._compat_loops)):
            self.__is_shut_down.wait()

    def _handle_request_noblock(self) -> None:
        """Take one request; also called by programs with a select loop of their own."""
        try:
            if is_tls_listener(self):
                request, client_address = with_limited_handshake(cast("Any", self))
            else:
                request, client_address = self.get_request()
        except OSError as error:
            self._compat_error = error
            return
        if isinstance(request, ssl.SSLSocket):
            self._compat_wraps = True
        self._compat_proceed(request, client_address)

    def _compat_proceed(self, request: Any, client_address: Any) -> None:
        """Do with a request what the stdlib's `_handle_request_noblock` does after getting it."""
        if not self.verify_request(request, client_address):
            self.shutdown_request(request)
            return
        try:
            self.process_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
            self.shutdown_request(request)
        except BaseException:
            self.shutdown_request(request)
            raise
        finally:
            if isinstance(request, ssl.SSLSocket):  # the program may use TLS in this thread, too
                clear_errors()

    # What the loop calls.

    def _compat_stopping(self) -> bool:
        return self.__shutdown_request

    def _compat_wake(self) -> bool:
        """Make the loops look at everything; false when there is none."""
        loops = list(self._compat_loops)
        for serving in loops:
            serving.wake()
        return bool(loops)

    def _compat_has_made(self, descriptor: int) -> bool:
        """Whether the listener was made by the server itself."""
        return os.fstat(descriptor).st_ino == self._compat_made

    def _compat_ticks(self) -> bool:
        """Whether `service_actions()` has to be called even if nothing arrives."""
        return not is_ours(self.service_actions)

    def _compat_take(self, source: Source, poll: Callable[[int], Any], count: int) -> bool:
        """Take up to `count` requests without hooks; false if some have to be called."""
        return False

    def _compat_full(self) -> bool:
        """Whether to take no request now; if so, all loops are woken when that may have changed."""
        return False

    def _compat_hand_over(self) -> bool:
        """Wake workers for what a batch has queued; false when `_compat_look()` is needed."""
        return True

    def _compat_look(self) -> None:
        """Look again for workers for the calls that wait."""


@redeclares
class TCPServer(BaseServer, socketserver.TCPServer):
    """A server on a stream socket; see `socketserver.TCPServer`."""

    # Python 3.15's, with every Python. With the 5 of older ones the kernel drops many connections
    # of a burst: clients wait for seconds, and some give up.
    request_queue_size = SOMAXCONN
    socket: "socket.socket"

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: _Factory,  # noqa: N803  # the stdlib's name
        bind_and_activate: bool = True,
    ) -> None:
        BaseServer.__init__(self, server_address, RequestHandlerClass)
        self.socket = socket.socket(self.address_family, self.socket_type)
        self._compat_made = os.fstat(self.socket.fileno()).st_ino
        if bind_and_activate:
            try:
                self.server_bind()
                self.server_activate()
            except BaseException:
                self.server_close()
                raise

    def server_close(self) -> None:
        """Close the listener. A loop that still serves waits for `shutdown()`, without spinning."""
        for serving in list(self._compat_loops):
            serving.restore_blocking()
        self.socket.close()
        self._compat_wake()


@redeclares
class UDPServer(TCPServer, socketserver.UDPServer):
    """A server on a datagram socket; see `socketserver.UDPServer`."""


@redeclares
class UnixStreamServer(TCPServer, socketserver.UnixStreamServer):
    """A server on a Unix stream socket."""


@redeclares
class UnixDatagramServer(UDPServer, socketserver.UnixDatagramServer):
    """A server on a Unix datagram socket."""
