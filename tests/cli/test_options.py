"""The table of options: parser, environment and documentation agree with it and with what can be served."""

from __future__ import annotations

import argparse
import inspect
import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import asyncserver
from asyncserver.cli import values
from asyncserver.cli.options import OPTIONS, Option, make_parser, read, unknown_variables
from tests.kit.programs import ROOT

# What is typed for an option, another valid value, and a wrong one with what is said about it.
SAMPLES: dict[str, tuple[str, str, str | None]] = {
    "handler": ("app:handler", "app:Class.method", "app"),
    "--tcp": ("127.0.0.1:7000", "[::1]:7000", "localhost"),
    "--udp": (":7000", "fd:3", "fd:x"),
    "--unix": ("app.sock", "a b.sock", None),
    "--unix-datagram": ("app.sock", "a b.sock", None),
    "--unix-mode": ("660", "600", "999"),
    "--backlog": ("0", "10", "-1"),
    "--reuse-port": ("yes", "no", "perhaps"),
    "--group": ("239.1.2.3%eth0", "ff02::114", "10.0.0.1"),
    "--max-connections": ("1", "1000", "0"),
    "--max-connections-per-host": ("1", "1000", "many"),
    "--idle-timeout": ("0.5", "60", "0"),
    "--keepalive": ("2.5", "60", "0"),
    "--max-unsent": ("0", "65536", "-1"),
    "--max-pending": ("1", "20", "1.5"),
    "--max-datagram-size": ("1", "200", "²"),
    "--drain-timeout": ("0", "1e1", "-1"),
    "--proxy-protocol": ("1", "0", "2"),
    "--trusted-proxies": ("10.0.0.0/8,::1", "unix", None),
    "--proxy-timeout": ("1", "60", "0"),
    "--certfile": ("a.pem", "b.pem", None),
    "--keyfile": ("a.pem", "b.pem", None),
    "--keyfile-password-file": ("a.txt", "b.txt", None),
    "--client-ca": ("a.pem", "b.pem", None),
    "--client-cert": ("optional", "required", "maybe"),
    "--tls-min": ("1.3", "1.2", "1.1"),
    "--alpn": ("h2,http/1.1", "h3", None),
    "--ciphers": ("HIGH", "ECDHE+AESGCM:!aNULL", None),
    "--tls-groups": ("X25519MLKEM768:X25519", "secp384r1", None),
    "--ssl-handshake-timeout": ("1", "2.5", "nan"),
    "--threads": ("1", "16", "0"),
    "--on-error": ("app:report", "app:other", "report"),
    "--check": ("on", "off", "check"),
    "--lifespan": ("app:life", "app:other", "life"),
    "--workers": ("2", "auto", "many"),
    "--max-requests": ("1", "10000", "0"),
    "--max-age": ("0.5", "86400", "0"),
    "--stuck-timeout": ("0", "60", "-1"),
    "--loop": ("asyncio", "app:loop", "trio"),
    "--metrics": ("127.0.0.1:9100", ":9100", "9100"),
    "--drain-delay": ("0", "5", "-1"),
    "--log-level": ("debug", "error", "loud"),
    "--log-connections": ("1", "0", "some"),
    "--log-json": ("on", "off", "json"),
}


# What else must be given with an option.
CERTFILE = {"CERTFILE": "c.pem"}
SUPERVISED = {"WORKERS": "2"}
NEEDS = {
    **dict.fromkeys(("KEYFILE", "CLIENT_CA", "TLS_MIN", "TLS_GROUPS", "SSL_HANDSHAKE_TIMEOUT"), CERTFILE),
    **dict.fromkeys(("KEYFILE_PASSWORD_FILE", "ALPN", "CIPHERS"), CERTFILE),
    "CLIENT_CERT": {**CERTFILE, "CLIENT_CA": "ca.pem"},
    "TRUSTED_PROXIES": {"PROXY_PROTOCOL": "1"},
    "PROXY_TIMEOUT": {"PROXY_PROTOCOL": "1"},
    **dict.fromkeys(("STUCK_TIMEOUT", "MAX_REQUESTS", "MAX_AGE"), SUPERVISED),
}


