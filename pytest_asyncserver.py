"""pytest's plugin: the fixture `serving`; docs/testing.md shows its use.

A module of its own, since pytest imports it in every run: it imports asyncserver only where a test
asks for the fixture.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol, overload

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncserver import Server, Serving


class StartServing(Protocol):
    """The type of the fixture `serving`, for tests with annotations."""

    @overload
    def __call__(self, serving: Serving, /, *, raise_errors: bool = True, **options: Any) -> Server: ...
    @overload
    def __call__(
        self, serving: Serving, another: Serving, /, *more: Serving, raise_errors: bool = True, **options: Any
    ) -> tuple[Server, ...]: ...


@pytest.fixture
def serving() -> Iterator[StartServing]:
    """Start servers in the background, and drain them after the test.

        def test_echo(serving):
            server = serving(asyncserver.serve(echo, "127.0.0.1", 0))

    It takes what `asyncserver.background()` takes. What handlers raise is an error of the test, in
    its teardown, unless `raise_errors=False`.
    """
    import asyncserver  # noqa: PLC0415 - see above

    with contextlib.ExitStack() as stack:

        def start(*servings: Serving, raise_errors: bool = True, **options: Any) -> Any:
            return stack.enter_context(asyncserver.background(*servings, raise_errors=raise_errors, **options))

        yield start
