"""The recipes of docs/deploy.md, with the files that it shows: real load balancers before instances that come and go.

Only addresses are replaced, so what is true of a recipe here is true elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.programs import ROOT
from tests.kit.proxies import connectable, find, nginx_command, running
from tests.kit.traffic import Load, Traffic
from tests.kit.waiting import PATIENCE, wait_until
from tests.kit.workers import WorkerClient, WorkerProgram

DOCS = ROOT / "docs"
# The recipes' network becomes one of loopback addresses that no other process of the tests uses: so their ports are
# free, and stay ours while an instance restarts.
NETWORK = f"127.{64 + os.getpid() // 256 % 128}.{os.getpid() % 256}."
FRONT = (NETWORK + "10", 7000)

EACH = [pytest.param(2_000, 1, id="short"), pytest.param(22_000, 10, id="long", marks=pytest.mark.soak)]


def here(text: str) -> str:
    """Replace a recipe's addresses by ours."""
    text = text.replace("--trusted-proxies 10.0.0.10", "--trusted-proxies 127.0.0.1")  # our load balancers'
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


# Passes on a socket as systemd does.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="app")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Instance:
    """One of two instances, as a service manager runs it: at one place, stopped and started again.

    Attributes:
        held: a socket that outlives restarts, in place of that of its `--udp`.
    """

    held: socket.socket | None = None

    def __init__(self, number: int, folder: Path, option: str) -> None:
        self.folder = folder / f"instance-{number}"
        self.folder.mkdir()
        WorkerProgram.write_app_for_slow_clients(self.folder)
        self._arguments = [one.replace(NETWORK + "11", f"{NETWORK}{10 + number}") for one in command(option)]
        self.start()

    def start(self) -> None:
        if self.held is None:
            self.program = WorkerProgram(self.folder, self._arguments)
        else:
            arguments, where = self._arguments.copy(), self._arguments.index("--udp") + 1
            arguments[where] = "systemd:app"
            descriptor = self.held.fileno()
            self.program = WorkerProgram(self.folder, ["-c", ACTIVATE, str(descriptor), *arguments], (descriptor,))
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
    print(dict(load.count))  # shown by pytest -rP


