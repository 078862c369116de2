"""on_error and other callables given as options: checked when the server is made, and awaited where they are async."""

from __future__ import annotations

import asyncio
import functools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, MagicMock

import pytest

import asyncserver
from tests.kit.checks import errors_in
from tests.kit.clients import Client
from tests.kit.handlers import upper
from tests.kit.waiting import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HOST = "127.0.0.1"


class Raising(asyncio.Protocol):
    """Fails at the first bytes."""

    def data_received(self, data: bytes) -> None:
        raise LookupError


async def fails(source: Any) -> None:
    if not isinstance(source, asyncserver.Datagram):
        await source.receive()
    raise LookupError


def serving(kind: str, **options: Any) -> asyncserver.Serving:
    if kind == "datagram":
        return asyncserver.serve_datagrams(fails, HOST, 0, **options)
    return asyncserver.serve(asyncserver.from_protocol(Raising) if kind == "protocol" else fails, HOST, 0, **options)


async def ask(kind: str, server: asyncserver.Server) -> None:
    """Make a handler fail."""
    address: Any = server.addresses[0]
    if kind == "datagram":
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=address
        )
        transport.sendto(b"x")
        transport.close()
        return
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"x")
    assert await reader.read() == b""
    writer.close()


@pytest.fixture(params=["stream", "protocol", "datagram"])
def kind(request: pytest.FixtureRequest) -> str:
    result: str = request.param
    return result


# -- an async one


def async_function(call: Callable[[BaseException, Any], Any]) -> Any:
    async def on_error(exc: BaseException, source: Any) -> None:
        await call(exc, source)

    return on_error


def async_call(call: Callable[[BaseException, Any], Any]) -> Any:
    class OnError:
        async def __call__(self, exc: BaseException, source: Any) -> None:
            await call(exc, source)

    return OnError()


def partial_function(call: Callable[[BaseException, Any], Any]) -> Any:
    async def on_error(word: str, exc: BaseException, source: Any) -> None:
        await call(exc, source)

    return functools.partial(on_error, "word")


def lambda_of_one(call: Callable[[BaseException, Any], Any]) -> Any:
    return lambda exc, source: call(exc, source)


@pytest.mark.parametrize("form", [async_function, async_call, partial_function, lambda_of_one])
async def test_async_on_error_is_awaited(kind: str, form: Callable[..., Any]) -> None:
    """Whatever its form, to its end, by a drain too."""
    told: list[tuple[BaseException, Any]] = []
    go_on = asyncio.Event()

    async def tell(exc: BaseException, source: Any) -> None:
        await go_on.wait()
        told.append((exc, source))

    async with serving(kind, on_error=form(tell)) as server:
        await ask(kind, server)
        await until(lambda: server.stats().failed == 1)
        closing = asyncio.create_task(server.close())
        await until(lambda: not server.taking)
        assert not told
        go_on.set()
        assert await closing == asyncserver.DrainReport()
        ((exc, source),) = told
    assert isinstance(exc, LookupError)
    assert source.peer_address[0] == HOST


async def test_mock_as_on_error(kind: str) -> None:
    """unittest's, as tests have them."""
    on_error = AsyncMock()
    async with serving(kind, on_error=on_error) as server:
        await ask(kind, server)
        await until(lambda: on_error.await_count == 1)


async def test_async_on_error_that_fails(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, as of one that is not async, and the next error is told too."""

    async def on_error(exc: BaseException, source: Any) -> None:
        await asyncio.sleep(0)
        raise ArithmeticError

    async with serving(kind, on_error=on_error) as server:
        for _ in range(2):
            await ask(kind, server)
        await until(lambda: server.stats().failed == 2)
    assert [record.exc_info[0] for record in errors_in(caplog)].count(ArithmeticError) == 2


async def test_drain_does_not_wait_for_ever(kind: str) -> None:
    """An on_error that hangs is cancelled at the deadline, as a handler is."""
    ended: list[type[BaseException]] = []

    async def on_error(exc: BaseException, source: Any) -> None:
        try:
            await asyncio.Event().wait()
        except BaseException as end:
            ended.append(type(end))
            raise

    async with serving(kind, on_error=on_error, drain_timeout=0) as server:
        await ask(kind, server)
        await until(lambda: server.stats().failed == 1)
    assert ended == [asyncio.CancelledError]


async def test_async_on_error_that_closes_the_server(kind: str) -> None:
    """The drain does not wait for who waits for the drain."""
    reports: list[asyncserver.DrainReport] = []

    async def on_error(exc: BaseException, source: Any) -> None:
        reports.append(await server.close())

    async with serving(kind, on_error=on_error, drain_timeout=PATIENCE * 100) as server:
        await ask(kind, server)
        async with asyncio.timeout(PATIENCE):
            await server.wait_closed()
    assert [(report.cancelled, report.aborted) for report in reports] == [(0, 0)]


# -- what is none


@pytest.mark.parametrize("given", ["nonsense", 3, object(), b"", [], True])
def test_what_cannot_be_called_is_refused(kind: str, given: object) -> None:
    """When the server is made, not when the first handler fails."""
    with pytest.raises(TypeError, match=r"on_error must be a function, `on_error\(exception, source\)`.*; got "):
        serving(kind, on_error=given)


def one_argument(exc: BaseException) -> None: ...


async def three_arguments(exc: BaseException, source: Any, more: Any) -> None: ...


@pytest.mark.parametrize("given", [one_argument, three_arguments, Client.rest, lambda: None])
def test_function_of_other_arguments_is_refused(kind: str, given: object) -> None:
    """With what it is called with, and what it takes."""
    with pytest.raises(TypeError, match=r"on_error is called as on_error\(exception, source\); got .*\("):
        serving(kind, on_error=given)


@pytest.mark.parametrize("given", [print, max, MagicMock(), functools.partial(print, "x"), LookupError])
def test_what_may_take_two_is_taken(kind: str, given: object) -> None:
    """Also where its arguments are not known."""
    serving(kind, on_error=given).close()


async def test_close_callbacks_are_checked() -> None:
    """When they are given: they could only fail, or never run, at the end."""

    async def waits() -> None: ...

    async with asyncserver.serve(upper, HOST, 0) as server:
        for given, expected in (
            (3, "without arguments; got 3"),
            (one_argument, "got one_argument"),
            (waits, "not awaited"),
        ):
            with pytest.raises(TypeError, match=expected):
                server.add_close_callback(given)  # type: ignore[arg-type]


# -- handlers whose attributes say nothing about them


@asynccontextmanager
async def served(handler: Any) -> AsyncIterator[asyncserver.Server]:
    async with asyncserver.serve(handler, HOST, 0) as server:
        yield server


async def test_mock_as_a_handler() -> None:
    """It answers to any attribute, and is served."""
    handler = AsyncMock(side_effect=upper)
    async with served(handler) as server:
        client = await Client.connect(server.addresses[0])
        assert await client.ask(b"hello") == b"HELLO"
        client.close()
        assert server.reading()["completed"] == 0
    assert handler.await_count == 1


async def test_handler_with_methods_of_its_own() -> None:
    """Of whatever name: they are the program's."""

    class Handler:
        def for_server(self, name: str) -> None:
            raise AssertionError

        def pool_stats(self) -> None:
            raise AssertionError

        async def __call__(self, stream: asyncserver.Stream) -> None:
            await upper(stream)

        def __getattr__(self, name: str) -> Any:
            return self.for_server

    async with served(Handler()) as server:
        client = await Client.connect(server.addresses[0])
        assert await client.ask(b"hello") == b"HELLO"
        client.close()
        server.reading()
