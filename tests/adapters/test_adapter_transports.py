"""The transports that protocols and callbacks see: half-close, flow control, TLS, what they tell."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import socket
import ssl
from typing import Any

import pytest

from asyncserver import from_callback, from_protocol
from tests.kit.checks import is_idle
from tests.kit.clients import Client, TLSClient, open_socket
from tests.kit.handlers import BufferedUpperProtocol, Made, UpperProtocol
from tests.kit.transports import Transport
from tests.kit.waiting import until, within

# -- their transport


async def test_half_close(transport: Transport) -> None:
    """eof_received() that returns true keeps the connection open for the answer; under TLS asyncio cannot."""

    class AtEnd(UpperProtocol):
        received = b""

        def data_received(self, data: bytes) -> None:
            self.received += data

        def eof_received(self) -> bool:
            self.transport.write(self.received[::-1])
            self.transport.close()
            return True

    if transport.tls:
        return
    async with transport.serve(from_protocol(AtEnd)) as server, transport.connect(server) as client:
        await client.send(b"0123456789")
        await client.send_eof()
        assert await client.receive_all() == b"9876543210"


async def test_write_eof(transport: Transport) -> None:
    """After write_eof() the peer sees the end and is still heard; TLS says beforehand that it cannot."""

    class Ends(UpperProtocol):
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
            await until(lambda: "thanks" in protocol.calls)
        client.close()
        await until(lambda: server.stats().completed == 1)
        assert server.stats().bytes_sent == len(b"last words")


async def test_pause_writing(transport: Transport) -> None:
    """A peer that does not read: pause_writing(), then resume_writing(), and every byte in its place."""

    class Floods(UpperProtocol):
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
    async with transport.serve(from_protocol(made)) as server, transport.connect(server) as client:
        await until(lambda: made.protocols and "pause_writing" in made.protocols[0].calls)
        (protocol,) = made.protocols
        assert protocol.transport.get_write_buffer_size() > 1 << 16
        assert protocol.transport.get_write_buffer_limits() == (1 << 14, 1 << 16)
        assert await client.receive_exactly(1 << 24) == b"x" * (1 << 24)
        await until(lambda: "resume_writing" in protocol.calls)
        assert await client.ask(b"hello") == b"HELLO"


async def test_pause_reading(transport: Transport) -> None:
    """pause_reading() leaves the bytes to the kernel until resume_reading()."""
    made = Made()
    async with transport.serve(from_protocol(made)) as server, transport.connect(server) as client:
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


async def test_extra_info(transport: Transport) -> None:
    """What asyncio's transports tell; the loop's own behind it shows in the repr."""
    made = Made()
    async with transport.serve(from_protocol(made)) as server, transport.connect(server) as client:
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


async def test_addresses_stay_when_the_connection_is_closed(transport: Transport) -> None:
    """A program may log them at the end, as with asyncio's transports."""
    made = Made(UpperProtocol)
    async with transport.serve(from_protocol(made)) as server:
        client = await transport.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        (own,) = (one.transport for one in made.protocols)
        names = ("peername", "sockname")
        before = [own.get_extra_info(name) for name in names]
        client.close()
        await until(lambda: is_idle(server))
        assert [own.get_extra_info(name) for name in names] == before


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
        await until(lambda: server.stats().bytes_sent)
        client.reset()
        await until(lambda: server.stats().completed == 1)
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
        await until(lambda: server.stats().completed == 1)


@pytest.mark.parametrize("second", [UpperProtocol, BufferedUpperProtocol])
async def test_set_protocol(transport: Transport, second: type[Any]) -> None:
    """Another protocol may take over, of either kind; counters go on, and its errors are caught too."""

    class First(UpperProtocol):
        def data_received(self, data: bytes) -> None:
            protocol = second()
            protocol.connection_made(self.transport)
            self.transport.set_protocol(protocol)
            assert self.transport.get_protocol() is protocol
            self.transport.write(b"switched")

    async with transport.serve(from_protocol(First)) as server, transport.connect(server) as client:
        await client.send(b"switch")
        assert await client.receive_exactly(8) == b"switched"
        assert await client.ask(b"hello") == b"HELLO"
        assert server.stats().bytes_received == len(b"switchhello")


async def test_start_tls_in_a_callback(tcp: Transport) -> None:
    """`StreamWriter.start_tls()` works on both loops."""

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"go ahead\n")
        await writer.start_tls(tcp.server_context)
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    async with tcp.serve(from_callback(callback)) as server, tcp.connect(server) as client:
        await client.send(b"STARTTLS\n")
        assert await client.receive() == b"go ahead\n"
        secure = TLSClient(client.sock, tcp.client_context)
        await secure.handshake()
        await secure.send(b"hello\n")
        assert await secure.receive_all() == b"HELLO\n"
        client.close()
        await until(lambda: server.stats().completed == 1)


async def test_client_certificate(tls: Transport) -> None:
    """Limits of TLS are those of the listener: the handshake's failure is a refused connection."""
    made = Made()
    async with tls.serve(from_protocol(made)) as server:
        garbage = Client(await open_socket(server.addresses[0]))
        await garbage.send(b"GET / HTTP/1.1\r\n\r\n")
        client = await tls.connect(server)
        assert await client.ask(b"hello") == b"HELLO"
        await until(lambda: server.stats().refused == 1)
        for one in (garbage, client):
            one.close()
    async with tls.serve(from_protocol(made), ssl_handshake_timeout=0.2) as server:
        silent = Client(await open_socket(server.addresses[0]))
        await until(lambda: server.stats().refused == 1)
        silent.close()
    assert [protocol.calls[0] for protocol in made.protocols if protocol.calls] == ["connection_made"]


async def test_each_connection_has_its_own_context(transport: Transport) -> None:
    """On both loops a protocol's variables are its own."""
    variable = contextvars.ContextVar("variable", default=b"nobody")

    class Remembers(UpperProtocol):
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


# -- what lies below


async def test_ssl_object_belongs_to_the_connection(tls: Transport) -> None:
    """A callback finds the usual facts about TLS."""
    seen: list[Any] = []

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(writer.get_extra_info(name) for name in ("ssl_object", "cipher", "sslcontext"))
        writer.close()

    async with tls.serve(from_callback(callback)) as server, tls.connect(server) as client:
        assert await client.receive_all() == b""
    assert seen[0] is not None
    assert isinstance(client, TLSClient)
    assert seen[1] == client.tls.cipher()
    assert isinstance(seen[2], ssl.SSLContext)


async def test_socket_of_the_transport_is_the_accepted_one(tcp: Transport) -> None:
    """Options can be set on it, as programs do."""
    made = Made()
    async with tcp.serve(from_protocol(made)) as server, tcp.connect(server) as client:
        assert await client.ask(b"hello") == b"HELLO"
        sock = made.protocols[0].transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
