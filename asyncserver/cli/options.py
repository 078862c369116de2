"""The options of the command line: one table, for parser, environment and docs/running.md.

A new option is one row in OPTIONS; `read()` returns its value under its name, and main.py uses it.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..program.loops import NAMES as LOOPS
from .effects import lacking
from .values import (
    Loops,
    address,
    count,
    datagram_address,
    group,
    loop,
    mode,
    name,
    on_or_off,
    path,
    place,
    seconds,
    workers,
    wrong,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_DESCRIPTION = """\
Serve TCP, UDP and Unix sockets until Ctrl-C or SIGTERM, then let what runs come to its end.

Without arguments: an upper-casing echo server on TCP and UDP, 127.0.0.1:8080.
"""

_EPILOG = """\
examples:
  %(prog)s
  %(prog)s app:handler --tcp 0.0.0.0:7000 --max-connections 1000 --idle-timeout 60
  %(prog)s app:handler --tcp [::]:8443 --certfile chain.pem --keyfile key.pem
  %(prog)s app:answer --udp 127.0.0.1:5353
  %(prog)s app:handler --unix /run/app.sock --unix-mode 660

A handler of --tcp and --unix is `async def handler(stream)`, one of --udp `async def handler(datagram)`; given both
kinds of address it gets both, and isinstance(source, asyncserver.Datagram) is how it knows which. What
asyncserver.from_protocol() and from_callback() return will do as well, and so will a subclass of
socketserver.BaseRequestHandler, which runs in threads, or of asyncio.Protocol.

Each option can be set in the environment: --max-connections as ASYNCSERVER_MAX_CONNECTIONS, MODULE:HANDLER as
ASYNCSERVER_HANDLER. Several values are separated by spaces, and quoted as in a shell. What is typed wins.

exit status:
  0  served until asked to stop; --check: could be served
  1  an address could not be had, a worker not started, or the handler's module raised
  2  wrong arguments, or an environment variable, or a file with certificates
