"""The command line: `asyncserver`, `python -m asyncserver`. PYTHON_ARGCOMPLETE_OK."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from .. import __version__, accelerated
from .._logger import logger as _logger
from ..kernel.memberships import hears, parse_groups
from ..leaving.threads import watch_end
from ..listening.systemd import named_sockets, systemd_sockets
from ..monitoring.log_format import set_up
from ..monitoring.metrics import require_prometheus
from ..monitoring.monitor import Monitor
from ..net.addresses import format_address, parse_address
from ..program.lifespan import Life
from ..program.loops import NAMES, loop_factory
from ..running import run_program
from ..serving import serve, serve_datagrams
from ..starting import Serving, give_up
from ..tls.contexts import TLSContext, tls_context
from .loading import adapted, load, password_in
from .options import make_parser, read, unknown_variables
from .values import address

if TYPE_CHECKING:
    import argparse
    import asyncio
    from collections.abc import Callable, Sequence

    from ..datagrams.datagram import Datagram
    from ..kernel.memberships import Group
    from ..program.loops import LoopFactory
    from ..streams.stream import Stream

_DEFAULT_ADDRESS = "127.0.0.1:8080"

# What each option takes of the sockets that systemd:NAME names: all of a unit have one name.
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_TAKES: dict[str, tuple[socket.SocketKind, Sequence[int]]] = {
    "tcp": (socket.SOCK_STREAM, (*_INTERNET, getattr(socket, "AF_VSOCK", -1))),
    "udp": (socket.SOCK_DGRAM, _INTERNET),
    "unix": (socket.SOCK_STREAM, (socket.AF_UNIX,)),
    "unix_datagram": (socket.SOCK_DGRAM, (socket.AF_UNIX,)),
}
# Options that are arguments of serve() by the same name, with the same value.
_OF_STREAMS = ("backlog", "ssl_handshake_timeout", "max_connections", "max_connections_per_host", "idle_timeout",
               "max_unsent", "proxy_timeout")  # fmt: skip
# And of run().
_OF_PROGRAMS = ("metrics", "drain_delay", "stuck_timeout", "max_requests", "max_age")


async def upper(source: Stream | Datagram) -> bytes | None:
    """Send back in capitals what comes."""
    if hasattr(source, "data"):
        return source.data.upper()
    async for data in source:
        await source.send(data.upper())
    return None


def program() -> NoReturn:
    """Run the command line of the script `asyncserver` or `python -m asyncserver`, and exit."""
    called = os.path.basename(sys.argv[0])
    status = main(prog="python -m asyncserver" if called == "__main__.py" else called)
    watch_end(status)
    sys.exit(status)


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m asyncserver") -> int:
    """Run the command line, by default this program's, called `prog`; returns its exit status."""
    parser = make_parser(f"asyncserver {__version__} ({'compiled' if accelerated else 'pure Python'})", prog)
    options = read(parser, arguments)
    set_up(options.log_level, as_json=options.log_json, connection_lines=options.log_connections)
    for text in unknown_variables():
        _logger.warning("environment variable of no option: %s", text)
    try:
        greet = _complete(options)
        # With workers, only they import the handler, so that after SIGHUP new ones have new code.
        places_only = options.workers != 1 and not options.check
        life = Life() if places_only else _life(options)
        loop = _loop(options, later=places_only)
        servings = _servings(options, places_only=places_only)
    except (TypeError, ValueError, OSError) as exc:
        parser.error(str(exc))
    try:
        if options.check:
            _check(options, servings)
        else:
            further = {name: getattr(options, name) for name in _OF_PROGRAMS}
            run_program(
                servings,
                lambda: (_servings(options), _life(options)),
                loop,
                options.workers,
                greet,
                life=life,
                **further,
            )
    except Exception as exc:
        if exc is life.failure:  # it is in the log
            return 1
        if not isinstance(exc, OSError | ModuleNotFoundError):
            raise
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 1
    return 0