def flag(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def parsed(*arguments: str, **environment: str) -> dict[str, Any]:
    if environment.get("ASYNCSERVER_UNIX_MODE") or any(word.startswith("--unix-mode") for word in arguments):
        environment = {"ASYNCSERVER_UNIX": "a.sock", **environment}  # it is for files
    for name, needed in NEEDS.items():
        if environment.get(f"ASYNCSERVER_{name}") or any(word.startswith(flag(name)) for word in arguments):
            environment = {f"ASYNCSERVER_{one}": value for one, value in needed.items()} | environment
    return vars(read(make_parser("7"), arguments, environment))


def typed(option: Option, *texts: str) -> list[str]:
    """The arguments that say the same as the texts in the environment."""
    if option.flag == "handler":
        return list(texts)
    if not option.metavar:
        flags = {"yes": option.flag, "1": option.flag, "on": option.flag}
        return [flags.get(text, "--no-" + option.flag.removeprefix("--")) for text in texts]
    return [f"{option.flag}={text}" for text in texts]


all_options = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)


def test_every_option_has_a_sample() -> None:
    """The tests below try each option; a new one has to be given its line above."""
    assert list(SAMPLES) == [option.flag for option in OPTIONS]


@all_options
def test_environment_says_the_same_as_the_command_line(option: Option) -> None:
    """ASYNCSERVER_..., for every option; for those that can be given several times, several."""
    for text in SAMPLES[option.flag][:2]:
        word = shlex.quote(text) if option.several else text
        assert parsed(**{option.variable: word}) == parsed(*typed(option, text)), text
    if option.several:
        both = SAMPLES[option.flag][:2]
        assert parsed(**{option.variable: shlex.join(both)}) == parsed(*typed(option, *both))
        assert len(parsed(*typed(option, *both))[option.name]) == 2


@all_options
def test_what_is_typed_wins(option: Option) -> None:
    """Over the environment, which is then not added to either."""
    first, second, _ = SAMPLES[option.flag]
    assert parsed(*typed(option, first), **{option.variable: second}) == parsed(*typed(option, first))
    assert parsed(*typed(option, second), **{option.variable: first}) == parsed(*typed(option, second))


@all_options
def test_empty_variable_is_none(option: Option) -> None:
    """As if it were not set."""
    assert parsed(**{option.variable: ""}) == parsed()


