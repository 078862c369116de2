"""Datagrams: replies, and handlers that fail."""

from __future__ import annotations

import asyncio
import errno
import inspect
from typing import Any

import pytest

from asyncserver import Datagram
from tests.kit.checks import errors_in, is_balanced_for_datagrams
from tests.kit.datagrams import Place
from tests.kit.handlers import upper_datagram
from tests.kit.waiting import until

# -- replies


async def test_reply_by_return(place: Place) -> None:
    """What the handler returns is sent back to where the datagram came from."""
    async with place.serve(upper_datagram) as server:
        first, second = place.client(server), place.client(server)
        assert await first.ask(b"first") == b"FIRST"
        assert await second.ask(b"second") == b"SECOND"
        assert await first.ask(b"") == b""
        now = server.stats()
        assert (now.datagrams_received, now.datagrams_sent, now.datagrams_answered) == (3, 3, 3)
        assert is_balanced_for_datagrams(server)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_bytes_may_be_returned(udp: Place, kind: type) -> None:
    """bytes, bytearray and memoryview are answers."""

    async def handler(datagram: Datagram) -> Any:
        return kind(b"answer")

    async with udp.serve(handler) as server:
        assert await udp.client(server).ask(b"?") == b"answer"


async def test_reply_many_times_and_late(place: Place) -> None:
    """reply() may be called any number of times, also after waiting, and beside the returned answer."""

    async def handler(datagram: Datagram) -> bytes:
        for number in range(3):
            await datagram.reply(b"%d" % number)
            await asyncio.sleep(0)
        return b"last"

    async with place.serve(handler) as server:
        client = place.client(server)
        client.send(b"?")
        assert [await client.receive() for _ in range(4)] == [b"0", b"1", b"2", b"last"]
        now = server.stats()
        assert (now.datagrams_received, now.datagrams_sent, now.datagrams_answered) == (1, 4, 1)


async def test_silence_is_no_answer(place: Place) -> None:
    """A handler that returns None sends nothing and is counted as silent."""
    done = asyncio.Event()

    async def silent(datagram: Datagram) -> None:
        done.set()

    async with place.serve(silent) as server:
        place.client(server).send(b"?")
        await done.wait()
        await until(lambda: server.stats().completed == 1)
        assert server.stats().datagrams_silent == 1
        assert server.stats().datagrams_sent == 0


async def test_datagram_tells_its_sender(place: Place) -> None:
    """The handler sees the data, the sender's address and the address it was sent to."""
    seen: list[Datagram] = []

    async def handler(datagram: Datagram) -> bytes:
        seen.append(datagram)
        return b"ok"

    async with place.serve(handler) as server:
        client = place.client(server)
        assert await client.ask(b"data") == b"ok"
        (datagram,) = seen
        assert datagram.data == b"data"
        if place.family != "unix":
            assert datagram.address[1] == client.sock.getsockname()[1]
        else:
            assert datagram.address == client.sock.getsockname()
        assert datagram.local_address == server.addresses[0]
        assert not datagram.truncated
        assert repr(datagram) == f"<Datagram from {datagram.address!r}, 4 bytes>"


async def test_too_large_an_answer_is_the_handlers_error(udp: Place, caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit into a datagram is refused by the system, logged, and hurts nobody else."""

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"reply":
            with pytest.raises(OSError, match="70000 bytes are too many for one datagram") as caught:
                await datagram.reply(bytes(70_000))
            assert caught.value.errno == errno.EMSGSIZE
            return b"refused"
        return bytes(70_000) if datagram.data == b"return" else b"fine"

    async with udp.serve(handler) as server:
        client = udp.client(server)
        assert await client.ask(b"reply") == b"refused"
        client.send(b"return")
        assert await client.ask(b"other") == b"fine"
        assert (server.stats().failed, server.stats().completed) == (1, 2)
        assert is_balanced_for_datagrams(server)
    (record,) = errors_in(caplog)
    assert record.exc_info[1].errno == errno.EMSGSIZE


# -- errors


async def test_handler_errors_are_logged_once_and_hurt_nobody(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that raises costs its own datagram; on_error is told, with the datagram."""
    told: list[tuple[BaseException, Any]] = []

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"raise":
            raise ValueError("the handler's own mistake")
        if datagram.data == b"raise later":
            await asyncio.sleep(0)
            raise ValueError("the handler's own mistake")
        return datagram.data.upper()

    async with place.serve(handler, on_error=lambda *event: told.append(event)) as server:
        client = place.client(server)
        client.send(b"raise")
        client.send(b"raise later")
        assert await client.ask(b"fine") == b"FINE"
        await until(lambda: server.stats().failed == 2)
        assert is_balanced_for_datagrams(server)
    assert [source.data for _, source in told] == [b"raise", b"raise later"]
    records = errors_in(caplog)
    assert len(records) == 2
    assert all(str(told[0][1].address) in record.getMessage() for record in records)


async def test_on_error_that_raises_does_no_harm(udp: Place, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged beside the handler's error."""

    def on_error(exc: BaseException, source: object) -> None:
        raise RuntimeError

    async def handler(datagram: Datagram) -> bytes:
        if datagram.data == b"raise":
            raise ValueError
        return b"fine"

    async with udp.serve(handler, on_error=on_error) as server:
        client = udp.client(server)
        client.send(b"raise")
        assert await client.ask(b"other") == b"fine"
    assert [type(record.exc_info[1]) for record in errors_in(caplog)] == [ValueError, RuntimeError]


@pytest.mark.parametrize("answer", ["text", 7, ["list"]])
async def test_wrong_return_type_is_the_handlers_error(
    udp: Place, answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what a handler returns and what this one did."""

    async def handler(datagram: Datagram) -> Any:
        return answer

    async with udp.serve(handler) as server:
        udp.client(server).send(b"?")
        await until(lambda: server.stats().failed == 1)
        assert is_balanced_for_datagrams(server)
    (record,) = errors_in(caplog)
    assert isinstance(record.exc_info[1], TypeError)
    assert "bytes, or None" in str(record.exc_info[1])
    assert repr(answer) in str(record.exc_info[1])


async def test_handler_with_the_wrong_signature_fails_each_datagram_only(
    udp: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Calling it raises before there is a coroutine: logged and counted, and the server lives on."""

    async def no_argument() -> None:
        raise AssertionError("cannot be called")

    # As a decorator may claim it; otherwise it would be refused at once.
    no_argument.__signature__ = inspect.signature(upper_datagram)  # type: ignore[attr-defined]
    async with udp.serve(no_argument) as server:
        client = udp.client(server)
        client.send(b"a")
        client.send(b"b")
        await until(lambda: server.stats().failed == 2)
        assert is_balanced_for_datagrams(server)
    assert len(errors_in(caplog)) == 2


async def test_receiver_that_has_gone_does_not_stop_the_server(udp: Place) -> None:
    """The ICMP error that an answer to a closed port brings back is nobody's failure."""
    async with udp.serve(upper_datagram) as server:
        for _ in range(3):
            gone = udp.client(server)
            gone.send(b"x")
            gone.sock.close()
        client = udp.client(server)
        for _ in range(5):
            assert await client.ask(b"here") == b"HERE"
        assert server.stats().datagrams_received == 8
        assert server.stats().failed == 0
