"""serve() and serve_datagrams(): the object for both ways to use a server, and arguments that are wrong."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import re
import socket
import ssl
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

import asyncserver
from asyncserver import Stream
from tests.kit.clients import Client
from tests.kit.handlers import upper, upper_datagram
from tests.kit.waiting import PATIENCE, until

SERVE: dict[str, tuple[Callable[..., asyncserver.Serving], Any]] = {
    "serve": (asyncserver.serve, upper),
    "serve_datagrams": (asyncserver.serve_datagrams, upper_datagram),
}


@pytest.fixture(params=list(SERVE))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def serve(name: str) -> Callable[..., asyncserver.Serving]:
    """Serve capitals on a free port of 127.0.0.1."""
    function, handler = SERVE[name]
    return functools.partial(function, handler, "127.0.0.1", 0)


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


async def ask(address: Any) -> bytes:
    async with Client.connect(address) as client:
        return await client.ask(b"hello")


# -- the two ways


async def test_with_block_serves_and_drains(serve: Callable[..., asyncserver.Serving]) -> None:
    """Bound on entry, closed on exit, also when the block raises."""
    with pytest.raises(LookupError):
        async with serve() as server:
            assert isinstance(server, asyncserver.Server)
            (sock,) = server.sockets
            raise LookupError
    assert sock.fileno() == -1
    assert not server.sockets


class Closing:
    """A handler that knows its server, answers one question and closes it."""

    def __asyncserver_handler__(self, server: asyncserver.Server) -> Closing:
        self.server = server
        return self

    async def __call__(self, source: Any) -> bytes | None:
        if isinstance(source, asyncserver.Datagram):
            await self.server.close()
            return source.data.upper()
        await source.send((await source.receive_exactly(5)).upper())
        await self.server.close()
        return None


async def test_await_serves_until_closed() -> None:
    """`await serve(...)` returns when somebody has closed the server."""
    with listening() as sock:
        address = sock.getsockname()
        running = asyncio.ensure_future(asyncserver.serve(Closing(), sock=sock))
        assert await ask(address) == b"HELLO"
        await asyncio.wait_for(running, PATIENCE)
        assert sock.fileno() == -1


@pytest.mark.parametrize("start", ["create_task", "ensure_future", "wait_for", "gather", "TaskGroup"])
async def test_serving_is_a_coroutine(start: str) -> None:
    """Whatever takes a coroutine takes it; cancelling it drains and ends it."""
    with listening() as sock:
        address = sock.getsockname()
        serving = asyncserver.serve(upper, sock=sock)
        assert asyncio.iscoroutine(serving)

        async def serve_in_a_group() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(serving)

        task: asyncio.Future[Any]
        if start == "TaskGroup":
            task = asyncio.create_task(serve_in_a_group())
        elif start == "wait_for":
            task = asyncio.create_task(asyncio.wait_for(serving, PATIENCE))
        elif start == "gather":
            task = asyncio.gather(serving)
        elif start == "create_task":
            task = asyncio.create_task(serving)
        else:
            task = asyncio.ensure_future(serving)
        assert await ask(address) == b"HELLO"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sock.fileno() == -1


async def test_serving_in_an_anyio_task_group() -> None:
    """With functools.partial, as anyio wants it; cancelling the scope drains and ends it."""
    with listening() as sock:
        address = sock.getsockname()
        async with anyio.create_task_group() as group:
            group.start_soon(functools.partial(asyncserver.serve, upper, sock=sock))
            assert await ask(address) == b"HELLO"
            group.cancel_scope.cancel()
        assert sock.fileno() == -1


def test_asyncio_run_takes_it() -> None:
    """The smallest program: asyncio.run(serve(...)), here with a handler that closes the server."""
    for place in ({"host": "127.0.0.1", "port": 0}, {}):
        handler = Closing()
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        with sock, socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.sendto(b"hello", sock.getsockname())
            if place:
                with listening() as bound, socket.create_connection(bound.getsockname()) as stream:
                    stream.sendall(b"hello")
                    asyncio.run(asyncserver.serve(handler, sock=bound))
                    assert stream.recv(5) == b"HELLO"
            else:
                asyncio.run(asyncserver.serve_datagrams(handler, sock=sock))
                assert client.recv(5) == b"HELLO"


def test_anyio_run_takes_a_partial() -> None:
    """The form that the error of the wrong one tells."""
    with listening() as sock, socket.create_connection(sock.getsockname()) as client:
        client.sendall(b"hello")
        anyio.run(functools.partial(asyncserver.serve, Closing(), sock=sock))
        assert client.recv(5) == b"HELLO"


def test_anyio_run_of_the_object_says_what_to_write(name: str) -> None:
    """`anyio.run(serve(...))` calls the object: the error names both right forms."""
    function, handler = SERVE[name]
    serving = function(handler, "127.0.0.1", 0)
    with pytest.raises(TypeError, match=rf"asyncio.run\({name}\(.*functools.partial\({name}, handler"):
        anyio.run(serving)
    serving.close()


async def test_error_of_starting_reaches_whoever_awaits(serve: Callable[..., asyncserver.Serving]) -> None:
    """A server that cannot start raises in both ways."""
    async with serve() as server:
        kind = server.sockets[0].type
        taken = int(server.addresses[0][1])
        function, handler = SERVE["serve" if kind == socket.SOCK_STREAM else "serve_datagrams"]
        with pytest.raises(asyncserver.BindError):
            await function(handler, "127.0.0.1", taken)
        with pytest.raises(asyncserver.BindError):
            async with function(handler, "127.0.0.1", taken):
                pass


async def test_used_twice_says_so(serve: Callable[..., asyncserver.Serving], name: str) -> None:
    """Each call serves once, in one of the two ways."""
    message = rf"this {name}\(\.\.\.\) has been used already: call {name}\(\) again"
    serving = serve()
    async with serving:
        with pytest.raises(RuntimeError, match=message):
            async with serving:
                pass
        with pytest.raises(RuntimeError, match=message):
            await serving
    with pytest.raises(RuntimeError, match=message):
        await serving
    closed = serve()
    closed.close()
    with pytest.raises(RuntimeError, match=message):
        await closed


def test_never_awaited_warns(serve: Callable[..., asyncserver.Serving], name: str) -> None:
    """A forgotten `await` is told, as for any coroutine."""
    with pytest.warns(RuntimeWarning, match=rf"{name}\(\.\.\.\) was never awaited: nothing has been served"):
        serve()
        gc.collect()


async def test_start_that_is_never_awaited_warns(serve: Callable[..., asyncserver.Serving], name: str) -> None:
    """The warning says what was written, not what does it."""
    with pytest.warns(RuntimeWarning, match=rf"coroutine '{name}\(\.\.\.\)\.start' was never awaited"):
        serve().start()  # type: ignore[unused-coroutine]
        gc.collect()


def test_closed_without_use_does_not_warn(serve: Callable[..., asyncserver.Serving]) -> None:
    """close() says that it was meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        serve().close()
        gc.collect()


