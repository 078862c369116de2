"""The command line, `python -m asyncserver`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from .running import give_up, run, run_workers
from .serving import Serving, serve, serve_datagrams
from .tls import tls_context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .datagram import Datagram
    from .stream import Stream

_DEFAULT_ADDRESS = "127.0.0.1:8080"

_DESCRIPTION = """\
Serve TCP, UDP and Unix sockets until Ctrl-C or SIGTERM, then let what runs come to its end.

Without arguments: an upper-casing echo server on TCP and UDP, 127.0.0.1:8080.
"""

_EPILOG = """\
examples:
  python -m asyncserver
  python -m asyncserver app:handler --tcp 0.0.0.0:7000 --max-connections 1000 --idle-timeout 60
  python -m asyncserver app:handler --tcp [::]:8443 --certfile chain.pem --keyfile key.pem
  python -m asyncserver app:answer --udp 127.0.0.1:5353
  python -m asyncserver app:handler --unix /run/app.sock --unix-mode 660

A handler of --tcp and --unix is `async def handler(stream)`, one of --udp `async def handler(datagram)`; given both
kinds of address it gets both. What asyncserver.from_protocol() and from_callback() return will do as well.

exit status: 0 served and drained, 1 an address could not be had or a worker not started, 2 wrong arguments
"""


async def upper(source: Stream | Datagram) -> bytes | None:
    """Send back in capitals whatever comes."""
    if hasattr(source, "data"):
        return source.data.upper()
    async for data in source:
        await source.send(data.upper())
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m asyncserver",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("handler", nargs="?", metavar="MODULE:HANDLER", help="what to serve; upper-casing echo if left out")
    places = parser.add_argument_group("where to serve (each may be given several times)")
    add = places.add_argument
    add("--tcp", action="append", default=[], metavar="HOST:PORT", help="an empty HOST is every interface")
    add("--udp", action="append", default=[], metavar="HOST:PORT", help="the same for datagrams")
    add("--unix", action="append", default=[], metavar="PATH", help="a Unix stream socket")
    add("--unix-mode", type=_mode, metavar="MODE", help="permissions of its file, octal, such as 660")
    limits = parser.add_argument_group("limits")
    add = limits.add_argument
    add(
        "--max-connections",
        type=int,
        metavar="N",
        help="open at once, for each address; more wait in the kernel",
    )
    add(
        "--max-connections-per-host",
        type=int,
        metavar="N",
        help="open at once from one host; more are closed",
    )
    add("--idle-timeout", type=float, metavar="SECONDS", help="close connections that are silent for so long")
    add(
        "--max-pending",
        type=int,
        default=1024,
        metavar="N",
        help="datagrams handled at once (default: %(default)s)",
    )
    add(
        "--drain-timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="for handlers to end (default: 30)",
    )
    proxy = parser.add_argument_group("behind a proxy, for --tcp and --unix")
    add = proxy.add_argument
    add("--proxy-protocol", action="store_true", help="take the client's address from the PROXY protocol's header")
    add(
        "--trusted-proxies",
        action="append",
        default=[],
        metavar="NETWORK[,...]",
        help="who may send it, such as 10.0.0.0/8 or unix (default: this host)",
    )
    tls = parser.add_argument_group("TLS for --tcp and --unix")
    add = tls.add_argument
    add("--certfile", metavar="FILE", help="certificate chain, PEM")
    add("--keyfile", metavar="FILE", help="private key, PEM, unless it is in the certificate's file")
    add("--client-ca", metavar="FILE", help="ask clients for a certificate signed by one of these")
    program = parser.add_argument_group("program")
    add = program.add_argument
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that serve; SIGHUP replaces them by new ones with the code of then (default: 1)",
    )
    add(
        "--loop",
        choices=("auto", "uvloop", "asyncio"),
        default="auto",
        help="(default: uvloop where installed)",
    )
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="(default: info)")
    return parser


def _servings(options: argparse.Namespace, handler: Any = None) -> list[Serving]:
    """Make the servers; without a handler given import the one of the command line."""
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    if handler is None:
        handler = upper if options.handler is None else _load(options.handler)
    if not (options.tcp or options.udp or options.unix):
        if options.handler is not None:
            raise ValueError(f"say where to serve {options.handler}: --tcp HOST:PORT, --udp HOST:PORT or --unix PATH")
        options.tcp = options.udp = [_DEFAULT_ADDRESS]
        _greet()
    context = None
    if options.certfile is not None:
        context = tls_context(options.certfile, options.keyfile, client_ca=options.client_ca)
    elif options.keyfile or options.client_ca:
        raise ValueError("TLS needs --certfile")
    common = {
        "ssl": context,
        "max_connections": options.max_connections,
        "max_connections_per_host": options.max_connections_per_host,
        "idle_timeout": options.idle_timeout,
        "proxy_protocol": options.proxy_protocol,
        "trusted_proxies": [name for names in options.trusted_proxies for name in names.split(",")],
        "drain_timeout": options.drain_timeout,
    }
    servings: list[Serving] = []
    try:
        servings.extend(serve(handler, *_address(place), **common) for place in options.tcp)
        servings.extend(serve(handler, path=path, path_mode=options.unix_mode, **common) for path in options.unix)
        servings.extend(
            serve_datagrams(
                handler, *_address(place), max_pending=options.max_pending, drain_timeout=options.drain_timeout
            )
            for place in options.udp
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


def _address(text: str) -> tuple[str | None, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit():
        raise ValueError(f"expected HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or :8080; got {text!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"write an IPv6 address in brackets, [{host}]:{port}; got {text!r}")
    return host or None, int(port)


def _mode(text: str) -> int:
    return int(text, 8)
