"""What may be given as lifespan: told when run() is called, with what to write instead."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver.adapters.checks import takes_one
from tests.kit.cli import command, internet_address
from tests.kit.handlers import upper
from tests.kit.sockets import ask_once


@contextlib.asynccontextmanager
async def life() -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def of_servers(servers: tuple[asyncserver.Server, ...]) -> AsyncIterator[None]:
    assert servers
    yield


@contextlib.contextmanager
def synchronous() -> Iterator[None]:
    yield


async def bare() -> AsyncIterator[None]:
    yield


async def coroutine() -> None:
    """Return."""


def generator() -> Iterator[None]:
    yield


# What a type checker refuses, and a program without one does.
without_yield: Any = contextlib.asynccontextmanager(coroutine)  # type: ignore[arg-type]
without_async: Any = contextlib.asynccontextmanager(generator)  # type: ignore[arg-type]


class Plain:
    """Lifespans that are plain context managers."""

    @contextlib.contextmanager
    def method(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def of_two(first: object, second: object) -> AsyncIterator[None]:
    yield


class Life:
    """A lifespan in a class."""

    def __init__(self, servers: tuple[asyncserver.Server, ...]) -> None:
        self.servers = servers

    @contextlib.asynccontextmanager
    async def method(self) -> AsyncIterator[None]:
        yield

    async def __aenter__(self) -> None:
        """Enter."""

    async def __aexit__(self, *_: object) -> None:
        """Leave."""


def run(lifespan: Any, workers: int = 1) -> None:
    asyncserver.run(asyncserver.serve(upper, "127.0.0.1", 0), lifespan=lifespan, loop="asyncio", workers=workers)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, "function that returns an async context manager; got 3: put @contextlib.asynccontextmanager above"),
        (life(), "got the manager itself, .*: leave out the parentheses"),
        (Life(()), "got the manager itself, .*: leave out the parentheses"),
        (bare, "async generator function bare: put @contextlib.asynccontextmanager above it"),
        (functools.partial(bare), "async generator function .*: put @contextlib.asynccontextmanager above it"),
        (coroutine, "got coroutine, which returns a coroutine, no async context manager: put @contextlib"),
        (generator, "got the generator function generator: put @contextlib.asynccontextmanager above an `async def`"),
        (
            synchronous,
            "got synchronous, which is under @contextlib.contextmanager; expected an async context manager: put @con",
        ),
        (
            functools.partial(synchronous),
            "got synchronous, which is under @contextlib.contextmanager; expected an async",
        ),
        (Plain().method, "got Plain.method, which is under @contextlib.contextmanager; .*: put @contextlib.async"),
        (Plain(), "got Plain.__call__, which is under @contextlib.contextmanager; .*: put @contextlib.async"),
        (without_yield, "got coroutine, which has no `yield`; expected an async context manager: put @context"),
        (without_async, "got generator, which lacks its `async`; expected an async context manager: put @cont"),
        (of_two, r"called without arguments, or with the tuple of Servers; got of_two\(first, second\)"),
    ],
)
def test_wrong_lifespan_is_told_at_once(wrong: Any, message: str, workers: int) -> None:
    """TypeError says what was given, what is expected, what to write; no server is left unawaited."""
    with pytest.raises(TypeError, match=message):
        run(wrong, workers)
    gc.collect()


@pytest.mark.parametrize("wrong", [lambda: None, lambda: coroutine(), lambda: bare(), dict])
def test_what_returns_something_else_is_told(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Only calling it shows that: nothing is served."""
    with pytest.raises(TypeError, match=r"must return an async context manager, and returned .*: put @contextlib"):
        run(wrong)
    (record,) = [one for one in caplog.records if one.name == "asyncserver"]
    assert "could not be entered, so nothing is served: TypeError: it must return an async" in record.getMessage()
    assert record.getMessage().endswith("with one `yield`")


