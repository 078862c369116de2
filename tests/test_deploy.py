"""The recipes of docs/deploy.md, with the files that it shows: real load balancers before instances that come and go.

Only addresses are replaced, so what is true of a recipe here is true elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.proxykit import connectable, find, nginx_command, running
from tests.serverkit import ROOT
from tests.traffic import Load, Traffic
from tests.workerkit import Program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS = ROOT / "docs"
# The recipes' network becomes one of loopback addresses that no other process of the tests uses: so their ports are
# free, and stay ours while an instance restarts.
NETWORK = f"127.{64 + os.getpid() // 256 % 128}.{os.getpid() % 256}."
FRONT = (NETWORK + "10", 7000)

EACH = [pytest.param(2_000, 1, id="short"), pytest.param(22_000, 10, id="long", marks=pytest.mark.soak)]


def here(text: str) -> str:
    """Replace a recipe's addresses by ours."""
    text = text.replace("--trusted-proxies 10.0.0.10", "--trusted-proxies 127.0.0.1")  # our load balancers' address
    return text.replace("10.0.0.", NETWORK)


def recipe(name: str, folder: Path, *listening: str) -> Path:
    """Write a recipe's file with our addresses; returns where."""
    text = here((DOCS / "deploy" / name).read_text())
    for words in listening:
        assert words in text
        text = text.replace(words, words.replace("7000", "{}:{}".format(*FRONT)).replace(":127", "127"))
    (folder / name).write_text(text)
    return folder / name


def command(option: str) -> list[str]:
    """Return the arguments of the recipes' command that has an option."""
    commands = re.findall(r"^python (.*)$", (DOCS / "deploy.md").read_text().replace("\\\n", " "), re.MULTILINE)
    return next(here(one).split() for one in commands if option in one.split())


class Instance:
    """One of two instances, as a service manager runs it: at one place, stopped and started again."""

    def __init__(self, number: int, folder: Path, option: str) -> None:
        self.folder = folder / f"instance-{number}"
        self.folder.mkdir()
        self.place = f"{NETWORK}{10 + number}:7000"
        self._arguments = [one.replace(NETWORK + "11", f"{NETWORK}{10 + number}") for one in command(option)]
        self.start()

    def start(self) -> None:
        self.program = Program(self.folder, self._arguments)
        self.program.serving()

    def restart(self) -> None:
        assert self.program.end(signal.SIGTERM) == 0
        self.program.close()
        self.start()

    def roll(self) -> None:
        self.program.tell(signal.SIGHUP)
        self.program.serving()


@contextlib.contextmanager
def instances(folder: Path, option: str) -> Iterator[list[Instance]]:
    """Run both."""
    both: list[Instance] = []
    try:
        both.extend(Instance(number, folder, option) for number in (1, 2))
        yield both
    finally:
        for instance in both:
            instance.program.close()


@contextlib.contextmanager
def traffic(both: list[Instance], datagrams: int = 0) -> Iterator[Traffic]:
    """Let clients ask all the while; in the end each question has been answered."""
    with Traffic(FRONT, datagrams=datagrams) as load:
        yield load
    load.check(line for instance in both for line in instance.program.received())
    print(dict(load.count))


def rolling_deploy(both: list[Instance], load: Load, requests: int, rolls: int) -> None:
    """Restart each instance in turn, and roll it so many times, under so many requests at least."""
    for instance in both:
        instance.restart()
        for _ in range(rolls):
            instance.roll()
            load.wait_for("answered", requests // rolls // 2)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("requests", "rolls"), EACH)
def test_haproxy(requests: int, rolls: int, tmp_path: Path) -> None:
    """Two instances behind HAProxy are restarted and rolled in turn: no request fails, no answer is cut off."""
    conf = recipe("haproxy.cfg", tmp_path, "bind :7000")
    haproxy = [find("haproxy"), "-db", "-f", str(conf)]
    with (
        instances(tmp_path, "--tcp") as both,
        running(haproxy, tmp_path / "haproxy.log", up=lambda: connectable(FRONT)),
        traffic(both) as load,
    ):
        rolling_deploy(both, load, requests, rolls)
    assert load.count["answered"] >= requests


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("requests", "rolls"), EACH)
def test_nginx(requests: int, rolls: int, tmp_path: Path) -> None:
    """The same behind nginx."""
    conf = recipe("nginx.conf", tmp_path, "listen 7000;", "listen 7000 udp;")
    with (
        instances(tmp_path, "--udp") as both,
        running(nginx_command(conf), tmp_path / "nginx.log", up=lambda: connectable(FRONT)),
        traffic(both) as load,
    ):
        rolling_deploy(both, load, requests, rolls)
    assert load.count["answered"] >= requests


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("requests", "rolls"), EACH)
def test_nginx_for_datagrams(requests: int, rolls: int, tmp_path: Path) -> None:
    """Behind nginx, rolling restarts lose no datagram either."""
    conf = recipe("nginx.conf", tmp_path, "listen 7000;", "listen 7000 udp;")
    with (
        instances(tmp_path, "--udp") as both,
        running(nginx_command(conf), tmp_path / "nginx.log", up=lambda: connectable(FRONT)),
        traffic(both, datagrams=8) as load,
    ):
        for instance in both * rolls:
            instance.roll()
            load.wait_for("datagrams", requests // rolls // 2)
    assert load.count["datagrams"] >= requests
