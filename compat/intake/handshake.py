"""TLS handshakes that cannot hold up a server: beside the accepting path, and with a time limit."""

from __future__ import annotations

import contextlib
import functools
import socket
import ssl
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from compat.intake.overrides import listener_lock
from compat.pool.executor import ThreadPool
from compat.pool.openssl import clear_errors

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from compat.intake.overrides import HookedServer

PATIENCE_SECONDS = 0.05  # a client that needs longer takes a thread, without an error
MAX_ACCEPTORS = 100  # silent clients hold one each, until the time limit of the handshake


def without_handshake(server: HookedServer) -> tuple[ssl.SSLSocket, Any]:
    """Call `get_request()` of a TLS listener, and leave the handshake to be done."""
    listener = server.socket
    with listener_lock(server):
        listener.do_handshake_on_connect = False
        try:
            request, client_address = server.get_request()
        finally:
            listener.do_handshake_on_connect = True
    request.do_handshake_on_connect = True
    return request, client_address


def with_limited_handshake(server: HookedServer) -> tuple[ssl.SSLSocket, Any]:
    """Get a request and do its handshake, where no loop runs. Raises OSError if that fails."""
    request, client_address = without_handshake(server)
    timeout: float | None = request.gettimeout()
    try:
        request.settimeout(server.ssl_handshake_timeout)
        request.do_handshake()
    except BaseException:
        clear_errors()  # the program may use TLS in this thread
        request.close()
        raise
    request.settimeout(timeout)
    return request, client_address


class Serving(Protocol):
    """What a handshake needs of the serving loop; except `wake()`, in the serving thread only."""

    server: HookedServer
    loop: asyncio.SelectorEventLoop
    handshakes: set[Handshake]

    def soon(self, step: Callable[[], object]) -> None:
        """Run a step outside the running loop."""

    def hold(self, seconds: float) -> None:
        """Take no request from the listener for `seconds`."""

    def go_on(self) -> None:
        """End a `hold`."""

    def failed(self) -> bool:
        """Whether the last attempt to get a request failed."""

    def wake(self) -> None:
        """Make the serving thread look at its state."""


class Handshake:
    """The handshake of one accepted socket, and then its hooks, in the serving thread."""

    def __init__(self, serving: Serving, request: ssl.SSLSocket, client_address: Any) -> None:
        self.serving = serving
        self.request = request
        self.client_address = client_address
        self.timeout: float | None = request.gettimeout()
        request.setblocking(False)
        limit = serving.server.ssl_handshake_timeout
        self.timer: asyncio.TimerHandle | None = None
        if limit is not None:
            self.timer = serving.loop.call_later(limit, self.fail)
        serving.handshakes.add(self)

    def step(self) -> None:
        """Go as far as the bytes allow; outside the loop, since the context has callbacks."""
        if self.request.fileno() < 0:  # the time was up
            return
        try:
            self.request.do_handshake()
        except ssl.SSLWantReadError:
            self.serving.loop.add_reader(self.request.fileno(), self._ready)
        except ssl.SSLWantWriteError:
            self.serving.loop.add_writer(self.request.fileno(), self._ready)
        except (OSError, ValueError):  # as in the stdlib: closed without a log line or a hook
            clear_errors()  # the program may use TLS in this thread
            self.fail()
        else:
            self._end()
            self.request.settimeout(self.timeout)
            self.serving.server._compat_proceed(self.request, self.client_address)

    def fail(self) -> None:
        """End the connection; close() does not, if forked children have copies of the socket."""
        self._end()
        with contextlib.suppress(OSError):  # reset already
            socket.socket.shutdown(self.request, socket.SHUT_RDWR)
        self.request.close()

    def _ready(self) -> None:
        self._unwatch()
        self.serving.soon(self.step)

    def _end(self) -> None:
        self._unwatch()
        self.serving.handshakes.discard(self)
        if self.timer is not None:
            self.timer.cancel()

    def _unwatch(self) -> None:
        descriptor = self.request.fileno()
        if descriptor >= 0:
            self.serving.loop.remove_reader(descriptor)
            self.serving.loop.remove_writer(descriptor)