def _life(options: argparse.Namespace) -> Life:
    life = Life(None if options.lifespan is None else load(options.lifespan))
    life.check()
    return life


def _loop(options: argparse.Namespace, *, later: bool) -> str | LoopFactory:
    """Return the loop's name, or the function that makes it, loaded now or when it is called."""
    if options.loop in NAMES:
        return str(options.loop)

    def make() -> asyncio.AbstractEventLoop:
        return loop_factory(load(options.loop))()

    if later:
        return make
    try:
        make().close()  # before anything is bound, and for --check
    except (RuntimeError, OSError) as exc:
        raise ValueError(f"--loop {options.loop}: {exc}") from exc
    return make


def _complete(options: argparse.Namespace) -> Callable[[], object]:
    """Complete the addresses, by default ones if none is given; returns what to call once bound."""
    if options.tcp or options.udp or options.unix or options.unix_datagram:
        for name in _TAKES:
            setattr(options, name, [one for place in getattr(options, name) for one in _of_systemd(name, place)])
        return lambda: None
    if options.handler is not None:
        raise ValueError(f"say where to serve {options.handler}: --tcp HOST:PORT, --udp HOST:PORT or --unix PATH")
    options.tcp, options.udp = [address(_DEFAULT_ADDRESS)], [address(_DEFAULT_ADDRESS)]
    return _greet


def _of_systemd(option: str, place: dict[str, Any]) -> list[dict[str, Any]]:
    """Replace a name of systemd's by its sockets; leave other places as they are."""
    if "systemd" not in place:
        return [place]
    kind, families = _TAKES[option]
    found = [one for one in systemd_sockets(place["systemd"]) if one.type == kind and one.family in families]
    if not found:
        passed = ", ".join(
            f"{name!r} ({one.type.name} {format_address(one.getsockname())})" for name, one in named_sockets()
        )
        raise ValueError(
            f"--{option.replace('_', '-')} systemd:{place['systemd']}: systemd has opened no such socket for this "
            f"process; it has opened {passed or 'none: start this program by its socket unit'}"
        )
    return [{"sock": one} for one in found]


def _servings(options: argparse.Namespace, *, places_only: bool = False) -> list[Serving]:
    """Make the servers; for their places only, import nothing."""
    handler: Any = upper
    on_error = None
    if not places_only:
        handler = adapted(upper if options.handler is None else load(options.handler), options)
        on_error = None if options.on_error is None else load(options.on_error)
    proxies = {
        "proxy_protocol": options.proxy_protocol,
        "trusted_proxies": [name for names in options.trusted_proxies for name in names.split(",")],
    }
    streams: dict[str, Any] = {name: getattr(options, name) for name in _OF_STREAMS} | proxies
    streams["ssl"] = _tls(options)
    datagrams = {"max_pending": options.max_pending, "max_datagram_size": options.max_datagram_size, **proxies}
    common = {"drain_timeout": options.drain_timeout, "on_error": on_error}
    for place in (*options.unix, *options.unix_datagram):
        if "path" in place:  # else one of systemd's, whose unit says SocketMode=
            place["path_mode"] = options.unix_mode
    for place in (*options.tcp, *options.udp):
        if "host" in place:
            place["reuse_port"] = options.reuse_port
    _share_groups(options.group, options.udp)
    servings: list[Serving] = []
    try:
        for place in options.tcp:
            kept = {} if "vsock" in place else {"keepalive": options.keepalive}
            servings.append(serve(handler, **place, **kept, **streams, **common))
        servings.extend(serve(handler, **place, **streams, **common) for place in options.unix)
        servings.extend(
            serve_datagrams(handler, **place, **datagrams, **common) for place in (*options.udp, *options.unix_datagram)
        )
    except (TypeError, ValueError):
        give_up(servings)
        raise
    return servings


