"""from_protocol and from_callback: what was written for asyncio runs unchanged, under our limits and drain."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any, cast

import pytest

import asyncserver
import asyncserver.adapters
from asyncserver import from_callback, from_protocol
from tests.support import Client, TLSClient, Transport, eventually, open_socket, within

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from asyncserver import ProtocolHandler


class Upper(asyncio.Protocol):
    """Answers in capitals, and keeps a record of its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.append("connection_made")
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.calls.append("data_received")
        self.transport.write(data.upper())

    def eof_received(self) -> bool | None:
        self.calls.append("eof_received")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("connection_lost")
        self.lost.set_result(exc)


class BufferedUpper(asyncio.BufferedProtocol):
    """The same with a buffer of its own."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.buffer = bytearray(1000)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)  # of a bytearray itself asyncio's TLS fills a copy: its bug

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]).upper())


async def upper_callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data.upper())
        await writer.drain()
    writer.close()


HANDLERS: dict[str, Callable[[], ProtocolHandler]] = {
    "Protocol": lambda: from_protocol(Upper),
    "BufferedProtocol": lambda: from_protocol(BufferedUpper),
    "callback": lambda: from_callback(upper_callback),
}


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for peers that do not answer waits for a short time only."""
    monkeypatch.setattr(asyncserver.adapters, "_SHUTDOWN_TIMEOUT", 0.3)
    monkeypatch.setattr(asyncserver.adapters, "_CLOSE_TIMEOUT", 0.3)


@pytest.fixture(params=list(HANDLERS))
def handler(request: pytest.FixtureRequest) -> ProtocolHandler:
    """Each style there is."""
    return HANDLERS[request.param]()


class Made:
    """A factory that keeps what it made."""

    def __init__(self, make: Callable[[], Any] = Upper) -> None:
        self.make = make
        self.protocols: list[Any] = []

    def __call__(self) -> Any:
        self.protocols.append(self.make())
        return self.protocols[-1]


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "asyncserver"]


# -- they work


async def test_echo(transport: Transport, handler: ProtocolHandler) -> None:
    """Questions and answers, counted; the end of the questions is the end of the connection."""
    async with transport.serve(handler) as server:
        client = await transport.connect(server)
        for number in range(50):
            question = b"question %d" % number
            assert await client.ask(question) == question.upper()
        (connection,) = server.connections
        assert connection.bytes_received == connection.bytes_sent == server.stats().bytes_sent
        await client.send_eof()
        assert await client.receive_all() == b""
        client.close()
        await eventually(lambda: server.stats().completed == 1)
        assert (
            server.stats().bytes_received
            == server.stats().bytes_sent
            == sum(len(b"question %d" % n) for n in range(50))
        )
        assert server.stats().active == 0


async def test_much_data(transport: Transport, handler: ProtocolHandler) -> None:
    """Ten megabytes each way arrive whole."""
    async with transport.serve(handler) as server:
        client = await transport.connect(server)
        data = b"abcdefghijklmnopqrstuvwxyz" * 400_000
        sending = asyncio.create_task(client.send(data))
        assert await client.receive_exactly(len(data)) == data.upper()
        await within(sending)
        client.close()


async def test_calls_of_a_protocol(transport: Transport) -> None:
    """start -> connection_made [-> data_received*] [-> eof_received] -> connection_lost -> end."""
    made = Made()
    async with transport.serve(from_protocol(made)) as server:
        client = await transport.connect(server)
        await client.ask(b"hello")
        await client.send_eof()
        assert await client.receive_all() == b""
        client.close()
        (protocol,) = made.protocols
        assert await within(protocol.lost) is None
    assert protocol.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]


async def test_plain_function_as_callback(transport: Transport) -> None:
    """As in asyncio.start_server, a callback need not be a coroutine function."""
    tasks = set()

    def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.get_running_loop().create_task(upper_callback(reader, writer)))

    async with transport.serve(from_callback(callback)) as server:
        client = await transport.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        await client.send_eof()
        assert await client.receive_all() == b""
        client.close()
    await within(asyncio.gather(*tasks))


async def test_callback_that_returns_early(transport: Transport) -> None:
    """The connection stays open until the writer is closed, as in asyncio.start_server."""
    writers: list[asyncio.StreamWriter] = []

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    async with transport.serve(from_callback(callback)) as server:
        client = await transport.connect(server)
        await eventually(lambda: writers)
        writers[0].write(b"later")
        assert await client.receive() == b"later"
        assert server.stats().active == 1
        writers[0].close()
        assert await client.receive_all() == b""
        client.close()
        await eventually(lambda: server.stats().completed == 1)


