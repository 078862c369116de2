"""Texts as the values of options. An error says what was expected; who asks adds where it was."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from ..kernel.memberships import parse_groups
from ..listening import vsock
from ..net.addresses import parse_address
from ..program.loops import NAMES as LOOPS

if TYPE_CHECKING:
    from collections.abc import Callable

_SYSTEMD, _VSOCK = "systemd:", "vsock:"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def wrong(expected: str, text: str) -> argparse.ArgumentTypeError:
    """The error that says what was expected."""
    return argparse.ArgumentTypeError(f"expected {expected}; got {text!r}")


def count(least: int) -> Callable[[str], int]:
    """A whole number that is at least `least`."""

    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) >= least):
            raise wrong(f"a whole number, at least {least}", text)
        return int(text)

    return convert


def workers(text: str) -> int | str:
    """How many processes serve, or "auto"."""
    try:
        return text if text == "auto" else count(1)(text)
    except argparse.ArgumentTypeError:
        raise wrong("a whole number, at least 1, or auto", text) from None


def seconds(*, zero: bool = False) -> Callable[[str], float]:
    """A length of time, more than 0 or at least 0."""

    def convert(text: str) -> float:
        expected = "a number of seconds, " + ("at least 0" if zero else "more than 0")
        try:
            value = float(text)
        except ValueError:
            raise wrong(expected, text) from None
        if not (value > 0 or (zero and value == 0)):
            raise wrong(expected, text)
        return value

    return convert


def mode(text: str) -> int:
    """A file's permissions, octal."""
    try:
        return int(text, 8)
    except ValueError:
        raise wrong("permissions in octal, such as 660", text) from None


def address(text: str) -> dict[str, Any]:
    """HOST:PORT, fd:N or vsock:PORT, as arguments of serve(); or systemd:NAME."""
    if text.startswith(_SYSTEMD):
        return {"systemd": text.removeprefix(_SYSTEMD)}
    if text.startswith(_VSOCK):
        return {"vsock": _vsock(text)}
    try:
        host, port = parse_address(text, "HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or :8080, fd:N or systemd:NAME")
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    if host == "fd" and not text.startswith("["):
        return {"fd": port}
    if port > 65535:
        raise wrong("a port from 0 to 65535", text)
    return {"host": host, "port": port}


def _vsock(text: str) -> int | tuple[int, int]:
    numbers = text.removeprefix(_VSOCK).split(":")
    if len(numbers) > 2 or not all(re.fullmatch("[0-9]{1,10}", one) for one in numbers):
        raise wrong("vsock:PORT or vsock:CID:PORT, whole numbers", text)
    cid, port = int(numbers[0]), int(numbers[-1])
    place = port if len(numbers) == 1 else (cid, port)
    try:
        vsock.check(place)
    except ValueError as exc:
        raise wrong(str(exc).partition(";")[0], text) from None
    return place


def datagram_address(text: str) -> dict[str, Any]:
    """HOST:PORT or fd:N, as arguments of serve_datagrams(); or systemd:NAME."""
    if text.startswith(_VSOCK):
        raise wrong("HOST:PORT, fd:N or systemd:NAME; vsock:PORT is for --tcp", text)
    return address(text)


def place(text: str) -> str:
    """HOST:PORT only, as it is."""
    if "host" not in address(text):
        raise wrong("HOST:PORT, such as 127.0.0.1:9100", text)
    return text


def path(text: str) -> dict[str, Any]:
    """PATH or @NAME of a Unix socket, as an argument of both functions; or systemd:NAME."""
    if text.startswith(_SYSTEMD):
        return {"systemd": text.removeprefix(_SYSTEMD)}
    if not text:
        raise wrong("a path", text)
    return {"path": text}


def group(text: str) -> str:
    """A multicast group, as it is."""
    try:
        parse_groups([text])
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return text


def name(text: str) -> str:
    """MODULE:NAME, to be imported later."""
    module, colon, attributes = text.partition(":")
    if not (module and colon and attributes):
        raise wrong("MODULE:NAME, such as app:handler", text)
    return text


def loop(text: str) -> str:
    """The name of a loop, or MODULE:FUNCTION, to be imported later."""
    if text not in Loops(LOOPS):
        raise wrong("auto, uvloop, asyncio or MODULE:FUNCTION", text)
    return text


class Loops(tuple[str, ...]):
    """Names of loops, as a shell completes them; MODULE:FUNCTION is one too."""

    __slots__ = ()

    def __contains__(self, text: object) -> bool:
        return super().__contains__(text) or (isinstance(text, str) and all(text.partition(":")))


def on_or_off(text: str) -> bool:
    """The value in the environment of an option that is a flag on the command line."""
    if text.lower() not in (*_TRUE, *_FALSE):
        raise wrong(" or ".join((*_TRUE, *_FALSE)), text)
    return text.lower() in _TRUE
