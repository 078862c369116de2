"""Serving: a server that has yet to start, and the ways to start it."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ._logger import logger as _logger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator, Iterable, Sequence
    from types import TracebackType

    from .listening.binding import Binding, BoundSocket
    from .servers.server import Server

__all__ = ["Serving"]

# The module that the command line imports for its handler, which must not serve by itself. In
# threads of its own, where this variable is not set, it may.
importing: ContextVar[str | None] = ContextVar("importing", default=None)


class Serving(Coroutine[Any, Any, None]):
    """What `serve()` and `serve_datagrams()` return: a server that has yet to start.

    Use it once, in one of three ways:

    * `await serving`: binds, serves until the server is closed or the task cancelled, drains,
      returns. A coroutine: `asyncio.run(serving)` and `asyncio.create_task(serving)` take it too.
    * `async with serving as server:` has bound on entry, serves in the background, drains on exit.
    * `server = await serving.start()`: has bound, serves in the background until `server.close()`.

    Example::

        async with asyncserver.serve(handler, "127.0.0.1", 0) as server:
            print("serving on", *server.addresses)
    """

    def __init__(
        self,
        name: str,
        binding: Binding,
        kind: socket.SocketKind,
        start: Callable[[list[BoundSocket]], Server],
        drain_timeout: float,
    ) -> None:
        self.drain_timeout = drain_timeout
        self._name = name
        self._binding = binding
        self._kind = kind
        self._start = start
        self._bound: list[BoundSocket] | None = None
        self._used = False
        self._held = False
        self._coroutine: Coroutine[Any, Any, None] | None = None
        self._server: Server | None = None

    def start(self) -> Coroutine[Any, Any, Server]:
        """Bind and start; returns the running Server, which serves until `await server.close()`.

        For what begins and ends in two places: a notebook, setUp and tearDown, a framework. A
        server that is never closed ends with its loop, without a drain, and with a ResourceWarning.
        If the caller is cancelled meanwhile, nothing is left open.

        Raises:
            BindError: an address could not be bound; nothing is left open.
            RuntimeError: it has been started already, or otherwise used.
        """
        self._use()  # now: a task that is cancelled before its first step never comes that far
        started = self._open()
        # Python tells it if its await is forgotten.
        started.__qualname__ = f"{self._name}(...).start"  # type: ignore[attr-defined]  # a CoroutineType has it
        return started

    async def __aenter__(self) -> Server:
        """Start; see `start()`."""
        self._server = await self.start()
        return self._server

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Drain and close; returns when the last handler has ended or was given up."""
        assert self._server is not None
        await self._server._end()

    if not TYPE_CHECKING:  # which refuses a plain `with` by itself

        def __enter__(self) -> None:
            """Raise, and say what to write: a server begins and ends in a loop."""
            self._used = True
            raise TypeError(
                f"`with {self._name}(...)` lacks its async: write `async with {self._name}(...) as server`; in a "
                f"program without a loop `with asyncserver.background({self._name}(...)) as server`"
            )

        def __exit__(self, *exc: object) -> None:
            """Never called; without it Python does not call `__enter__()`."""

    def __await__(self) -> Generator[Any, Any, None]:
        """Serve until closed or cancelled."""
        return self._running().__await__()

    def __call__(self) -> Serving:
        """Raise, and say what to write: `anyio.run` wants the function and its arguments."""
        raise TypeError(
            f"{self._name}(...) is not a function; write asyncio.run({self._name}(handler, ...)) "
            f"or anyio.run(functools.partial({self._name}, handler, ...))"
        )

    def send(self, value: Any) -> Any:
        """Go on, as a coroutine."""
        return self._running().send(value)

    def throw(self, *exc: Any) -> Any:
        """Raise inside, as in a coroutine."""
        return self._running().throw(*exc)

    def close(self) -> None:
        """Do not start, or, as a coroutine, do not go on."""
        self._used = True
        if self._coroutine is not None:
            self._coroutine.close()

    def __del__(self) -> None:
        """Warn about a server that was never started."""
        if not self._used:
            warnings.warn(
                f"{self._name}(...) was never awaited: nothing has been served",
                RuntimeWarning,
                source=self,
                stacklevel=2,
            )

    def open_slots(self, count: int) -> list[list[BoundSocket]]:
        """Bind for `count` worker processes, each of which then calls `take()`; see Binding."""
        self._use()
        return self._binding.open_slots(self._kind, count)

    def take(self, bound: list[BoundSocket]) -> None:
        """Serve on these sockets, which have been bound already."""
        self._bound = bound
        self._used = False

    def hold(self) -> None:
        """Bind when it starts, and take nothing until the server's `_begin()` is called."""
        self._held = True

    async def _open(self) -> Server:
        if asyncio._get_running_loop() is None:
            raise RuntimeError(
                f"{self._name}() needs a running loop of asyncio's or uvloop's: trio has none; with anyio.run() "
                'give backend="asyncio"'
            )
        import anyio  # noqa: PLC0415 - its server has it; a tenth of the import's time

        # It imports the rest of itself at its first use. In close() no descriptor may be left.
        anyio.current_effective_deadline()
        bound = self._bound if self._bound is not None else await self._binding.open(self._kind)
        try:
            server = self._start(bound)
        except BaseException:  # a protocol's factory, for example
            for one in bound:
                one.close()
            raise
        if not self._held:
            server._begin()
        return server

    def _use(self) -> None:
        if self._used:
            raise RuntimeError(f"this {self._name}(...) has been used already: call {self._name}() again")
        self._used = True
        if (module := importing.get()) is not None:
            raise RuntimeError(
                f"the command line imports {module} for its handler, and that module serves by itself: where it calls "
                f'run() or {self._name}(), put it under `if __name__ == "__main__":`'
            )

    def _running(self) -> Coroutine[Any, Any, None]:
        if self._coroutine is None:
            self._use()
            self._coroutine = self._serve()
        return self._coroutine

    async def _serve(self) -> None:
        server = await self._open()
        from .reports.logs import about  # noqa: PLC0415 - its server has it

        _logger.info(
            "serving on %s; `await %s()` returns when it is closed; for a Server write `await %s(...).start()`",
            server.label,
            self._name,
            self._name,
            extra=about(server),
        )
        try:
            await server.wait_closed()
        finally:
            await server._end()


def check_servings(function: str, servings: Sequence[object]) -> None:
    """Raise TypeError unless these are what the function of that name can start."""
    for serving in servings:
        if not isinstance(serving, Serving):
            advice = f": write {function}(serve(handler, host, port))" if callable(serving) else ""
            handler_class = getattr(serving, "RequestHandlerClass", None)
            if handler_class is not None:  # a server of socketserver, which serves by itself
                advice = f": write {function}(serve(compat.hosted({handler_class.__name__}), host, port))"
            raise TypeError(f"{function}() expects what serve() and serve_datagrams() return; got {serving!r}{advice}")
    if not servings:
        raise TypeError(
            f"{function}() needs a server: {function}(serve(handler, host, port)); got none. systemd_sockets() gives "
            "none where systemd has opened none for this process"
        )


def give_up(servings: Iterable[object]) -> None:
    """Close those that have not started; they must not warn: an error was raised already."""
    for serving in servings:
        if isinstance(serving, Serving):
            serving.close()
