"""What may be given as a handler, and what is said about anything else: at once, and not for each client."""

from __future__ import annotations

import asyncio
import functools
import socketserver
from collections.abc import Callable
from typing import Any

import pytest

import asyncserver
from tests.kit.handlers import upper, upper_datagram

SERVE: dict[str, tuple[Callable[..., asyncserver.Serving], Any]] = {
    "serve": (asyncserver.serve, upper),
    "serve_datagrams": (asyncserver.serve_datagrams, upper_datagram),
}


@pytest.fixture(params=list(SERVE))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Legacy(socketserver.BaseRequestHandler):
    """A handler class of the standard library's."""


class SomeProtocol(asyncio.Protocol):
    """A protocol class."""


class Plain:
    """A class that is neither."""


class AsyncCallable:
    """What may be given as an instance, but not as a class."""

    async def __call__(self, source: object) -> None:
        """Do nothing."""


class AsyncMethods:
    """Whose method is taken from the class instead of an object."""

    async def one(self, source: object) -> None:
        """Do nothing."""


def synchronous(source: object) -> None:
    """Not a coroutine function."""


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (synchronous, ["expects a coroutine function, `async def handler(", "got synchronous", "make it `async def`"]),
        (functools.partial(synchronous, 1), ["expects a coroutine function", "got synchronous"]),
        (Legacy, ["got Legacy, a socketserver handler class; wrap it: {name}(compat.hosted(Legacy), ...)"]),
        (SomeProtocol, ["a protocol class; wrap it: {name}(asyncserver.from_protocol(SomeProtocol), ...)"]),
        (Plain, ["got Plain, a class; give a coroutine function, or an instance with `async def __call__`"]),
        (AsyncCallable, ["got AsyncCallable, a class"]),
        (Plain(), ["expects a coroutine function", "Plain object"]),
        (None, ["expects a coroutine function", "got None"]),
        (lambda _: None, ["got ", "<lambda>: for more arguments use functools.partial with an `async def` function"]),
        (AsyncMethods.one, ["one(self, source): it is a method: give that of an object, AsyncMethods().one"]),
        ("app:handler", ["expects a coroutine function", "got 'app:handler'"]),
    ],
)
def test_wrong_handler_is_told_what_to_do(name: str, handler: Any, words: list[str]) -> None:
    """At once, with what was given and what would be right."""
    with pytest.raises(TypeError) as caught:
        SERVE[name][0](handler, "127.0.0.1", 0).close()
    for word in (f"{name}() ", *words):
        assert word.format(name=name) in str(caught.value)


def test_handler_that_has_been_called_is_told_to_be_given_itself(name: str) -> None:
    """`serve(handler(stream), ...)`: without a second message, that it was never awaited."""
    message = r"got what .*one\(\) returns: leave out the parentheses, so that the server can call it"
    with pytest.raises(TypeError, match=message):
        SERVE[name][0](AsyncMethods().one(None), "127.0.0.1", 0)


async def test_right_handlers_of_every_form_are_taken(name: str) -> None:
    """Functions, methods, partials, partials of partials, instances with `async def __call__`, adapters."""

    async def with_more(extra: int, source: object) -> None:
        await asyncio.sleep(extra)

    function = SERVE[name][0]
    handlers: list[Any] = [
        SERVE[name][1],
        AsyncCallable(),
        AsyncCallable().__call__,
        functools.partial(with_more, 1),
        functools.partial(functools.partial(with_more), 1),
        asyncserver.from_protocol(asyncio.DatagramProtocol if "datagrams" in name else SomeProtocol),
    ]
    for handler in handlers:
        async with function(handler, "127.0.0.1", 0):
            pass


async def callback(reader: object, writer: object) -> None:
    """For from_callback()."""


async def three(a: object, b: object, c: object) -> None:
    """For nothing."""