class Acceptors:
    """Threads for a `get_request()` override that wraps the socket, and so waits for the client.

    The serving thread waits a moment for each, which keeps the order of quick clients, and goes on
    without the slow ones. All other hooks run in the serving thread as always.
    """

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.server: HookedServer = serving.server
        self.pool: ThreadPool = ThreadPool(MAX_ACCEPTORS, name="get_request", daemon=True)
        self.outcomes: deque[tuple[Any, Any, BaseException | None]] = deque()
        self.closed: bool = False

    def full(self) -> bool:
        """Whether every thread waits for its client."""
        return len(self.pool) >= MAX_ACCEPTORS

    def start(self) -> None:
        """Call `get_request()` in a thread."""
        self.serving.hold(PATIENCE_SECONDS)
        _note_sockets()
        try:
            self.pool.add(self._accept, [])
            self.pool.wake()
        except RuntimeError:  # no thread can start: rather block than take no request
            self.pool.take_back()
            self.outcomes.append(self._get())
            self.serving.wake()
        limit = self.server.ssl_handshake_timeout
        if limit is not None:
            self.serving.loop.call_later(limit, self._cut_off, limit)

    def deliver(self) -> None:
        """Go on with the requests that the threads have got."""
        while self.outcomes:
            self.serving.go_on()
            request, client_address, error = self.outcomes.popleft()
            if isinstance(error, OSError):
                self.server._compat_error = error
                self.serving.failed()
            elif error is not None:
                raise error
            else:
                # A handshake empties OpenSSL's queue of errors, but that one was in another thread.
                self.pool.clear_tls_errors()
                self.server._compat_proceed(request, client_address)

    def close(self) -> None:
        """Wake the threads that still wait for a client: no loop is left to take their requests."""
        self.closed = True
        self.pool.shutdown(wait=False)
        self._discard()
        if len(self.pool):
            threading.Thread(target=self._sweep, name="get_request-sweep", daemon=True).start()

    def _sweep(self) -> None:
        """Cut off all that are left, repeatedly, as one may be just before its handshake."""
        while len(self.pool):
            self._cut_off(0.0)
            time.sleep(PATIENCE_SECONDS)

    def _get(self) -> tuple[Any, Any, BaseException | None]:
        try:
            request, client_address = self.server.get_request()
        except BaseException as error:
            return None, None, error
        return request, client_address, None

    def _accept(self, sockets: list[ssl.SSLSocket]) -> None:
        _sockets[threading.get_ident()] = sockets
        try:
            outcome = self._get()
        finally:
            _sockets.pop(threading.get_ident(), None)
        sockets.clear()  # from here on `_cut_off` must not shut down the outcome's socket
        self.outcomes.append(outcome)
        self.serving.wake()
        if self.closed:
            self._discard()

    def _discard(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                request, _, error = self.outcomes.popleft()
                if error is None:
                    self.server.shutdown_request(request)

    def _cut_off(self, limit: float) -> None:
        """Wake threads whose client has been silent for `limit`, by shutting their sockets down."""
        for call in self.pool.calls():
            if call.age() >= limit - PATIENCE_SECONDS:
                (sockets,) = call.args
                for waiting in list(sockets):
                    if waiting is not getattr(self.server, "socket", None):
                        with contextlib.suppress(OSError):
                            socket.socket.shutdown(waiting, socket.SHUT_RDWR)


# Only the frame of the blocked `do_handshake` knows its socket, and the variables of a frame that
# another thread runs must not be read: without the GIL that corrupts memory (python/cpython
# gh-128421). So each thread notes the TLS sockets that it makes, by the interpreter's audit event.

# By the thread's identity: with values in a `threading.local` the thread would not be used again.
_sockets: dict[int, list[ssl.SSLSocket]] = {}


@functools.cache
def _note_sockets() -> None:
    """Note sockets that are made from now on, for ever: so only where a server needs it."""
    sys.addaudithook(_note_socket)


def _note_socket(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.__new__" and isinstance(args[0], ssl.SSLSocket):
        sockets = _sockets.get(threading.get_ident())
        if sockets is not None:
            sockets.append(args[0])
