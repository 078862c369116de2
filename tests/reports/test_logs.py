"""Logs: what records tell besides their text, a line for each connection, records as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncserver
from asyncserver import Datagram, Stream
from asyncserver.monitoring.log_format import JSONFormatter
from asyncserver.net.addresses import format_address
from asyncserver.servers.handlers import HandlerServer
from tests.kit.checks import records
from tests.kit.clients import Client
from tests.kit.handlers import UpperProtocol, upper
from tests.kit.transports import Transport
from tests.kit.waiting import until

CONNECTIONS = logging.getLogger("asyncserver.connection")


@pytest.fixture
def asked_for() -> Iterator[None]:
    """The lines about connections, asked for."""
    CONNECTIONS.setLevel(logging.INFO)
    yield
    CONNECTIONS.setLevel(logging.NOTSET)


# -- fields


async def test_failure_of_a_handler_tells_about_its_connection(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """The peer, the server, how many bytes: for filters and formatters, not in the text alone."""
    peers: list[Any] = []

    async def fail(stream: Stream) -> None:
        peers.append(stream.peer_address)
        await stream.send((await stream.receive()) * 2)
        raise ValueError("on purpose")

    async with transport.serve(fail) as server, transport.connect(server) as client:
        await client.send(b"hello")
        await client.receive_exactly(10)
        await until(lambda: server.stats().failed == 1)
        (record,) = records(caplog)
        assert record.server == server.label
        assert record.peer == format_address(peers[0])
        assert (record.bytes_received, record.bytes_sent, record.outcome) == (5, 10, "failed")


async def test_failure_with_a_datagram_tells_about_it(caplog: pytest.LogCaptureFixture) -> None:
    """Who sent it, and to which server."""
    peers: list[Any] = []

    async def fail(datagram: Datagram) -> None:
        peers.append(datagram.address)
        raise ValueError("on purpose")

    async with asyncserver.serve_datagrams(fail, "127.0.0.1", 0) as server:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=server.addresses[0]
        )
        transport.sendto(b"hello")
        await until(lambda: server.stats().failed == 1)
        transport.close()
        (record,) = records(caplog)
        assert record.server == server.label == f"udp://127.0.0.1:{server.addresses[0][1]}"
        assert record.peer == format_address(peers[0])


async def test_refused_handshake_tells_about_its_connection(tls: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, with its outcome."""
    caplog.set_level(logging.DEBUG, "asyncserver")
    async with tls.serve(upper) as server:
        client = Client((await Client.connect(server.addresses[0])).sock)
        await client.send(b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: server.stats().refused == 1)
        client.close()
    (record,) = [record for record in records(caplog) if "handshake" in record.getMessage()]
    assert (record.server, record.outcome) == (server.label, "refused")
    assert record.peer in record.getMessage().replace("('", "").replace("', ", ":")


# -- a line for each connection