@pytest.mark.parametrize(
    "option", [one for one in OPTIONS if SAMPLES[one.flag][2] is not None], ids=lambda one: one.flag
)
def test_wrong_value_says_where_it_is(option: Option, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and a line with the flag or the environment's variable, what was given and what was expected."""
    wrong = SAMPLES[option.flag][2] or ""
    with pytest.raises(SystemExit) as caught:
        parsed(**{option.variable: wrong})
    assert caught.value.code == 2
    from_environment = capsys.readouterr().err.splitlines()[-1]
    assert f"environment variable {option.variable}: expected " in from_environment
    assert from_environment.endswith(f"; got {wrong!r}")
    if not option.metavar:
        return
    with pytest.raises(SystemExit):
        parsed(*typed(option, wrong))
    from_command_line = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option.metavar if option.flag == 'handler' else option.flag}: " in from_command_line
    assert repr(wrong) in from_command_line


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (
            ["--udp", ":0", "--certfile", "a.pem"],
            {},
            "--certfile (ASYNCSERVER_CERTFILE) has no effect without --tcp or",
        ),
        (["--udp", ":0", "--proxy-protocol", "--proxy-timeout", "9"], {}, "has no effect without --tcp or --unix"),
        (["--unix-datagram", "x"], {"ASYNCSERVER_MAX_CONNECTIONS": "5"}, "(ASYNCSERVER_MAX_CONNECTIONS) has no effect"),
        (["--stuck-timeout", "5"], {}, "--stuck-timeout (ASYNCSERVER_STUCK_TIMEOUT) has no effect without --workers"),
        (["--max-requests", "5"], {}, "(ASYNCSERVER_MAX_REQUESTS) has no effect without --workers 2 or more"),
        ([], {"ASYNCSERVER_MAX_AGE": "5"}, "--max-age (ASYNCSERVER_MAX_AGE) has no effect without --workers"),
        (["--tcp", ":0", "--max-pending", "1024"], {}, "has no effect without --udp or --unix-datagram"),
        (
            ["--tcp", ":0"],
            {"ASYNCSERVER_MAX_DATAGRAM_SIZE": "9"},
            "--max-datagram-size (ASYNCSERVER_MAX_DATAGRAM_SIZE)",
        ),
        (["--tcp", ":0", "--udp", ":0", "--unix-mode", "660"], {}, "no effect without --unix or --unix-datagram"),
        (["--no-proxy-protocol", "--unix-mode", "660"], {}, "--unix-mode (ASYNCSERVER_UNIX_MODE) has no effect"),
        (["--unix", "systemd:app", "--unix-mode", "660"], {}, "without --unix or --unix-datagram a path: give that"),
        (["--unix", "a", "--reuse-port"], {}, "--reuse-port (ASYNCSERVER_REUSE_PORT) has no effect without --tcp"),
        (
            ["--tcp", "fd:3", "--udp", "systemd:x", "--reuse-port"],
            {},
            "without --tcp or --udp HOST:PORT: give that too, or leave",
        ),
        (["--udp", ":0", "--log-connections"], {}, "--log-connections (ASYNCSERVER_LOG_CONNECTIONS) has no effect"),
        (["--keyfile", "key.pem"], {}, "--keyfile (ASYNCSERVER_KEYFILE) has no effect without --certfile"),
        (["--client-ca", "ca.pem"], {}, "--client-ca (ASYNCSERVER_CLIENT_CA) has no effect without --certfile"),
        (["--tls-min", "1.3"], {}, "--tls-min (ASYNCSERVER_TLS_MIN) has no effect without --certfile"),
        (
            [],
            {"ASYNCSERVER_TLS_GROUPS": "X25519"},
            "--tls-groups (ASYNCSERVER_TLS_GROUPS) has no effect without --cert",
        ),
        (["--ssl-handshake-timeout", "3"], {}, "has no effect without --certfile"),
        (["--certfile", "a.pem", "--client-cert", "optional"], {}, "has no effect without --client-ca"),
        (["--trusted-proxies", "unix"], {}, "has no effect without --proxy-protocol"),
        (["--trusted-proxies", "unix", "--no-proxy-protocol"], {}, "has no effect without --proxy-protocol"),
    ],
)
def test_option_without_effect_is_refused(
    arguments: list[str], environment: dict[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever gave it wanted something that would not happen: TLS for datagrams, say."""
    with pytest.raises(SystemExit) as caught:
        read(make_parser("7"), arguments, environment)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_option_that_is_switched_off_needs_no_effect() -> None:
    """It asks for what is the case; and the default address is of both kinds."""
    parsed("--udp", ":0", "--no-proxy-protocol", ASYNCSERVER_PROXY_PROTOCOL="0")
    parsed("--max-pending", "5", "--max-connections", "5")
    parsed("--reuse-port", "--tcp", "fd:3", "--udp", ":0")
    parsed("--no-reuse-port", "--unix", "a.sock")


def test_unknown_variables() -> None:
    """Those that Kubernetes makes of a service's name are nobody's mistake."""
    kubernetes = {
        "ASYNCSERVER_SERVICE_HOST": "10.0.0.1",
        "ASYNCSERVER_SERVICE_PORT_HTTP": "80",
        "ASYNCSERVER_PORT": "tcp://10.0.0.1:80",
        "ASYNCSERVER_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    mistakes = {"ASYNCSERVER_MAXCONNECTIONS": "5", "ASYNCSERVER_PORT": "80"}
    assert unknown_variables({**kubernetes, "PATH": "/", "ASYNCSERVER_TCP": ":0", "ASYNCSERVER_PURE": "1"}) == []
    told = unknown_variables(mistakes)
    assert told[0] == "ASYNCSERVER_MAXCONNECTIONS; did you mean ASYNCSERVER_MAX_CONNECTIONS?"
    assert told[1].startswith("ASYNCSERVER_PORT")


def test_quote_that_is_not_closed(capsys: pytest.CaptureFixture[str]) -> None:
    """Several values are quoted as in a shell; the error tells the variable."""
    with pytest.raises(SystemExit):
        parsed(ASYNCSERVER_UNIX="'a.sock")
    assert "ASYNCSERVER_UNIX: expected values separated by spaces (No closing quotation)" in capsys.readouterr().err


def test_defaults_are_those_of_the_functions() -> None:
    """Without an option the command line serves as serve(), serve_datagrams() and run() do."""
    defaults = parsed()
    for function in (asyncserver.serve, asyncserver.serve_datagrams, asyncserver.run):
        for parameter in inspect.signature(function).parameters.values():
            name = {"path_mode": "unix_mode"}.get(parameter.name, parameter.name)
            if name in defaults and parameter.default is not inspect.Parameter.empty:
                assert defaults[name] == (list(parameter.default) if parameter.default == () else parameter.default)


def test_every_parameter_has_an_option() -> None:
    """Whatever can be said to serve(), serve_datagrams(), run() and tls_context() can be typed."""
    other_names = {
        "host": "tcp", "port": "tcp", "fd": "tcp", "path": "unix", "path_mode": "unix_mode", "servings": "tcp",
        "vsock": "tcp", "ssl": "certfile", "more_certificates": "certfile", "minimum_version": "tls_min",
        "groups": "tls_groups", "password": "keyfile_password_file",
    }  # fmt: skip
    not_typed = {"sock"}  # an object of a program's
    names = {option.name for option in OPTIONS}
    functions = (asyncserver.serve, asyncserver.serve_datagrams, asyncserver.run, asyncserver.tls_context)
    parameters = set(itertools.chain.from_iterable(inspect.signature(function).parameters for function in functions))
    assert {other_names.get(name, name) for name in parameters - not_typed} <= names


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version tells that of the package and leaves with 0."""
    with pytest.raises(SystemExit) as caught:
        read(make_parser(f"asyncserver {asyncserver.__version__}"), ["--version"], {})
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"asyncserver {asyncserver.__version__}\n"


# -- completion


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("python -m asyncserver --max-c", {"--max-connections", "--max-connections-per-host"}),
        ("python -m asyncserver app:handler --loop ", {"auto", "uvloop", "asyncio"}),
        ("python -m asyncserver app:handler --unix a --certf", {"--certfile"}),
    ],
)
def test_shells_can_complete(line: str, words: set[str], tmp_path: Path) -> None:
    """What argcomplete's shell function asks, as it asks it; and it finds the module to be one that answers."""
    pytest.importorskip("argcomplete")
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE": "3"}
    environment = {
        **os.environ,
        **asked,
        "PYTHONPATH": str(ROOT),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out"),
    }
    subprocess.run([sys.executable, "-m", "asyncserver"], env=environment, cwd=tmp_path, check=True, timeout=60)
    assert set((tmp_path / "out").read_text().replace("\v", " ").split()) == words
    finding = [sys.executable, "-m", "argcomplete._check_module", "asyncserver"]
    subprocess.run(finding, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, check=True, timeout=60)