async def test_readers_limit(tcp: Transport) -> None:
    """`limit` is the StreamReader's."""

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ValueError):
            await reader.readline()
            raise AssertionError("the line was longer than the limit")
        writer.write(b"too long")
        writer.close()

    async with tcp.serve(from_callback(callback, limit=10)) as server:
        client = await tcp.connect(server)
        await client.send(b"x" * 100)
        assert await client.receive_all() == b"too long"
        client.close()


# -- their transport


async def test_half_close(transport: Transport) -> None:
    """eof_received() that returns true keeps the connection open for the answer; under TLS asyncio cannot."""

    class AtEnd(Upper):
        received = b""

        def data_received(self, data: bytes) -> None:
            self.received += data

        def eof_received(self) -> bool:
            self.transport.write(self.received[::-1])
            self.transport.close()
            return True

    if transport.tls:
        return
    async with transport.serve(from_protocol(AtEnd)) as server:
        client = await transport.connect(server)
        await client.send(b"0123456789")
        await client.send_eof()
        assert await client.receive_all() == b"9876543210"
        client.close()


async def test_write_eof(transport: Transport) -> None:
    """After write_eof() the peer sees the end and is still heard; TLS says beforehand that it cannot."""

    class Ends(Upper):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            if self.transport.can_write_eof():
                self.transport.writelines([b"last ", b"words"])
                self.transport.write_eof()
            else:
                self.transport.write(b"last words")
                self.transport.close()

        def data_received(self, data: bytes) -> None:
            self.calls.append(data.decode())

    made = Made(Ends)
    async with transport.serve(from_protocol(made)) as server:
        client = await transport.connect(server)
        assert await client.receive_all() == b"last words"
        (protocol,) = made.protocols
        assert protocol.transport.can_write_eof() == (not transport.tls)
        if not transport.tls:
            await client.send(b"thanks")
            await eventually(lambda: "thanks" in protocol.calls)
        client.close()
        await eventually(lambda: server.stats().completed == 1)
        assert server.stats().bytes_sent == len(b"last words")


async def test_pause_writing(transport: Transport) -> None:
    """A peer that does not read: pause_writing(), then resume_writing(), and every byte in its place."""

    class Floods(Upper):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.set_write_buffer_limits(high=1 << 16)
            for _ in range(256):  # under TLS asyncio looks at its limits between two writes only
                self.transport.write(b"x" * (1 << 16))

        def pause_writing(self) -> None:
            self.calls.append("pause_writing")

        def resume_writing(self) -> None:
            self.calls.append("resume_writing")

    made = Made(Floods)
    async with transport.serve(from_protocol(made)) as server:
        client = await transport.connect(server)
        await eventually(lambda: made.protocols and "pause_writing" in made.protocols[0].calls)
        (protocol,) = made.protocols
        assert protocol.transport.get_write_buffer_size() > 1 << 16
        assert protocol.transport.get_write_buffer_limits() == (1 << 14, 1 << 16)
        assert await client.receive_exactly(1 << 24) == b"x" * (1 << 24)
        await eventually(lambda: "resume_writing" in protocol.calls)
        assert await client.ask(b"hello") == b"HELLO"
        client.close()


async def test_pause_reading(transport: Transport) -> None:
    """pause_reading() leaves the bytes to the kernel until resume_reading()."""
    made = Made()
    async with transport.serve(from_protocol(made)) as server:
        client = await transport.connect(server)
        assert await client.ask(b"one") == b"ONE"
        (protocol,) = made.protocols
        protocol.transport.pause_reading()
        assert not protocol.transport.is_reading()
        await client.send(b"two")
        for _ in range(10):
            await asyncio.sleep(0)
        assert protocol.calls.count("data_received") == 1
        protocol.transport.resume_reading()
        assert protocol.transport.is_reading()
        assert await client.receive() == b"TWO"
        client.close()