"""

_PREFIX = "ASYNCSERVER_"
# What Kubernetes sets in every container for a service that is called asyncserver.
_OF_OTHERS = ("--host", "--port", "--bind")  # what other servers call it
_OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_\d+_|=(tcp|udp|sctp)://")


# -- the table


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        group: the heading under which the help shows it.
        flag: what is typed; "handler" is positional.
        metavar: what stands for the value in the help; an option without one is on or off.
        help: what it does, in a line.
        convert: makes a value of the text; raises ArgumentTypeError.
        default: the value if it is not given; None goes without saying.
        choices: the values there are.
        several: it can be given several times, and its value is a list.
    """

    group: str
    flag: str
    metavar: str
    help: str
    convert: Callable[[str], Any] = str
    default: Any = None
    choices: Sequence[str] = ()
    several: bool = False

    @property
    def name(self) -> str:
        """The attribute of what `read()` returns."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return _PREFIX + self.name.upper()

    @property
    def summary(self) -> str:
        """The help, with the default if there is one to show."""
        if self.several:
            return f"{self.help} (can be repeated)"
        has_default = self.default not in (None, False) and "(default" not in self.help
        shown = f"{self.default:g}" if isinstance(self.default, float) else self.default
        return f"{self.help} (default: {shown})" if has_default else self.help

    def from_text(self, text: str) -> Any:
        """Make the value of what an environment variable holds. Raises ArgumentTypeError."""
        if self.several:
            try:
                return [self.convert(word) for word in shlex.split(text)]
            except ValueError as exc:  # a quote that is not closed
                raise wrong(f"values separated by spaces ({exc})", text) from exc
        if self.choices and text not in self.choices:
            self.convert(text)  # may know better what was expected
            raise wrong(" or ".join(self.choices), text)
        return self.convert(text) if self.metavar else on_or_off(text)


_WHERE = "where to serve"
_LIMITS = "limits"
_PROXY = "behind a proxy"
_TLS = "TLS for --tcp and --unix"
_CODE = "handlers"
_PROGRAM = "program"
_LOG = "log"

OPTIONS: tuple[Option, ...] = (
    Option("", "handler", "MODULE:HANDLER", "what to serve; upper-casing echo if left out", name),
    Option(_WHERE, "--tcp", "HOST:PORT",
           "no HOST: every interface; fd:N: an inherited socket; systemd:NAME: those of a unit; vsock:PORT: VSOCK",
           address, several=True),
    Option(_WHERE, "--udp", "HOST:PORT", "the same for datagrams, without VSOCK", datagram_address, several=True),
    Option(_WHERE, "--unix", "PATH", "a Unix stream socket; @NAME: abstract, without a file", path, several=True),
    Option(_WHERE, "--unix-datagram", "PATH", "a Unix datagram socket, also @NAME", path, several=True),
    Option(_WHERE, "--unix-mode", "MODE", "permissions of the Unix sockets' files, octal, such as 660", mode),
    Option(_WHERE, "--backlog", "N", "connections that the kernel queues while none is accepted", count(0), 1024),
    Option(_WHERE, "--reuse-port", "", "let other processes of this user serve on the same ports", default=False),
    Option(_WHERE, "--group", "ADDRESS[%INTERFACE]", "a multicast group that --udp joins, such as 239.1.2.3%eth0",
           group, several=True),
    Option(_LIMITS, "--max-connections", "N", "open at once, for each address; more wait in the kernel", count(1)),
    Option(_LIMITS, "--max-connections-per-host", "N", "open at once from one host; more are closed", count(1)),
    Option(_LIMITS, "--idle-timeout", "SECONDS", "close connections that are silent for this long", seconds()),
    Option(_LIMITS, "--keepalive", "SECONDS", "break connections whose client's host vanished, within this; at least 2",
           seconds()),
    Option(_LIMITS, "--max-unsent", "BYTES", "posted bytes that may wait for a slow peer; then it is aborted", count(0),
           4194304),
    Option(_LIMITS, "--max-pending", "N", "datagrams handled at once", count(1), 1024),
    Option(_LIMITS, "--max-datagram-size", "BYTES", "longer ones are cut off", count(1), 65535),
    Option(_LIMITS, "--drain-timeout", "SECONDS", "how long handlers may go on after the signal to stop",
           seconds(zero=True), 30.0),
    Option(_PROXY, "--proxy-protocol", "", "take the client's address from the PROXY header, in each datagram too",
           default=False),
    Option(_PROXY, "--trusted-proxies", "NETWORK[,...]",
           "who may send it, such as 10.0.0.0/8 or unix (default: this host)", several=True),
    Option(_PROXY, "--proxy-timeout", "SECONDS",
           "how long it may take to come with --tcp and --unix; behind some proxies, as long as a client may be silent "
           "at first",
           seconds(), 5.0),
    Option(_TLS, "--certfile", "FILE", "certificate chain, PEM; with several, the client's server name (SNI) chooses",
           several=True),
    Option(_TLS, "--keyfile", "FILE", "private key, PEM, unless it is in the certificate's file; one for each",
           several=True),
    Option(_TLS, "--keyfile-password-file", "FILE", "the keys' password, in one line; SIGHUP reads it again"),
    Option(_TLS, "--client-ca", "FILE", "ask clients for a certificate signed by one of these"),
    Option(_TLS, "--client-cert", "WHETHER", "required, or optional: those without one are served too",
           default="required", choices=("required", "optional")),
    Option(_TLS, "--tls-min", "VERSION", "1.2 or 1.3", default="1.2", choices=("1.2", "1.3")),
    Option(_TLS, "--alpn", "NAME[,...]", "application protocols to offer, the preferred first, such as h2,http/1.1",
           lambda text: text.split(",")),
    Option(_TLS, "--ciphers", "CIPHERS", "those of TLS 1.2, as openssl-ciphers(1) writes them, such as ECDHE+AESGCM"),
    Option(_TLS, "--tls-groups", "GROUP[:...]",
           "key exchange groups, the preferred first, such as X25519MLKEM768:X25519; needs Python 3.15",
           lambda text: text.split(":")),
    Option(_TLS, "--ssl-handshake-timeout", "SECONDS", "how long a client's handshake may take", seconds(), 30.0),
    Option(_CODE, "--threads", "N",
           "limit for subclasses of socketserver.BaseRequestHandler (default: what the system can hold)", count(1)),
    Option(_CODE, "--on-error", "MODULE:FUNCTION", "called with the exception and the stream or datagram that failed",
           name),
    Option(_PROGRAM, "--check", "", "import, read certificates, bind, report what was found, and exit", default=False),
    Option(_PROGRAM, "--lifespan", "MODULE:FUNCTION",
           "returns an async context manager: entered before the servers serve, left after their drain", name),
    Option(_PROGRAM, "--workers", "N",
           "processes that serve, or auto: one for each CPU; SIGHUP replaces them with new ones, which load new code",
           workers, 1),
    Option(_PROGRAM, "--max-requests", "N", "replace a worker that has handled so many connections and datagrams",
           count(1)),
    Option(_PROGRAM, "--max-age", "SECONDS", "replace a worker that is so old", seconds()),
    Option(_PROGRAM, "--stuck-timeout", "SECONDS",
           "replace a worker whose loop is blocked for this long; 0: never", seconds(zero=True), 30.0),
    Option(_PROGRAM, "--loop", "LOOP",
           "auto, uvloop, asyncio, or MODULE:FUNCTION that returns another (default: uvloop where installed)",
           loop, default="auto", choices=Loops(LOOPS)),
    Option(_PROGRAM, "--metrics", "HOST:PORT", "serve /metrics, /ready and /live over HTTP there", place),
    Option(_PROGRAM, "--drain-delay", "SECONDS", "go on this long after the first signal, while /ready says no",
           seconds(zero=True), 0.0),
    Option(_LOG, "--log-level", "LEVEL", "debug, info, warning or error", default="info",
           choices=("debug", "info", "warning", "error")),
    Option(_LOG, "--log-connections", "", "a line for each connection that has ended, whatever the level",
           default=False),
    Option(_LOG, "--log-json", "", "each record as one line, a JSON object", default=False),
)  # fmt: skip


def make_parser(version: str, prog: str = "python -m asyncserver") -> argparse.ArgumentParser:
    """Make the parser, which leaves out what was not typed.

    Args:
        version: what --version prints.
        prog: how the program was called.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [MODULE:HANDLER] [OPTION ...]\n       %(prog)s --help",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version, help="show the version and exit")
    groups = {"": parser} | {
        title: parser.add_argument_group(title) for title in dict.fromkeys(one.group for one in OPTIONS) if title
    }
    for option in OPTIONS:
        _add(groups[option.group], option)
    return parser