def rolling_deploy(
    both: list[Instance], load: Load, requests: int, rolls: int, until: Callable[[int], object] | None = None
) -> None:
    """Restart each instance in turn, and roll it so many times, under so many requests at least.

    `until` is asked, with the number of restarts so far, whether the load balancer knows that the instance is back.
    """
    for number, instance in enumerate(both, 1):
        instance.restart()
        if until is not None:
            wait_until(functools.partial(until, number))
        for _ in range(rolls):
            instance.roll()
            load.wait_for("answered", requests // rolls // 2)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("requests", "rolls"), EACH)
def test_haproxy(requests: int, rolls: int, tmp_path: Path) -> None:
    """Two instances behind HAProxy are restarted and rolled in turn: no request fails, no answer is cut off."""
    conf = recipe("haproxy.cfg", tmp_path, "bind :7000")
    haproxy, log = [find("haproxy"), "-db", "-f", str(conf)], tmp_path / "haproxy.log"
    with (
        instances(tmp_path, "--drain-delay") as both,
        running(haproxy, log, up=lambda: connectable(FRONT)),
        traffic(both) as load,
    ):
        rolling_deploy(both, load, requests, rolls, lambda number: log.read_text().count("is UP") == number)
    assert load.count["answered"] >= requests
    # It was told before each of them stopped.
    assert log.read_text().count("is DOWN, reason: Layer7 wrong status, code: 503") == 2


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_haproxy_that_is_not_told_beforehand(tmp_path: Path) -> None:
    """With plain checks, and no delay, twenty restarts cost nothing either: who is refused goes to the other one."""
    conf = recipe("haproxy.cfg", tmp_path, "bind :7000")
    text = conf.read_text().replace("    option httpchk GET /ready\n", "").replace("port 9100", "check-send-proxy")
    assert "check check-send-proxy inter" in text
    conf.write_text(text)
    haproxy = [find("haproxy"), "-db", "-f", str(conf)]
    with (
        instances(tmp_path, "--udp") as both,
        running(haproxy, tmp_path / "haproxy.log", up=lambda: connectable(FRONT)),
        traffic(both) as load,
    ):
        for instance in both * 10:
            instance.restart()
            load.wait_for("answered", 500)


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
    """Behind nginx, rolling restarts lose no datagram either, nor restarts where somebody holds the socket."""
    conf = recipe("nginx.conf", tmp_path, "listen 7000;", "listen 7000 udp;")
    with (
        instances(tmp_path, "--udp") as both,
        contextlib.ExitStack() as held,
        running(nginx_command(conf), tmp_path / "nginx.log", up=lambda: connectable(FRONT)),
    ):
        for number, instance in enumerate(both, 1):
            assert instance.program.end() == 0
            instance.program.close()
            instance.held = held.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            instance.held.bind((f"{NETWORK}{10 + number}", 7000))
            instance.start()
        with traffic(both, datagrams=8) as load:
            for instance in both:
                instance.restart()
                load.wait_for("datagrams", 100)
            for instance in both * rolls:
                instance.roll()
                load.wait_for("datagrams", requests // rolls // 2)
    assert load.count["datagrams"] >= requests


def manifests() -> list[Any]:
    """Parse what Kubernetes is given."""
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((DOCS / "deploy" / "kubernetes.yaml").read_text()))


def seconds(container: Any, option: str) -> float:
    (value,) = (one.removeprefix(option + "=") for one in container["args"] if one.startswith(option + "="))
    return float(value)


def probe(place: tuple[str, int], path: str) -> int:
    """Ask as kubelet does; returns the status."""
    connection = http.client.HTTPConnection(*place, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


def test_kubernetes_files_agree_with_themselves() -> None:
    """Ports, labels and times of the Deployment and the Service fit together."""
    deployment, service = manifests()
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    labels = deployment["spec"]["selector"]["matchLabels"]
    assert labels == pod["metadata"]["labels"] == service["spec"]["selector"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert {f"--tcp=:{ports['app']}", f"--metrics=:{ports['metrics']}"} <= set(container["args"])
    assert [one["targetPort"] for one in service["spec"]["ports"]] == ["app"]
    assert {container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("readiness", "liveness")} == {"metrics"}
    needed = seconds(container, "--drain-delay") + seconds(container, "--drain-timeout") + 6
    assert pod["spec"]["terminationGracePeriodSeconds"] > needed
    readiness = container["readinessProbe"]
    assert seconds(container, "--drain-delay") > 2 * readiness["periodSeconds"] * readiness["failureThreshold"]


def test_kubernetes_pod_ends_as_its_probes_expect(tmp_path: Path) -> None:
    """The pod's own command: ready, then told to stop: not ready, alive, and accepting; then it ends with status 0."""
    (container,) = manifests()[0]["spec"]["template"]["spec"]["containers"]
    arguments = [*container["command"][1:], *container["args"]]
    arguments = [one.replace("=:", f"={FRONT[0]}:").replace("delay=5", "delay=1") for one in arguments]
    monitor = (FRONT[0], 9100)
    ready, live = (container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("readiness", "liveness"))
    with WorkerProgram(tmp_path, arguments) as program:
        program.serving()
        assert (probe(monitor, ready), probe(monitor, live)) == (200, 200)
        program.tell(signal.SIGTERM)
        program.expect("not ready any more")
        assert (probe(monitor, ready), probe(monitor, live)) == (503, 200)
        with WorkerClient(FRONT) as client:
            client.ask()
        assert program.wait() == 0


def test_commands_are_those_of_this_program() -> None:
    """Every option that the recipes use is in --help."""
    asked = [sys.executable, "-m", "asyncserver", "--help"]
    told = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    (container,) = manifests()[0]["spec"]["template"]["spec"]["containers"]
    used = {*re.findall(r"--[a-z][a-z-]+", (DOCS / "deploy.md").read_text())}
    used |= {one.partition("=")[0] for one in container["args"] if one.startswith("--")}
    assert {one for one in used if not re.search(rf"{one}\b", told)} == set()
