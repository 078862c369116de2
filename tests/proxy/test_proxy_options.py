"""How a server is told that a proxy is in front of it: arguments, and the command line."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver.cli import main as cli


async def handler(stream: asyncserver.Stream) -> None:
    del stream


async def datagram_handler(datagram: asyncserver.Datagram) -> None:
    del datagram


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"proxy_protocol": 1}, TypeError, "proxy_protocol must be True or False, got 1"),
        ({"proxy_protocol": True, "proxy_timeout": 0}, ValueError, "proxy_timeout must be more than 0 seconds"),
        ({"proxy_protocol": True, "proxy_timeout": None}, TypeError, "proxy_timeout must be a number of seconds"),
        ({"trusted_proxies": ["10.0.0.0/8"]}, ValueError, "add proxy_protocol=True"),
        ({"proxy_protocol": True, "trusted_proxies": "10.0.0.0/8"}, TypeError, r"\['10.0.0.0/8'\]"),
    ],
)
def test_wrong_arguments(options: Any, error: type[Exception], words: str) -> None:
    """Arguments that cannot be meant are refused at once."""
    with pytest.raises(error, match=words):
        asyncserver.serve(handler, "127.0.0.1", 0, **options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"proxy_protocol": 1}, TypeError, "proxy_protocol must be True or False, got 1"),
        ({"trusted_proxies": ["10.0.0.0/8"]}, ValueError, "add proxy_protocol=True"),
        ({"proxy_protocol": True, "trusted_proxies": "10.0.0.0/8"}, TypeError, r"\['10.0.0.0/8'\]"),
        ({"proxy_protocol": True, "trusted_proxies": ["10.0.0.1/8"]}, ValueError, "host bits"),
    ],
)
def test_wrong_arguments_for_datagrams(options: Any, error: type[Exception], words: str) -> None:
    """The same, where there is no time to wait for a header."""
    with pytest.raises(error, match=words):
        asyncserver.serve_datagrams(datagram_handler, "127.0.0.1", 0, **options)


def served(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Coroutine[Any, Any, None]:
    """Return what the command line would run."""
    caught: list[Any] = []
    monkeypatch.setattr(cli, "run_program", lambda servings, *_, **__: caught.extend(servings))
    assert cli.main(arguments) == 0
    (serving,) = caught
    assert isinstance(serving, asyncserver.Serving)
    return serving


@pytest.mark.parametrize("option", ["--udp", "--unix-datagram"])
async def test_command_line_for_datagrams(option: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same options; there is no time to set."""
    place = "127.0.0.1:0" if option == "--udp" else str(tmp_path / "socket")
    serving: Any = served(monkeypatch, option, place, "--proxy-protocol", "--trusted-proxies", "10.0.0.0/8,unix")
    async with serving as server:
        assert server._proxies.names == ("10.0.0.0/8", "unix")
    serving = served(monkeypatch, option, place)
    async with serving as server:
        assert server._proxies is None
    with pytest.raises(SystemExit, match="2"):
        cli.main([option, place, "--proxy-protocol", "--proxy-timeout", "60"])


async def test_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """--proxy-protocol and --trusted-proxies, with commas and several times."""
    networks = ("--trusted-proxies", "10.0.0.0/8,127.0.0.1", "--trusted-proxies", "unix")
    serving: Any = served(monkeypatch, "--tcp", "127.0.0.1:0", "--proxy-protocol", "--proxy-timeout", "60", *networks)
    async with serving as server:
        assert server._proxy_timeout == 60
        assert server._proxies.names == ("10.0.0.0/8", "127.0.0.1", "unix")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["--tcp", "127.0.0.1:0", *networks])
