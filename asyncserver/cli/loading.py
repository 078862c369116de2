"""What the command line loads: a password; MODULE:HANDLER, also of socketserver's and asyncio's."""

from __future__ import annotations

import asyncio
import importlib
import operator
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.protocols import from_protocol
from ..starting import importing

if TYPE_CHECKING:
    import argparse

_LONGEST_PASSWORD = 1024  # PEM_BUFSIZE in OpenSSL's pem.h, which is what ssl gives it for the password


def load(name: str) -> Any:
    """Import what MODULE:NAME names; the current folder counts, as it does for `python -m`.

    Raises:
        ValueError: there is no such thing.
        RuntimeError: importing the module serves at once.
    """
    module_name, _, attributes = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    token = importing.set(module_name)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not (module_name == exc.name or module_name.startswith(exc.name + ".")):
            raise  # a module that the handler's module imports
        advice = f"; leave out .py: {module_name[:-3]}:{attributes}" if module_name.endswith(".py") else ""
        raise ValueError(f"there is no module {module_name!r} in the current folder or installed{advice}") from exc
    finally:
        importing.reset(token)
    try:
        return operator.attrgetter(attributes)(module)
    except AttributeError as exc:
        raise ValueError(f"module {module_name!r} has no {attributes!r}") from exc


def password_in(file: str) -> bytes:
    """Read the password in a file: its only line, without what ends it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds more or less than a password.
    """
    lines = Path(file).read_bytes().splitlines()
    if len(lines) != 1 or not 0 < len(lines[0]) <= _LONGEST_PASSWORD:
        size = f"{len(lines)} lines" if len(lines) != 1 else f"a line of {len(lines[0])} bytes"
        raise ValueError(
            f"--keyfile-password-file {file}: expected one line, the password of all keys, at most "
            f"{_LONGEST_PASSWORD} bytes; it has {size}"
        )
    return lines[0]


def adapted(handler: Any, options: argparse.Namespace) -> Any:
    """Make a handler of a class that was written for socketserver, or of a protocol class.

    Raises:
        ValueError: it is for other places than those given, or --threads for a handler without any.
    """
    # A program that has a class of socketserver's has imported that module.
    legacy = sys.modules.get("socketserver")
    if legacy is not None and isinstance(handler, type) and issubclass(handler, legacy.BaseRequestHandler):
        _check_kind(handler, legacy.StreamRequestHandler, legacy.DatagramRequestHandler, options)
        from compat import hosted  # noqa: PLC0415 - asyncserver stands without it

        return hosted(handler) if options.threads is None else hosted(handler, max_threads=options.threads)
    if options.threads is not None:
        raise ValueError("--threads is for subclasses of socketserver.BaseRequestHandler; the handler is none")
    if isinstance(handler, type) and issubclass(handler, asyncio.BaseProtocol):
        _check_kind(handler, (asyncio.Protocol, asyncio.BufferedProtocol), asyncio.DatagramProtocol, options)
        return from_protocol(handler)
    return handler


def _check_kind(handler: type, streams: Any, datagrams: Any, options: argparse.Namespace) -> None:
    for_streams, for_datagrams = issubclass(handler, streams), issubclass(handler, datagrams)
    if for_streams and not for_datagrams and (options.udp or options.unix_datagram):
        raise ValueError(f"{options.handler} handles streams: it can be served with --tcp and --unix")
    if for_datagrams and not for_streams and (options.tcp or options.unix):
        raise ValueError(f"{options.handler} handles datagrams: it can be served with --udp and --unix-datagram")
