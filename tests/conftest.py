"""Both loops for every asynchronous test, in debug mode; servers and certificates to test with."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, settings

import asyncserver
from tests.kit import certificates
from tests.kit.interruptions import INTERRUPTIONS, Interrupt
from tests.kit.transports import KINDS, Transport
from tests.kit.waiting import PATIENCE

# A busy machine, on which an example takes seconds, proves nothing about what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

uvloop: Any = importlib.import_module("uvloop") if importlib.util.find_spec("uvloop") else None

#: What tells make that it runs in make, a service of others' sockets, help of a terminal, and clients of a proxy.
_OTHERS_VARIABLES = ("MAKE", "MFLAGS", "LISTEN_", "NOTIFY_", "WATCHDOG_", "COLUMNS", "FORCE_COLOR")
_OTHERS_PROXIES = {"http_proxy", "https_proxy", "all_proxy"}
#: Those that the tests send.
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def _patient(factory: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[], asyncio.AbstractEventLoop]:
    def make() -> asyncio.AbstractEventLoop:
        loop = factory()
        loop.slow_callback_duration = 5.0  # a busy machine is not what these tests are about
        return loop

    return make


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each asynchronous test on the standard library's loop, and on uvloop where it is installed."""
    factories = {"asyncio": _patient(asyncio.new_event_loop)}
    if uvloop is not None and "ASYNCSERVER_TESTS_WITHOUT_UVLOOP" not in os.environ:
        factories["uvloop"] = _patient(uvloop.new_event_loop)
    return factories


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run three tests for each processor, for most of them wait; no more than eight, for some are crowds."""
    return min(3 * len(os.sched_getaffinity(0)), 8)


@pytest.fixture(autouse=True)
def _no_stray_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which the loop had to log an error, such as an exception in a callback."""
    yield
    stray = [
        record for record in caplog.get_records("call") if record.name == "asyncio" and record.levelno >= logging.ERROR
    ]
    assert not stray, [record.getMessage() for record in stray]


@pytest.fixture(autouse=True, scope="session")
def _own_environment() -> Iterator[None]:
    """Start the tests' programs as from a person's shell, whatever started the tests: make, systemd, a shell's `&`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_OTHERS_VARIABLES) or name.lower() in _OTHERS_PROXIES:
                patch.delenv(name)
        # What is ignored stays ignored in the programs that are started; a background process ignores SIGINT.
        ignored = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
        for number in ignored:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        yield
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Signs every certificate of the tests."""
    return certificates.authority()


@pytest.fixture(scope="session")
def server_context() -> asyncserver.TLSContext:
    """TLS for servers, with the defaults that users get."""
    return certificates.server_context()


@pytest.fixture(scope="session")
def client_context() -> ssl.SSLContext:
    """TLS for clients who trust the tests' authority."""
    return certificates.client_context()


@pytest.fixture(scope="session")
def certfile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost and 127.0.0.1, with its key, PEM."""
    folder = tmp_path_factory.mktemp("tls")
    certificates.write_files(folder)
    return folder / "both.pem"


@pytest.fixture(params=KINDS)
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Transport:
    """Each way to carry a connection."""
    return Transport(request.param, tmp_path)


@pytest.fixture
def tcp(tmp_path: Path) -> Transport:
    """Plain TCP, where nothing else is to be learnt from the others."""
    return Transport("tcp", tmp_path)


@pytest.fixture
def tls(tmp_path: Path) -> Transport:
    """TLS over TCP."""
    return Transport("tls", tmp_path)


@pytest.fixture
def slow_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients may take a while to begin: in the few threads of an executor, on a busy machine."""
    monkeypatch.setattr("asyncserver.net.socket_info._FIRST_WORDS", PATIENCE)


@pytest.fixture
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drains wait for the first words of a newcomer for less than half a second, where none will come."""
    monkeypatch.setattr("asyncserver.net.socket_info._FIRST_WORDS", 0.1)


@pytest.fixture
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drains wait for a protocol's next write for less than a second, where it will write no more."""
    monkeypatch.setattr("asyncserver.adapters.protocol_connection._PAUSE", 0.1)


@pytest.fixture(params=list(INTERRUPTIONS))
def interrupt(request: pytest.FixtureRequest) -> Interrupt:
    """Each way to interrupt an operation that waits."""
    return INTERRUPTIONS[request.param]
