"""A network of a test's own, with broadcasts and multicasts that reach nobody else."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

_CLONE_NEWNET = 0x40000000  # unshare(2); os.unshare() came with Python 3.12

#: The interface in it, and its addresses.
INTERFACE = "v0"
IPV4, IPV6, LINK_LOCAL = "10.9.0.5", "fd00:9::5", "fe80::5"

_COMMANDS = (
    "ip link set lo up",
    f"ip link add {INTERFACE} type veth peer name v1",
    f"ip link set {INTERFACE} addrgenmode none",
    f"ip addr add {IPV4}/24 brd + dev {INTERFACE}",
    f"ip addr add 10.9.0.6/24 brd + dev {INTERFACE}",
    "ip link set v1 up",
    f"ip link set {INTERFACE} up",
    f"ip route add default dev {INTERFACE}",
    f"ip addr add {IPV6}/64 dev {INTERFACE} nodad",
    f"ip addr add {LINK_LOCAL}/64 dev {INTERFACE} nodad",
)


def in_own_network(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a thread with a network of its own; programs that it starts have it too. Needs root."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        outcome: list[BaseException | None] = []

        def work() -> None:
            try:
                _enter()
                test(*args, **kwargs)
            except BaseException as exc:
                outcome.append(exc)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if outcome and outcome[0] is not None:
            raise outcome[0]

    return run


def _enter() -> None:
    if shutil.which("ip") is None or ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        pytest.skip("needs root, and ip of iproute2")
    for command in _COMMANDS:
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{command}: {done.stderr.strip()}")
        if "peer" in command:  # what goes out at one end must not come in again at the other
            Path("/proc/sys/net/ipv6/conf/v1/disable_ipv6").write_text("1")
    deadline = time.monotonic() + PATIENCE
    while not _is_up():
        assert time.monotonic() < deadline, f"{INTERFACE} does not come up"
        time.sleep(0.01)


def _is_up() -> bool:
    told = [
        subprocess.run(["ip", *command.split(), "dev", INTERFACE], capture_output=True, text=True, check=True).stdout
        for command in ("link show", "-6 addr show tentative", "-6 route show table local")
    ]
    # The routes to our own addresses come last: what is sent before asks the link for them, and is lost.
    return "state UP" in told[0] and not told[1] and f" {IPV6} " in told[2] and f" {LINK_LOCAL} " in told[2]