# -- addresses


@given(st.text(max_size=30))
@example("fd:²")
@example("[::1:80")
@example("::")
@example(":-1")
@example("systemd:")
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """What comes out is for serve(), or names sockets of systemd's; everything else says what was expected, and got."""
    try:
        place = values.address(text)
    except argparse.ArgumentTypeError as exc:
        assert text in str(exc) or repr(text) in str(exc)
    else:
        if set(place) != {"systemd"}:
            asyncserver.serve(_nothing, **place).close()


@given(
    st.one_of(st.ip_addresses().map(str), st.just(""), st.from_regex(r"[a-z0-9.-]+", fullmatch=True)),
    st.integers(0, 65535),
)
def test_host_and_port(host: str, port: int) -> None:
    """A name, an IPv4 address, an IPv6 address in brackets, or nothing for every interface."""
    if host == "fd":
        return
    shown = f"[{host}]" if ":" in host else host
    assert values.address(f"{shown}:{port}") == {"host": host or None, "port": port}


async def _nothing(_: object) -> None:
    """Handle nothing."""


def is_path(text: str) -> bool:
    return "\0" not in text and not text.startswith("systemd:")


@given(st.lists(st.text(min_size=1, max_size=20).filter(is_path), min_size=1, max_size=5))
def test_any_paths_can_be_in_the_environment(paths: list[str]) -> None:
    """Quoted as in a shell, whatever is in them."""
    found = parsed(ASYNCSERVER_UNIX=shlex.join(paths))["unix"]
    assert found == [{"path": path} for path in paths]


# -- the documentation


def table() -> str:
    """The options as docs/running.md shows them."""
    lines = ["| option | what it does |", "|---|---|"]
    for title, group in itertools.groupby(OPTIONS, lambda option: option.group):
        lines += [f"| **{title}** | |"] * bool(title)
        for option in group:
            shown = f"{option.flag} {option.metavar}".strip().removeprefix("handler ")
            lines.append(f"| `{shown}` | {option.summary.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def test_docs_tell_of_each_option() -> None:
    """Their table is the one that is made of the options."""
    text = (ROOT / "docs/running.md").read_text()
    assert table() in text, f"docs/running.md needs this table:\n{table()}"