async def test_exception_thrown_in_comes_out(serve: Callable[..., asyncserver.Serving]) -> None:
    """As from a coroutine that has not begun."""
    with pytest.raises(LookupError):
        serve().throw(LookupError())


# -- wrong options


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("serve", {"backlog": -1}, ValueError, "backlog must be at least 0, got -1"),
        ("serve", {"backlog": None}, TypeError, "backlog must be a whole number, got None"),
        ("serve", {"max_connections": 0}, ValueError, "max_connections must be at least 1, got 0"),
        ("serve", {"max_connections": 1.5}, TypeError, "max_connections must be a whole number, got 1.5"),
        ("serve", {"max_connections": True}, TypeError, "max_connections must be a whole number, got True"),
        ("serve", {"max_connections_per_host": 0}, ValueError, "max_connections_per_host must be at least 1, got 0"),
        ("serve", {"idle_timeout": 0}, ValueError, "idle_timeout must be more than 0 seconds, got 0"),
        ("serve", {"idle_timeout": "1"}, TypeError, "idle_timeout must be a number of seconds, got '1'"),
        ("serve", {"idle_timeout": float("nan")}, ValueError, "idle_timeout must be more than 0 seconds, got nan"),
        ("serve", {"keepalive": "2"}, TypeError, "keepalive must be a number of seconds, got '2'"),
        ("serve", {"keepalive": float("nan")}, ValueError, "keepalive must be more than 0 seconds, got nan"),
        ("serve", {"keepalive": 1.9}, ValueError, "keepalive must be at least 2 seconds, got 1.9: the kernel"),
        ("serve", {"drain_timeout": -1}, ValueError, "drain_timeout must be at least 0 seconds, got -1"),
        ("serve", {"drain_timeout": None}, TypeError, "drain_timeout must be a number of seconds, got None"),
        ("serve", {"ssl_handshake_timeout": 0}, ValueError, "ssl_handshake_timeout must be more than 0 seconds, got 0"),
        (
            "serve",
            {"ssl": True},
            TypeError,
            "ssl must be an ssl.SSLContext, such as asyncserver.tls_context() makes; got True",
        ),
        ("serve", {"ssl": ssl.create_default_context()}, ValueError, "ssl got a context for clients"),
        ("serve_datagrams", {"max_pending": 0}, ValueError, "max_pending must be at least 1, got 0"),
        ("serve_datagrams", {"max_pending": None}, TypeError, "max_pending must be a whole number, got None"),
        ("serve_datagrams", {"max_datagram_size": 0}, ValueError, "max_datagram_size must be at least 1, got 0"),
        ("serve_datagrams", {"max_datagram_size": "x"}, TypeError, "max_datagram_size must be a whole number, got 'x'"),
        ("serve_datagrams", {"drain_timeout": "x"}, TypeError, "drain_timeout must be a number of seconds, got 'x'"),
    ],
)
def test_wrong_option_is_told_at_once(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    """Each error names the option, the value, and what would be right."""
    function, handler = SERVE[name]
    with pytest.raises(error, match=re.escape(message)):
        function(handler, "127.0.0.1", 0, **options).close()


def test_keepalive_of_a_unix_socket(tmp_path: Path) -> None:
    """It has no effect there, and is refused; among descriptors it is not looked for."""
    with pytest.raises(ValueError, match="keepalive=60 has no effect on a Unix socket"):
        asyncserver.serve(upper, path=tmp_path / "s", keepalive=60).close()
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ValueError, match="has no effect on a Unix socket"):
        asyncserver.serve(upper, sock=sock, keepalive=60).close()