def test_handler_of_other_arguments_is_told_what_to_do(name: str) -> None:
    """At once, and not for each client; a pair is most likely a callback of asyncio's, for streams."""
    function: Any = SERVE[name][0]
    with pytest.raises(TypeError, match=rf"{name}\(\) got three\(a.*one argument, the (stream|datagram)"):
        function(three, "127.0.0.1", 0)
    wanted = r"wrap it: serve\(asyncserver\.from_callback\(callback\), \.\.\.\)" if name == "serve" else "one argument"
    with pytest.raises(TypeError, match=rf"{name}\(\) got callback\(reader.*{wanted}"):
        function(callback, "127.0.0.1", 0)
    with pytest.raises(TypeError, match=r"got three\(b, c\): "):
        function(functools.partial(three, 1), "127.0.0.1", 0)
    function(functools.partial(three, 1, 2), "127.0.0.1", 0).close()


async def test_decorated_handlers_own_signature_counts(name: str) -> None:
    """A decorator may make a handler of something else, and functools.wraps shows that other's arguments."""
    called = asyncio.Event()

    @functools.wraps(callback)
    async def handler(source: Any) -> None:
        called.set()

    async with SERVE[name][0](handler, "127.0.0.1", 0):
        assert not called.is_set()


@pytest.mark.parametrize(
    ("adapter", "given", "words"),
    [
        (asyncserver.from_callback, upper, r"got upper\(stream.* given to serve\(\) as it is"),
        (asyncserver.from_callback, three, r"\(reader, writer\); got three\(a"),
        (asyncserver.from_callback, SomeProtocol, r"wrap it: asyncserver\.from_protocol\(SomeProtocol\)"),
        (asyncserver.from_callback, Legacy, r"wrap it: compat\.hosted\(Legacy\)"),
        (asyncserver.from_protocol, Legacy, r"wrap it: compat\.hosted\(Legacy\)"),
        (asyncserver.from_protocol, asyncio.StreamReaderProtocol, "without arguments; got StreamReaderPro"),
    ],
)
def test_adapter_of_the_wrong_kind_says_what_is_right(adapter: Callable[[Any], object], given: Any, words: str) -> None:
    """Classes and functions that another adapter takes, or none."""
    with pytest.raises(TypeError, match=words):
        adapter(given)


def test_protocol_of_the_other_kind_is_refused() -> None:
    """Where the factory is a class; one that is of both kinds may be served both ways."""

    class Both(SomeProtocol, asyncio.DatagramProtocol):
        pass

    with pytest.raises(TypeError, match=r"serve\(\) got .*which is for serve_datagrams\(\)"):
        asyncserver.serve(asyncserver.from_protocol(asyncio.DatagramProtocol), "127.0.0.1", 0)
    with pytest.raises(TypeError, match=r"serve_datagrams\(\) got .*which is for serve\(\)"):
        asyncserver.serve_datagrams(asyncserver.from_protocol(SomeProtocol), "127.0.0.1", 0)
    for function, _ in SERVE.values():
        function(asyncserver.from_protocol(Both), "127.0.0.1", 0).close()


@pytest.mark.parametrize("adapter", [asyncserver.from_protocol, asyncserver.from_callback])
def test_adapter_of_what_cannot_be_called_says_so(adapter: Callable[[Any], object]) -> None:
    """An instance instead of a class, most likely."""
    with pytest.raises(TypeError, match=rf"{adapter.__name__}\(\) expects .*got 7"):
        adapter(7)


# -- options that would do nothing


def test_option_without_effect_is_refused() -> None:
    """Whoever gave it expects something that would not happen."""
    with pytest.raises(ValueError, match=r"ssl_handshake_timeout=5 has no effect without ssl: leave it out"):
        asyncserver.serve(upper, "127.0.0.1", 0, ssl_handshake_timeout=5)
    with pytest.raises(ValueError, match=r"proxy_timeout=9 is for the PROXY protocol: add proxy_protocol=True"):
        asyncserver.serve(upper, "127.0.0.1", 0, proxy_timeout=9)
    handler = asyncserver.from_protocol(asyncio.DatagramProtocol)
    with pytest.raises(ValueError, match=r"max_pending=5 has no effect with from_protocol\(\): a protocol takes each"):
        asyncserver.serve_datagrams(handler, "127.0.0.1", 0, max_pending=5)
    asyncserver.serve_datagrams(handler, "127.0.0.1", 0, max_pending=1024).close()