def _share_groups(groups: list[str], places: list[dict[str, Any]]) -> None:
    """Give each address for datagrams the groups that may be heard there."""
    wanted = parse_groups(groups)
    for place in places:
        place["groups"] = [group.text for group in wanted if _may_hear(place, group)]
    for group in wanted:
        if not any(group.text in place["groups"] for place in places):
            raise ValueError(
                f"--group {group.text} is heard on no --udp address: give --udp :PORT, which is every interface, or "
                "the group's own address"
            )


def _may_hear(place: dict[str, Any], group: Group) -> bool:
    return hears(place["sock"], group) if "sock" in place else group.may_be_heard_on(place.get("host"))


def _tls(options: argparse.Namespace) -> TLSContext | None:
    if not options.certfile:
        return None
    if len(options.keyfile) not in {0, len(options.certfile)}:
        raise ValueError(
            f"give as many --keyfile as --certfile, or none: got {len(options.keyfile)} for {len(options.certfile)}; "
            "a certificate's file may be given as its key's too"
        )
    first, *others = zip(options.certfile, options.keyfile or [None] * len(options.certfile), strict=True)
    try:
        return tls_context(
            *first,
            more_certificates=others,
            password=None if (file := options.keyfile_password_file) is None else functools.partial(password_in, file),
            client_ca=options.client_ca,
            client_cert=options.client_cert,
            minimum_version=ssl.TLSVersion.TLSv1_3 if options.tls_min == "1.3" else ssl.TLSVersion.TLSv1_2,
            alpn=options.alpn or (),
            ciphers=options.ciphers,
            groups=options.tls_groups,
        )
    except OSError as exc:
        given = {"--certfile": options.certfile, "--keyfile": options.keyfile, "--client-ca": [options.client_ca],
                 "--keyfile-password-file": [options.keyfile_password_file]}  # fmt: skip
        flag = next((flag for flag, files in given.items() if exc.filename in files), None)
        if exc.filename is None or flag is None:
            raise
        raise ValueError(f"{flag} {exc.filename}: {exc.strerror}") from exc


def _check(options: argparse.Namespace, servings: list[Serving]) -> None:
    """Bind, and print what was found; nothing is served."""
    try:
        print("handler ", options.handler or "upper-casing echo")
        if options.lifespan is not None:
            print("lifespan", options.lifespan)
        for file, certificate in () if (context := _tls(options)) is None else context.certificates:
            print("TLS     ", f"{file}: {certificate or 'no client can have it by the defaults of OpenSSL'}")
        with contextlib.ExitStack() as stack:  # all of them at once: two may want the same address
            if options.metrics is not None:
                monitoring = Monitor().serving(options.metrics)  # warns without prometheus-client
                stack.callback(monitoring.close)
                _open(monitoring, stack, "metrics ")
            for serving in servings:
                _open(serving, stack)
        if options.metrics is not None:
            try:
                require_prometheus()
            except ModuleNotFoundError as exc:
                print(f"all of it can be served but /metrics: {exc}")
                return
        print("all of it can be served")
    finally:
        give_up(servings)


def _open(serving: Serving, stack: contextlib.ExitStack, kind: str | None = None) -> None:
    for bound in serving.open_slots(1)[0]:
        stack.callback(bound.close)
        print(
            kind or ("datagram" if bound.sock.type == socket.SOCK_DGRAM else "stream  "), format_address(bound.address)
        )


def _greet() -> None:
    host, port = parse_address(_DEFAULT_ADDRESS)
    print(f"Upper-casing echo on {_DEFAULT_ADDRESS}, TCP and UDP. Ctrl-C ends it. Try it from another shell:")
    print(f"    nc {host} {port}        or for UDP:  nc -u {host} {port}")
    print(f"""    python3 -c 'import socket; s = socket.create_connection(("{host}", {port})); """, end="")
    print("""s.sendall(b"hello"); print(s.recv(99))'""", flush=True)