def test_keepalive_of_vsock() -> None:
    """It has no effect there either."""
    with pytest.raises(ValueError, match="keepalive=60 has no effect on VSOCK"):
        asyncserver.serve(upper, vsock=5000, keepalive=60).close()


@pytest.mark.parametrize(
    ("seconds", "idle", "interval", "count"),
    [(2, 1, 1, 1), (3.9, 1, 1, 2), (10, 3, 1, 7), (60, 20, 5, 8), (float("inf"), 32767, 8191, 8)],
)
async def test_keepalive_is_inherited(seconds: float, idle: int, interval: int, count: int) -> None:
    """Accepted sockets ask idle peers, and for no longer than the time in whole seconds."""
    asked: list[list[int]] = []

    async def look(stream: Stream) -> None:
        sock = stream.extra(SocketAttribute.raw_socket)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        asked.append([sock.getsockopt(socket.IPPROTO_TCP, option) for option in options])
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    async with (
        asyncserver.serve(look, "127.0.0.1", 0, keepalive=seconds) as server,
        Client.connect(server.addresses[0]),
    ):
        await until(lambda: asked)
    assert asked == [[idle, interval, count]]
    assert idle + interval * count <= seconds


async def test_infinite_and_no_drain_timeout() -> None:
    """Infinity waits as long as it takes; 0 not at all."""
    for seconds in (float("inf"), 0):
        async with (
            asyncserver.serve(upper, "127.0.0.1", 0, drain_timeout=seconds, idle_timeout=1e9) as server,
            Client.connect(server.addresses[0]),
        ):
            await until(lambda server=server: server.stats().active == 1)  # type: ignore[misc]
            report = await server.close()
            assert report.completed + report.cancelled == 1


# -- the wrong `with`


@pytest.mark.filterwarnings("error")
async def test_plain_with_block_is_told(name: str, serve: Callable[..., asyncserver.Serving]) -> None:
    """On every Python; that it was never awaited is not told, too."""
    serving: Any = serve()
    advice = rf"`with {name}\(\.\.\.\)` lacks its async: write `async with {name}\(\.\.\.\) as server`"
    with pytest.raises(TypeError, match=advice), serving:
        pytest.fail("not entered")
    serving = serve()
    with pytest.raises(TypeError, match=r"in a program without a loop `with asyncserver\.background\("):
        contextlib.ExitStack().enter_context(serving)
    del serving
    gc.collect()


@pytest.mark.filterwarnings("error")
async def test_background_in_a_coroutine_is_told(serve: Callable[..., asyncserver.Serving]) -> None:
    """Where there is a loop it is the wrong one; nothing is started."""
    beside: Any = asyncserver.background(serve())
    with pytest.raises(TypeError, match=r"`async with background\(\.\.\.\)`: in a coroutine write `async with serve\("):
        async with beside:
            pytest.fail("not entered")
    del beside
    gc.collect()