async def test_extra_info(transport: Transport) -> None:
    """What asyncio's transports tell; the loop's own behind it shows in the repr."""
    made = Made()
    async with transport.serve(from_protocol(made)) as server:
        client = await transport.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        own = made.protocols[0].transport
        assert own.get_extra_info("peername") == client.sock.getsockname()
        assert own.get_extra_info("sockname") == client.sock.getpeername()
        assert own.get_extra_info("socket").fileno() >= 0
        assert own.get_extra_info("no such thing", "default") == "default"
        assert (own.get_extra_info("ssl_object") is not None) == transport.tls
        assert own.get_protocol() is made.protocols[0]
        assert "ProtocolTransport" in repr(own)
        assert not own.is_closing()
        own.close()
        assert own.is_closing()
        assert await client.receive_all() == b""
        client.close()


async def test_reset_that_nobody_asks_for(transport: Transport) -> None:
    """A reset is told to the reader; the future behind `wait_closed()` does not complain that nobody has asked it."""
    closed: list[asyncio.Future[None]] = []

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        closed.append(writer._protocol._get_close_waiter(writer))  # type: ignore[attr-defined]
        writer.write(b"unread")
        with pytest.raises(ConnectionError):
            await reader.read()

    async with transport.serve(from_callback(callback)) as server:
        client = await transport.connect(server)
        await eventually(lambda: server.stats().bytes_sent)
        client.reset()
        await eventually(lambda: server.stats().completed == 1)
    assert not closed[0]._log_traceback
    assert isinstance(closed[0].exception(), ConnectionError)


async def test_abort(transport: Transport) -> None:
    """abort() throws away what is buffered; the protocol is told, and nobody calls it an error."""
    made = Made()
    async with transport.serve(from_protocol(made)) as server:
        client = await transport.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        made.protocols[0].transport.write(bytes(1 << 24))
        made.protocols[0].transport.abort()
        received = 0
        with contextlib.suppress(OSError):
            while data := await client.receive():
                received += len(data)
        assert received < 1 << 24
        client.close()
        await within(made.protocols[0].lost)
        await eventually(lambda: server.stats().completed == 1)


@pytest.mark.parametrize("second", [Upper, BufferedUpper])
async def test_set_protocol(transport: Transport, second: type[Any]) -> None:
    """Another protocol may take over, of either kind; counters go on, and its errors are caught too."""

    class First(Upper):
        def data_received(self, data: bytes) -> None:
            protocol = second()
            protocol.connection_made(self.transport)
            self.transport.set_protocol(protocol)
            assert self.transport.get_protocol() is protocol
            self.transport.write(b"switched")

    async with transport.serve(from_protocol(First)) as server:
        client = await transport.connect(server)
        await client.send(b"switch")
        assert await client.receive_exactly(8) == b"switched"
        assert await client.ask(b"hello") == b"HELLO"
        assert server.stats().bytes_received == len(b"switchhello")
        client.close()


async def test_start_tls_in_a_callback(tcp: Transport) -> None:
    """`StreamWriter.start_tls()` works on the standard loop; uvloop refuses a transport that is not its own."""
    outcome: asyncio.Queue[BaseException | None] = asyncio.Queue()

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"go ahead\n")
        try:
            await writer.start_tls(tcp.server_context)
        except TypeError as exc:
            outcome.put_nowait(exc)
            writer.close()
            return
        writer.write((await reader.readline()).upper())
        await writer.drain()
        outcome.put_nowait(None)
        writer.close()

    async with tcp.serve(from_callback(callback)) as server:
        client = await tcp.connect(server)
        await client.send(b"STARTTLS\n")
        assert await client.receive() == b"go ahead\n"
        if type(asyncio.get_running_loop()).__module__.startswith("uvloop"):
            assert isinstance(await within(outcome.get()), TypeError)
        else:
            secure = TLSClient(client.sock, tcp.client_context)
            await secure.handshake()
            await secure.send(b"hello\n")
            assert await secure.receive() == b"HELLO\n"
            assert await within(outcome.get()) is None
        client.close()


async def test_client_certificate(tls: Transport) -> None:
    """Limits of TLS are those of the listener: the handshake's failure is a refused connection."""
    made = Made()
    async with tls.serve(from_protocol(made), ssl_handshake_timeout=0.2) as server:
        silent = Client(await open_socket(server.addresses[0]))
        garbage = Client(await open_socket(server.addresses[0]))
        await garbage.send(b"GET / HTTP/1.1\r\n\r\n")
        client = await tls.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        await eventually(lambda: server.stats().refused == 2)
        for one in (silent, garbage, client):
            one.close()
    assert [protocol.calls[0] for protocol in made.protocols if protocol.calls] == ["connection_made"]