@pytest.mark.parametrize(
    ("function", "taken"),
    [
        (life, False),
        (of_servers, True),
        (functools.partial(of_servers, ()), False),
        (functools.partial(of_two, 1), True),
        (Life, True),
        (Life(()).method, False),
        (lambda *servers: life(), True),
        (lambda servers=(): life(), True),
        (lambda *, servers=(): life(), False),
        (type("Other", (), {}), False),
        (dict, False),  # written in C: not even inspect knows
    ],
)
def test_servers_are_given_to_what_takes_an_argument(function: Any, taken: bool) -> None:
    """By its own signature, below asynccontextmanager's, which takes anything; nothing if that cannot be read."""
    assert takes_one(function) is taken


def test_annotations_are_not_evaluated() -> None:
    """Names that only the type checker knows cost nothing, also on 3.14, where a signature evaluates them."""
    future = "" if sys.version_info >= (3, 14) else "from __future__ import annotations\n"
    source = f"{future}async def life(servers: Missing) -> Missing:\n    yield\n"
    names: dict[str, Any] = {}
    exec(compile(source, "life", "exec", dont_inherit=True), names)
    assert takes_one(contextlib.asynccontextmanager(names["life"]))


# -- the command line

MODULE = """
import contextlib

import asyncserver

opened = []

async def handler(stream):
    async for data in stream:
        await stream.send(data.upper() + opened[0])

@contextlib.asynccontextmanager
async def life():
    opened.append(b" of the pool")
    yield

@contextlib.asynccontextmanager
async def fails():
    raise ConnectionRefusedError("no database")
    yield

@contextlib.asynccontextmanager
async def fails_at_the_end():
    opened.append(b"")
    yield
    raise LookupError("no farewell")

async def bare():
    yield

@contextlib.contextmanager
def plain():
    yield
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(MODULE)
    return tmp_path


@pytest.mark.parametrize("workers", ["1", "2"])
def test_command_line_has_it(folder: Path, workers: str) -> None:
    """--lifespan MODULE:FUNCTION, loaded where the handler is."""
    options = ["app:handler", "--tcp", "127.0.0.1:0", "--lifespan", "app:life", "--workers", workers]
    with command(folder, *options) as program:
        address = internet_address(program) if workers == "1" else _of_workers(program)
        assert ask_once(address) == b"HELLO of the pool"
        assert program.end() == 0


def _of_workers(program: Any) -> tuple[str, int]:
    return "127.0.0.1", int(program.expect(r"2 workers serve on tcp://127.0.0.1:(\d+)")[1])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_command_line_tells_of_errors_in_a_line(folder: Path, workers: str) -> None:
    """As it is entered, and as it is left: status 1, no traceback."""
    options = ["app:handler", "--tcp", "127.0.0.1:0", "--workers", workers, "--lifespan"]
    with command(folder, *options, "app:fails") as program:
        assert program.wait() == 1
        assert "ERROR lifespan fails could not be entered, so nothing is served: Connection" in program.errors
        assert "Traceback" not in program.errors
        assert workers == "2" or len(program.errors.splitlines()) == 1
    with command(folder, *options, "app:fails_at_the_end") as program:
        address = internet_address(program) if workers == "1" else _of_workers(program)
        assert ask_once(address) == b"HELLO"
        assert program.end() == 1
        program.wait()
        assert "ERROR lifespan fails_at_the_end failed as it was left: LookupError: no farewell" in program.errors
        assert "Traceback" not in program.errors


def test_command_line_checks_it(folder: Path) -> None:
    """What cannot be one is a wrong argument, status 2; --check shows it."""
    options = ["app:handler", "--tcp", "127.0.0.1:0", "--lifespan"]
    with command(folder, *options, "app:bare") as program:
        assert program.wait() == 2
        assert "put @contextlib.asynccontextmanager above it" in program.errors.splitlines()[-1]
    with command(folder, *options, "app:plain", "--check") as program:
        assert program.wait() == 2
        assert "got plain, which is under @contextlib.contextmanager" in program.errors.splitlines()[-1]
    with command(folder, *options, "app:life", "--check") as program:
        assert program.wait() == 0
        assert "lifespan app:life\n" in program.output