@pytest.mark.usefixtures("asked_for")
async def test_line_for_each_connection(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """Asked for, at INFO: who it was, how it ended, how long it took, and how many bytes."""
    async with transport.serve(upper) as server, transport.connect(server) as client:
        assert await client.ask(b"hello") == b"HELLO"
        assert not records(caplog, CONNECTIONS.name)
        await client.send_eof()
        await until(lambda: server.stats().completed == 1)
    (record,) = records(caplog, CONNECTIONS.name)
    assert record.levelno == logging.INFO
    assert (record.outcome, record.bytes_received, record.bytes_sent) == ("completed", 5, 5)
    assert record.server == server.label
    assert 0 < record.duration < 60
    assert record.getMessage() == (
        f"{record.peer}: connection completed after {record.duration:.3f} s, 5 bytes received, 5 sent"
    )


@pytest.mark.usefixtures("asked_for")
@pytest.mark.parametrize("outcome", ["failed", "cancelled", "timed_out", "refused"])
async def test_line_tells_the_outcome(tls: Transport, outcome: str, caplog: pytest.LogCaptureFixture) -> None:
    """As the counters call it; a connection that no handler saw has its line too."""

    async def end(stream: Stream) -> None:
        if outcome == "failed":
            raise ValueError("on purpose")
        await stream.receive_exactly(100 if outcome == "timed_out" else 1)
        await asyncio.Event().wait()

    options = {"idle_timeout": 0.05} if outcome == "timed_out" else {"drain_timeout": 0}
    async with tls.serve(end, **options) as server:
        if outcome == "refused":
            client = await Client.connect(server.addresses[0])
            await client.send(b"no hello")
        else:
            client = await tls.connect(server)
        if outcome == "cancelled":
            await client.send(b"x")
            await until(lambda: server.stats().bytes_received == 1)
            await server.close()
        await until(lambda: getattr(server.stats(), outcome) == 1)
        client.close()
    (record,) = records(caplog, CONNECTIONS.name)
    assert record.outcome == outcome
    assert f": connection {outcome.replace('_', ' ')} after " in record.getMessage()


@pytest.mark.usefixtures("asked_for")
async def test_log_handler_that_fails_harms_nobody(
    tcp: Transport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The connection ends as its handler did; what went wrong is printed, as logging does it."""

    def fail(record: logging.LogRecord) -> bool:
        raise ValueError("a filter that fails")

    monkeypatch.setattr(CONNECTIONS, "filters", [fail])
    async with tcp.serve(upper) as server:
        client = await tcp.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        client.close()
        await until(lambda: server.stats().completed == 1)
        assert server.stats().failed == 0
    assert "a filter that fails" in capsys.readouterr().err


async def test_protocols_have_lines_too(tcp: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """Without being asked for, at DEBUG, where that is enabled."""

    caplog.set_level(logging.DEBUG, "asyncserver")
    async with tcp.serve(asyncserver.from_protocol(UpperProtocol)) as server:
        client = await tcp.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        client.close()
        await until(lambda: server.stats().completed == 1)
    (record,) = records(caplog, CONNECTIONS.name)
    assert (record.levelno, record.outcome) == (logging.DEBUG, "completed")
    assert (record.bytes_received, record.bytes_sent) == (5, 5)


async def test_without_being_asked_nothing_is_put_around_the_handler(tcp: Transport) -> None:
    """What is not logged costs nothing: the server calls the handler itself."""
    asyncio.get_running_loop().set_debug(False)  # in which it would be timed
    async with tcp.serve(upper) as server:
        assert isinstance(server, HandlerServer)
        assert server._run is upper


# -- JSON


def as_json(**attributes: Any) -> dict[str, Any]:
    line = JSONFormatter().format(logging.makeLogRecord({"name": "asyncserver", "levelname": "INFO", **attributes}))
    assert "\n" not in line

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    found: dict[str, Any] = json.loads(line, parse_constant=refuse)
    return found


def test_record_is_an_object_in_a_line() -> None:
    """Time in UTC, level, logger, process, message, and the fields, with their types where JSON has them."""
    extra = {"peer": "127.0.0.1:5000", "duration": 0.25, "bytes_sent": 5, "checked": True, "nothing": None}
    found = as_json(msg="%d of %s", args=(7, "nine\nlines"), created=1e9 + 0.25, process=42, **extra)
    assert found == {
        "time": "2001-09-09T01:46:40.250+00:00",
        "level": "INFO",
        "logger": "asyncserver",
        "process": 42,
        "message": "7 of nine\nlines",
        **extra,
    }


def test_exception_is_a_text() -> None:
    """With its traceback, in one field."""
    try:
        raise ValueError("on purpose")
    except ValueError:
        found = as_json(msg="failed", exc_info=sys.exc_info(), stack_info="Stack")
    assert found["exception"].startswith("Traceback (most recent call last):\n")
    assert found["exception"].endswith("ValueError: on purpose")
    assert found["stack"] == "Stack"
    assert "exception" not in as_json(msg="no error", exc_info=(None, None, None))


class Broken:
    """An object that cannot be written."""

    def __repr__(self) -> str:
        raise ValueError("no")


class BrokenError(Exception):
    def __str__(self) -> str:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (("127.0.0.1", 80), "('127.0.0.1', 80)"),
        ({1: {2}}, "{1: {2}}"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (1 << 63, str(1 << 63)),
        pytest.param(10**5000, "(it could not be written: ValueError)", id="too long"),
        (b"\xff", "b'\\xff'"),
        ("\udcff\u2028", "\udcff\u2028"),
        pytest.param(Broken(), "(it could not be written: ValueError)", id="broken"),
        (logging.INFO, 20),
    ],
)
def test_odd_values_are_written_as_text(value: object, written: object) -> None:
    """Each is valid JSON; of what cannot be written at all the reason is told."""
    assert as_json(msg="odd", value=value)["value"] == written


def test_odd_records_are_written() -> None:
    """Arguments that do not fit, a message that is an object, an exception that cannot be told."""
    assert as_json(msg="%d", args=("x",))["message"] == "'%d' % ('x',)"
    assert as_json(msg=Broken())["message"] == "(it could not be written: ValueError)"
    assert "BrokenError" in as_json(msg="", exc_info=(BrokenError, BrokenError(), None))["exception"]
    assert as_json(msg="", exc_info=True, level="mine", time="mine")["level"] == "INFO"


@given(
    st.dictionaries(
        st.text(min_size=1),
        st.recursive(st.none() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=8),
        max_size=5,
    )
)
def test_any_fields_are_json(fields: dict[str, Any]) -> None:
    """Whatever a program puts into `extra`."""
    found = as_json(**{f"x{name}": value for name, value in fields.items()}, msg="m")
    assert {f"x{name}" for name in fields} <= set(found)
