"""Annotations of users are for the type checker: nothing of ours runs them, as `inspect.signature()` does from 3.14."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from compat import hosted
from tests.kit.cli import command, internet_address
from tests.kit.clients import Client
from tests.kit.programs import python
from tests.kit.sockets import ask_once

# Before 3.14 such annotations fail by themselves, unless they are strings.
FUTURE = "" if sys.version_info >= (3, 14) else "from __future__ import annotations\n"
SOURCE = (
    FUTURE
    + """
import asyncio
import functools
import socketserver
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nowhere import Missing

evaluated = []

def seen(name):
    evaluated.append(name)

async def function(stream: seen("function") | Missing, *, more: Missing = 1) -> Missing:
    async for data in stream:
        await stream.send(data.upper())

class Given:
    field: Missing

    def __init__(self, field: seen("init") = None):
        self.field = field

    async def method(self, stream: seen("method") | Missing) -> Missing:
        await function(stream)

    @staticmethod
    async def static(stream: seen("static") | Missing) -> Missing:
        await function(stream)

    @classmethod
    async def of_the_class(cls, stream: seen("class") | Missing) -> Missing:
        await function(stream)

    async def __call__(self, stream: seen("call") | Missing) -> Missing:
        await function(stream)

async def further(first: seen("partial") | Missing, stream: Missing) -> Missing:
    await function(stream)

def decorated(handler: Missing):
    @functools.wraps(handler)
    async def around(stream: seen("decorated") | Missing) -> Missing:
        await handler(stream)
    return around

async def callback(reader: seen("callback") | Missing, writer: Missing) -> Missing:
    while data := await reader.read(100):
        writer.write(data.upper())
    writer.close()

class Upper(asyncio.Protocol):
    transport: Missing

    def __init__(self, more: seen("factory") | Missing = None) -> Missing:
        self.more = more

    def connection_made(self, transport: seen("made") | Missing) -> Missing:
        self.transport = transport

    def data_received(self, data: seen("data") | Missing) -> Missing:
        self.transport.write(data.upper())

def factory(more: seen("factory") | Missing = 1) -> Missing:
    return Upper()

class Legacy(socketserver.BaseRequestHandler):
    request: Missing

    def handle(self: seen("handle")) -> Missing:
        while data := self.request.recv(100):
            self.request.sendall(data.upper())

async def fails(stream: seen("fails") | Missing) -> Missing:
    await stream.receive()
    raise ValueError("as it should")

class Called:
    def __call__(self, reader: seen("called") | Missing, writer: Missing) -> Missing:
        return callback(reader, writer)

class CalledByAnother:
    __call__ = Called()

class Made:
    def __call__(self, *arguments: seen("made") | Missing) -> Missing: ...

class UpperMadeByAnother(Upper):
    __init__ = Made()

async def datagram(one: seen("datagram") | Missing) -> Missing:
    return one.data.upper()

failures = []

def on_error(exception: seen("on_error") | Missing, stream: Missing) -> Missing:
    failures.append(exception)

async def three(a: seen("three") | Missing, b: Missing, c: Missing) -> Missing: ...

class Three(asyncio.Protocol):
    def __init__(self, a: seen("Three") | Missing) -> Missing: ...
