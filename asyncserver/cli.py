"""The command line, `python -m asyncserver`."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from . import __version__
from .options import address, make_parser, read
from .running import give_up, run, run_workers
from .serving import Serving, serve, serve_datagrams
from .tls import tls_context

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from .datagram import Datagram
    from .stream import Stream

_DEFAULT_ADDRESS = "127.0.0.1:8080"


async def upper(source: Stream | Datagram) -> bytes | None:
    """Send back in capitals whatever comes."""
    if hasattr(source, "data"):
        return source.data.upper()
    async for data in source:
        await source.send(data.upper())
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = make_parser(f"asyncserver {__version__}")
    options = read(parser, arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    try:
        # With workers only they import the handler, so that new ones, after SIGHUP, have new code.
        servings = _servings(options, upper if options.workers > 1 else None)
    except (TypeError, ValueError, OSError) as exc:
        parser.error(str(exc))
    try:
        if options.workers > 1:
            run_workers(servings, lambda: _servings(options), options.loop, options.workers)
        else:
            run(*servings, loop=options.loop)
    except (OSError, ModuleNotFoundError) as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 1
    return 0


def _servings(options: argparse.Namespace, handler: Any = None) -> list[Serving]:
    """Make the servers; without a handler given import the one of the command line."""
    if handler is None:
        handler = upper if options.handler is None else _load(options.handler)
    if not (options.tcp or options.udp or options.unix or options.unix_datagram):
        if options.handler is not None:
            raise ValueError(f"say where to serve {options.handler}: --tcp HOST:PORT, --udp HOST:PORT or --unix PATH")
        options.tcp = options.udp = [address(_DEFAULT_ADDRESS)]
        _greet()
    context = None
    if options.certfile is not None:
        context = tls_context(options.certfile, options.keyfile, client_ca=options.client_ca)
    elif options.keyfile or options.client_ca:
        raise ValueError("TLS needs --certfile")
    streams = {
        "backlog": options.backlog,
        "ssl": context,
        "ssl_handshake_timeout": options.ssl_handshake_timeout,
        "max_connections": options.max_connections,
        "max_connections_per_host": options.max_connections_per_host,
        "idle_timeout": options.idle_timeout,
        "proxy_protocol": options.proxy_protocol,
        "trusted_proxies": [name for names in options.trusted_proxies for name in names.split(",")],
    }
    datagrams = {"max_pending": options.max_pending, "max_datagram_size": options.max_datagram_size}
    common = {"reuse_port": options.reuse_port, "drain_timeout": options.drain_timeout}
    for place in (*options.unix, *options.unix_datagram):
        place["path_mode"] = options.unix_mode
    servings: list[Serving] = []
    try:
        servings.extend(serve(handler, **place, **streams, **common) for place in (*options.tcp, *options.unix))
        servings.extend(
            serve_datagrams(handler, **place, **datagrams, **common) for place in (*options.udp, *options.unix_datagram)
        )
    except (TypeError, ValueError):
        give_up(servings)
        raise
    return servings


def _greet() -> None:
    host, _, port = _DEFAULT_ADDRESS.partition(":")
    print(f"Upper-casing echo on {_DEFAULT_ADDRESS}, TCP and UDP. Ctrl-C ends it. Try it from another shell:")
    print(f"    nc {host} {port}        or for UDP:  nc -u {host} {port}")
    print(f"""    python3 -c 'import socket; s = socket.create_connection(("{host}", {port})); """, end="")
    print("""s.sendall(b"hello"); print(s.recv(99))'""", flush=True)


def _load(name: str) -> Any:
    """Import what MODULE:HANDLER names; the current folder counts, as for `python -m`."""
    module_name, colon, attributes = name.partition(":")
    if not (module_name and colon and attributes):
        raise ValueError(f"handler must be MODULE:HANDLER, such as app:handler; got {name!r}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not (module_name == exc.name or module_name.startswith(exc.name + ".")):
            raise  # a module that the handler's own module wants
        raise ValueError(f"there is no module {module_name!r} in the current folder or installed") from exc
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError as exc:
            raise ValueError(f"module {module_name!r} has no {attributes!r}") from exc
    return found