async def test_each_connection_has_its_own_context(transport: Transport) -> None:
    """On both loops a protocol's variables are its own."""
    variable = contextvars.ContextVar("variable", default=b"nobody")

    class Remembers(Upper):
        def data_received(self, data: bytes) -> None:
            self.transport.write(variable.get())
            variable.set(data)

    async with transport.serve(from_protocol(Remembers)) as server:
        clients = [await transport.connect(server) for _ in range(3)]
        for number, client in enumerate(clients):
            await client.send(b"client%d" % number)
            assert await client.receive() == b"nobody"
        for number, client in enumerate(clients):
            await client.send(b"x")
            assert await client.receive() in {b"client%d" % number, b"nobody"}
            client.close()
    assert variable.get() == b"nobody"


# -- errors


class Raises(Upper):
    where = ""

    def _maybe(self, name: str) -> None:
        if name == self.where:
            raise ValueError(f"in {name}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._maybe("connection_made")

    def data_received(self, data: bytes) -> None:
        self._maybe("data_received")
        super().data_received(data)

    def eof_received(self) -> bool | None:
        self._maybe("eof_received")
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._maybe("connection_lost")
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._maybe("pause_writing")


class BufferedRaises(BufferedUpper):
    where = ""

    def get_buffer(self, sizehint: int) -> memoryview:
        if self.where == "get_buffer":
            raise ValueError("in get_buffer")
        return super().get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        if self.where == "buffer_updated":
            raise ValueError("in buffer_updated")
        super().buffer_updated(nbytes)


@pytest.mark.parametrize(
    "where",
    ["factory", "connection_made", "data_received", "eof_received", "connection_lost", "get_buffer", "buffer_updated"],
)
async def test_error_in_a_protocol(transport: Transport, where: str, caplog: pytest.LogCaptureFixture) -> None:
    """It closes its own connection, is logged once with the peer's address, told to on_error once; others go on."""
    told: list[tuple[BaseException, Any]] = []
    fail = False

    def factory() -> Any:
        if not fail:
            return Upper()
        if where == "factory":
            raise ValueError("in factory")
        protocol: Any = BufferedRaises() if "buffer" in where else Raises()
        protocol.where = where
        return protocol

    handler = from_protocol(factory)
    async with transport.serve(handler, on_error=lambda exc, source: told.append((exc, source))) as server:
        other = await transport.connect(server)
        assert await other.ask(b"hello") == b"HELLO"
        fail = True
        with contextlib.suppress(OSError):  # under TLS the handshake may fail
            client = await transport.connect(server)
            with contextlib.suppress(OSError):
                await client.send(b"hello")
                if where in {"eof_received", "connection_lost"}:
                    await client.receive_exactly(5)
                    await client.send_eof()
                await client.receive_all()
            client.close()
        await eventually(lambda: server.stats().failed == 1)
        assert await other.ask(b"still here") == b"STILL HERE"
        other.close()
    assert [str(exc) for exc, _ in told] == [f"in {where}"]
    (record,) = errors(caplog)
    assert record.exc_info is not None
    assert repr(told[0][1].peer_address) in record.getMessage() or str(told[0][1].peer_address) in record.getMessage()


async def test_error_in_pause_writing(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """So is one in flow control."""

    class Pauses(Raises):
        where = "pause_writing"

        def data_received(self, data: bytes) -> None:
            for _ in range(256):
                self.transport.write(bytes(1 << 16))

    async with transport.serve(from_protocol(Pauses), drain_timeout=0.1) as server:
        client = await transport.connect(server)
        await client.send(b"!")
        with contextlib.suppress(OSError):
            await client.receive_all()
        client.close()
        await eventually(lambda: server.stats().failed == 1)
    assert len(errors(caplog)) == 1


async def test_error_is_told_though_the_peer_does_not_read(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """A protocol that has failed is not kept until a peer that reads nothing has taken its last answer."""

    class Fails(Upper):
        def data_received(self, data: bytes) -> None:
            self.transport.write(bytes(1 << 24))
            raise ValueError("after a long answer")

    async with transport.serve(from_protocol(Fails), drain_timeout=0.1) as server:
        client = await transport.connect(server)
        await client.send(b"!")
        try:
            await eventually(lambda: errors(caplog), 5)
        finally:
            client.close()


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_error_in_a_callback(transport: Transport, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that raises: logged once, its connection closed, and what it had written is delivered."""

    async def coroutine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"before")
        raise ValueError("in the callback")

    def function(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise ValueError("in the callback")

    async with transport.serve(from_callback(coroutine if kind == "coroutine" else function)) as server:
        client = await transport.connect(server)
        with contextlib.suppress(OSError):
            assert await client.receive_all() == (b"before" if kind == "coroutine" else b"")
        client.close()
        await eventually(lambda: server.stats().failed == 1)
    assert len(errors(caplog)) == 1


async def test_reset_is_no_error(
    transport: Transport, handler: ProtocolHandler, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer that breaks the connection off: completed, and nothing in the log."""
    async with transport.serve(handler) as server:
        client = await transport.connect(server)
        await client.ask(b"hello")
        await client.send(b"unread")
        await eventually(lambda: server.stats().bytes_sent == len(b"hellounread"))
        client.reset()
        await eventually(lambda: not server.stats().active)
    assert not errors(caplog)
    assert server.stats().failed == 0


def test_what_is_no_factory() -> None:
    """Something that cannot be called is refused at once, by name."""
    with pytest.raises(TypeError, match="'Upper'"):
        from_protocol(cast("Any", "Upper"))
    with pytest.raises(TypeError, match="None"):
        from_callback(cast("Any", None))


def test_repr() -> None:
    """What was given shows."""
    assert "Upper" in repr(from_protocol(Upper))
    assert "upper_callback" in repr(from_callback(upper_callback))


async def test_callback_is_not_for_datagrams() -> None:
    """It needs a stream; the error says what to write."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TypeError, match="from_protocol"):
        async with asyncserver.serve_datagrams(from_callback(upper_callback), "127.0.0.1", 0):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


# -- limits


async def test_max_connections(transport: Transport, handler: ProtocolHandler) -> None:
    """Who is over the limit waits, and is served when another has gone."""
    async with transport.serve(handler, max_connections=1) as server:
        first = await transport.connect(server)
        assert await first.ask(b"one") == b"ONE"
        sock = await open_socket(server.addresses[0])
        for _ in range(10):
            await asyncio.sleep(0)
        assert server.stats().active == 1
        first.close()
        second = TLSClient(sock, transport.client_context) if transport.tls else Client(sock)
        if isinstance(second, TLSClient):
            await within(second.handshake())
        assert await second.ask(b"two") == b"TWO"
        assert server.stats().active == 1
        second.close()


async def test_idle_timeout(tcp: Transport, handler: ProtocolHandler, caplog: pytest.LogCaptureFixture) -> None:
    """A silent connection is closed, counted, and not in the log; one that speaks is not."""
    async with tcp.serve(handler, idle_timeout=0.3) as server:
        silent, busy = await tcp.connect(server), await tcp.connect(server)
        ended = asyncio.create_task(silent.receive_all())
        while not ended.done():
            assert await busy.ask(b"hello") == b"HELLO"
            await asyncio.sleep(0.02)
        assert await ended == b""
        assert await busy.ask(b"hello") == b"HELLO"
        await eventually(lambda: server.stats().timed_out == 1)
        silent.close()
        busy.close()
    assert not errors(caplog)


async def test_idle_timeout_of_a_peer_that_does_not_read(transport: Transport) -> None:
    """Closing would wait for it for ever; so the connection is aborted the next time."""

    class Floods(Upper):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(bytes(1 << 24))

    async with transport.serve(from_protocol(Floods), idle_timeout=0.1) as server:
        client = await transport.connect(server)
        await eventually(lambda: server.stats().timed_out == 1)
        assert server.stats().active == 0
        client.close()


# -- the end


async def test_drain_between_messages(transport: Transport, handler: ProtocolHandler) -> None:
    """A connection whose last question is answered ends at once, as does one that has asked nothing."""
    async with transport.serve(handler, drain_timeout=10) as server:
        quiet, client = await transport.connect(server), await transport.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        await eventually(lambda: len(server.connections) == 2)
        report = await within(server.close(), 5)
        assert (report.completed, report.cancelled, report.aborted) == (2, 0, 0)
        for one in (quiet, client):
            assert await one.receive_all() == b""
            one.close()


async def test_drain_answers_what_has_reached_us(transport: Transport, handler: ProtocolHandler) -> None:
    """Questions that lay in the kernel when close() was called are answered."""
    async with transport.serve(handler, drain_timeout=10) as server:
        clients = [await transport.connect(server) for _ in range(10)]
        for client in clients:
            assert await client.ask(b"hello") == b"HELLO"
        for client in clients:
            await client.send(b"last question")
        closing = asyncio.create_task(server.close())
        for client in clients:
            assert await client.receive_all() == b"LAST QUESTION"
            client.close()
        report = await within(closing, 5)
        assert (report.completed, report.cancelled, report.aborted) == (10, 0, 0)


class InTheMiddle(Upper):
    """Answers when told to."""

    def data_received(self, data: bytes) -> None:
        self.calls.append("data_received")

    def answer(self) -> None:
        self.transport.write(b"answer")


async def test_drain_in_the_middle_of_a_message(transport: Transport) -> None:
    """A question that is not answered yet holds the drain; its answer ends it."""
    made = Made(InTheMiddle)
    async with transport.serve(from_protocol(made), drain_timeout=10) as server:
        client = await transport.connect(server)
        await client.send(b"question")
        await eventually(lambda: made.protocols and "data_received" in made.protocols[0].calls)
        closing = asyncio.create_task(server.close())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not closing.done()
        made.protocols[0].answer()
        assert await client.receive_all() == b"answer"
        client.close()
        report = await within(closing, 5)
        assert (report.completed, report.cancelled, report.aborted) == (1, 0, 0)


async def test_drain_deadline(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """A question that is never answered: cancelled at the deadline, and the protocol hears of it."""
    made = Made(InTheMiddle)
    async with transport.serve(from_protocol(made)) as server:
        client = await transport.connect(server)
        await client.send(b"question")
        await eventually(lambda: made.protocols and "data_received" in made.protocols[0].calls)
        report = await within(server.close(0.2), 5)
        assert (report.completed, report.cancelled, report.aborted) == (0, 1, 0)
        await within(made.protocols[0].lost)
        client.close()
    assert not errors(caplog)


async def test_drain_calls_eof_received_once(transport: Transport) -> None:
    """The grammar of protocols allows one: also for a protocol that says goodbye in it and stays open."""

    class Polite(Upper):
        def eof_received(self) -> bool:
            self.calls.append("eof_received")
            self.transport.write(b"goodbye")
            asyncio.get_running_loop().call_later(0.05, self.transport.close)
            return True

    made = Made(Polite)
    async with transport.serve(from_protocol(made), drain_timeout=10) as server:
        client = await transport.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        closing = asyncio.create_task(server.close())
        assert await client.receive_all() == b"goodbye"
        client.close()
        await within(closing, 5)
    assert made.protocols[0].calls.count("eof_received") == 1


async def test_drain_after_the_peers_own_end(transport: Transport) -> None:
    """A protocol that has had its eof_received() and is still answering does not get another."""

    class Slow(Upper):
        def eof_received(self) -> bool:
            self.calls.append("eof_received")
            self.transport.write(b"first")
            return True

    if transport.tls:  # asyncio's TLS knows no half-close
        return
    made = Made(Slow)
    async with transport.serve(from_protocol(made), drain_timeout=10) as server:
        client = await transport.connect(server)
        await client.send_eof()
        assert await client.receive() == b"first"
        closing = asyncio.create_task(server.close())
        for _ in range(20):
            await asyncio.sleep(0)
        protocol = made.protocols[0]
        if not protocol.transport.is_closing():
            protocol.transport.write(b"second")
            protocol.transport.close()
        await client.receive_all()
        client.close()
        await within(closing, 5)
    assert protocol.calls.count("eof_received") == 1


async def test_nothing_is_received_after_the_drain_has_said_eof(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that tidies up after its reader's end is not disturbed by a peer that goes on talking."""
    ended, tidy = asyncio.Event(), asyncio.Event()

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data.upper())
        ended.set()
        await tidy.wait()
        writer.close()

    async with transport.serve(from_callback(callback), drain_timeout=10) as server:
        client = await transport.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        closing = asyncio.create_task(server.close())
        await within(ended.wait())
        with contextlib.suppress(OSError):  # under TLS the connection is closed by then
            await client.send(b"one more thing")
            for _ in range(20):
                await asyncio.sleep(0)
        tidy.set()
        await within(closing, 5)
        client.close()
    assert not errors(caplog)
    assert server.stats().failed == 0


async def test_drain_during_the_handshake(tls: Transport, handler: ProtocolHandler) -> None:
    """A client in the middle of its handshake when the drain begins gets its one answer, then the end."""
    async with tls.serve(handler, drain_timeout=10) as server:
        sock = await open_socket(server.addresses[0])
        await eventually(lambda: server.stats().active == 1)
        closing = asyncio.create_task(server.close())
        client = TLSClient(sock, tls.client_context)
        await client.handshake()
        await client.send(b"hello")
        assert await client.receive_all() == b"HELLO"
        client.close()
        report = await within(closing, 5)
        assert (report.completed, report.cancelled, report.aborted) == (1, 0, 0)


async def test_callback_that_hangs(transport: Transport) -> None:
    """It is cancelled at the deadline, like any handler."""
    cancelled = asyncio.Event()

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with transport.serve(from_callback(callback)) as server:
        client = await transport.connect(server)
        await client.send(b"x")
        await eventually(lambda: server.stats().bytes_received)
        report = await within(server.close(0.2), 5)
        assert cancelled.is_set()
        assert (report.completed, report.cancelled, report.aborted) == (0, 1, 0)
        client.close()


async def test_callback_that_cancels_itself(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that ends by CancelledError does not leave its connection open, nor is that an error."""

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise asyncio.CancelledError

    async with transport.serve(from_callback(callback)) as server:
        client = await transport.connect(server)
        with contextlib.suppress(OSError):
            assert await client.receive_all() == b""
        client.close()
        await eventually(lambda: not server.stats().active)
    assert not errors(caplog)


async def test_callback_that_swallows_its_cancellation(tcp: Transport) -> None:
    """It is given up a second later; its connection is gone."""
    release = asyncio.Event()

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async with tcp.serve(from_callback(callback)) as server:
        client = await tcp.connect(server)
        await client.send(b"x")
        await eventually(lambda: server.stats().bytes_received)
        report = await within(server.close(0.1), 5)
        assert (report.completed, report.cancelled, report.aborted) == (0, 0, 1)
        with contextlib.suppress(OSError):
            assert await client.receive_all() == b""
        client.close()
        release.set()
        for _ in range(10):
            await asyncio.sleep(0)


async def test_unread_bytes_of_a_protocol_count(tcp: Transport) -> None:
    """A protocol that pauses reading holds nothing back from the drain: what lies in the kernel is owed."""
    made = Made()
    async with tcp.serve(from_protocol(made), drain_timeout=10) as server:
        client = await tcp.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        protocol = made.protocols[0]
        protocol.transport.pause_reading()
        await client.send(b"later")
        closing = asyncio.create_task(server.close())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not protocol.transport.is_closing()
        protocol.transport.resume_reading()
        assert await client.receive_all() == b"LATER"
        client.close()
        report = await within(closing, 5)
        assert (report.completed, report.cancelled, report.aborted) == (1, 0, 0)


async def test_many_connections_that_come_and_go(transport: Transport, handler: ProtocolHandler) -> None:
    """The counters balance and nothing stays."""
    async with transport.serve(handler) as server:
        for _ in range(5):
            clients = [await transport.connect(server) for _ in range(10)]
            for client in clients:
                assert await client.ask(b"hello") == b"HELLO"
                client.close()
        await eventually(lambda: not server.stats().active)
        stats = server.stats()
        assert stats.accepted == 50 == stats.completed
        assert stats.bytes_received == stats.bytes_sent == 250
        assert not server.connections


async def test_ssl_object_belongs_to_the_connection(tls: Transport) -> None:
    """A callback finds the usual facts about TLS."""
    seen: list[Any] = []

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(writer.get_extra_info(name) for name in ("ssl_object", "cipher", "sslcontext"))
        writer.close()

    async with tls.serve(from_callback(callback)) as server:
        client = await tls.connect(server)
        assert await client.receive_all() == b""
        client.close()
    assert seen[0] is not None
    assert isinstance(client, TLSClient)
    assert seen[1] == client.tls.cipher()
    assert isinstance(seen[2], ssl.SSLContext)


async def test_socket_of_the_transport_is_the_accepted_one(tcp: Transport) -> None:
    """Options can be set on it, as programs do."""
    made = Made()
    async with tcp.serve(from_protocol(made)) as server:
        client = await tcp.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        sock = made.protocols[0].transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.close()