"""
)


@pytest.fixture
def given() -> dict[str, Any]:
    """The names of the module above."""
    names: dict[str, Any] = {"__name__": "given"}
    exec(compile(SOURCE, "given.py", "exec", dont_inherit=True), names)
    return names


HANDLERS = {
    "function": "function",
    "method": "Given().method",
    "static method": "Given().static",
    "class method": "Given.of_the_class",
    "callable object": "Given()",
    "its method": "Given().__call__",
    "partial": "functools.partial(further, 1)",
    "partial of a partial": "functools.partial(functools.partial(further), 1)",
    "partial of an object": "functools.partial(Given())",
    "decorated": "decorated(function)",
    "callback": "from_callback(callback)",
    "callback in a partial": "from_callback(functools.partial(callback))",
    "callback called by another": "from_callback(CalledByAnother())",
    "protocol": "from_protocol(Upper)",
    "protocol made by another": "from_protocol(UpperMadeByAnother)",
    "factory": "from_protocol(factory)",
    "legacy": "hosted(Legacy)",
}


@pytest.mark.parametrize("expression", HANDLERS.values(), ids=list(HANDLERS))
async def test_handler_is_served_and_no_annotation_evaluated(given: dict[str, Any], expression: str) -> None:
    """Names that exist for the type checker only do no harm, and none is asked for."""
    given |= {"from_callback": asyncserver.from_callback, "from_protocol": asyncserver.from_protocol, "hosted": hosted}
    handler = eval(expression, given)
    async with asyncserver.serve(handler, "127.0.0.1", 0, on_error=given["on_error"]) as server:
        client = await Client.connect(server.addresses[0])
        assert await client.ask(b"hello") == b"HELLO"
        client.close()
    assert not given["failures"]
    assert not given["evaluated"]


async def test_on_error_and_datagrams(given: dict[str, Any]) -> None:
    """The same for what is called besides, and for the other kind of server."""
    async with asyncserver.serve(given["fails"], "127.0.0.1", 0, on_error=given["on_error"]) as server:
        client = await Client.connect(server.addresses[0])
        await client.send(b"x")
        assert await client.receive_all() == b""
        client.close()
    assert [str(one) for one in given["failures"]] == ["as it should"]
    async with asyncserver.serve_datagrams(given["datagram"], "127.0.0.1", 0):
        pass
    assert not given["evaluated"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("serve(three, '127.0.0.1', 0)", r"serve\(\) got three\(a, b, c\): it is called with one argument"),
        ("serve(callback, '127.0.0.1', 0)", r"got callback\(reader, writer\): takes \(reader, writer\)\? wrap it"),
        ("serve(factory, '127.0.0.1', 0)", "expects a coroutine function"),
        ("serve(Upper, '127.0.0.1', 0)", "wrap it: serve"),
        ("from_callback(three)", r"expects a function of \(reader, writer\); got three\(a, b, c\)"),
        ("from_callback(function)", r"got function\(stream, \*, more=1\); a handler of a stream is given to serve\(\)"),
        ("from_protocol(Three)", r"called without arguments; got Three\(a\): give them by functools.partial"),
        ("hosted(Upper)", "wrap it: asyncserver.from_protocol"),
    ],
)
def test_messages_show_what_was_given_without_annotations(given: dict[str, Any], call: str, words: str) -> None:
    """The same text on every Python."""
    with pytest.raises(TypeError, match=words):
        eval(call, given | vars(asyncserver) | {"hosted": hosted})
    assert not given["evaluated"]


@pytest.mark.parametrize("name", ["function", "Upper", "Legacy", "decorated"])
def test_command_line_evaluates_none(name: str, tmp_path: Path) -> None:
    """Handlers by their names, with on_error by its own."""
    more = "decorated = decorated(function)\nimport atexit, sys\n"
    more += "atexit.register(lambda: print(evaluated, file=sys.stderr))\n"
    (tmp_path / "given.py").write_text(SOURCE + more)
    with command(tmp_path, f"given:{name}", "--tcp", "127.0.0.1:0", "--on-error", "given:on_error") as program:
        assert ask_once(internet_address(program), question=b"hello") == b"HELLO"
        program.process.terminate()
        assert program.wait() == 0
    assert "Traceback" not in program.errors
    assert program.errors.endswith("[]\n")


def test_unchanged_program_evaluates_none(tmp_path: Path) -> None:
    """Under `python -m compat`, whose classes look at those of programs."""
    (tmp_path / "given.py").write_text(
        SOURCE + "server = socketserver.ThreadingTCPServer(('127.0.0.1', 0), Legacy)\n"
        "server.server_close()\nprint(evaluated)\n"
    )
    ended = python("-m", "compat", tmp_path / "given.py")
    assert ended.stdout == "[]\n"