def _add(group: argparse._ActionsContainer, option: Option) -> None:
    given: dict[str, Any] = {"help": option.summary.replace("%", "%%"), "default": argparse.SUPPRESS}
    if not option.metavar:
        given |= {"action": argparse.BooleanOptionalAction}
    else:
        given |= {"metavar": option.metavar, "type": option.convert}
        given |= {"choices": option.choices} if option.choices else {}
        given |= {"action": "append"} if option.several else {}
        given |= {} if option.flag.startswith("--") else {"nargs": "?", "default": None}
    group.add_argument(option.flag, **given)


def read(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> argparse.Namespace:
    """Read the command line, and the environment for what was not typed.

    Wrong options end the program with status 2.

    Args:
        parser: of `make_parser()`.
        arguments: those of the command line; None for this program's.
        environment: where an empty variable counts as one that is not set.

    Returns:
        an attribute for each option.
    """
    if "_ARGCOMPLETE" in environment:  # a shell asks for completions
        importlib.import_module("argcomplete").autocomplete(parser)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(unknown[0], [one.flag for one in OPTIONS])}")
    given = {name: value for name, value in vars(parsed).items() if value is not None}
    for option in OPTIONS:
        text = environment.get(option.variable, "")
        if text and option.name not in given:
            try:
                given[option.name] = option.from_text(text)
            except argparse.ArgumentTypeError as exc:
                parser.error(f"environment variable {option.variable}: {exc}")
    values = {option.name: [] if option.several else option.default for option in OPTIONS} | given
    for option in OPTIONS:
        if given.get(option.name, False) is not False and (more := lacking(option.name, values)):
            parser.error(
                f"{option.flag} ({option.variable}) has no effect without {more}: give that too, or leave it out"
            )
    return argparse.Namespace(**values)


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return variables that look like ours and are none, each with the nearest that is."""
    known = [*(option.variable for option in OPTIONS), "ASYNCSERVER_PURE"]  # that one is read on import
    return [
        name + _meant(name, known)
        for name, text in environment.items()
        if name.startswith(_PREFIX) and name not in known and not _OF_KUBERNETES.search(f"{name}={text}")
    ]


def _meant(text: str, known: Sequence[str]) -> str:
    name = text.partition("=")[0]
    near = ["--tcp HOST:PORT"] if name in _OF_OTHERS else difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""
