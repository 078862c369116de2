"""Our transports against the loops' own, method by method, and in the loops' own functions."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

import asyncserver
from asyncserver import from_callback, from_protocol
from tests.kit.checks import records
from tests.kit.clients import Client, TLSClient
from tests.kit.handlers import Made, UpperProtocol
from tests.kit.transports import Transport
from tests.kit.waiting import until, within

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable

# The stock loop's class for datagrams inherits these from the one for streams; asyncio documents none of them.
OF_STREAMS_ONLY = {
    *("can_write_eof", "is_reading", "max_size", "pause_reading", "resume_reading", "write", "write_eof", "writelines")
}


@contextlib.asynccontextmanager
async def loops_own(context: ssl.SSLContext | None) -> AsyncIterator[Any]:
    """A transport of the loop, with TLS or without, whose peer is there."""
    made, loop = Made(), asyncio.get_running_loop()
    server = await loop.create_server(made, "127.0.0.1", 0, ssl=context)
    try:
        yield made, server.sockets[0].getsockname()
    finally:
        server.close()
        for protocol in made.protocols:
            protocol.transport.abort()
        for _ in range(10):  # its connection_lost(), after a close() under TLS asyncio does not call it
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def ours(transport: Transport) -> AsyncIterator[Any]:
    made = Made()
    async with transport.serve(from_protocol(made)) as server:
        yield made, server.addresses[0]


async def connected(transport: Transport, made: Made, address: Any) -> tuple[Client, Any]:
    client = await Client.connect(address, transport.client_context if transport.tls else None)
    assert await client.ask(b"hello") == b"HELLO"
    return client, made.protocols[-1].transport


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


async def test_every_method_is_there(transport: Transport) -> None:
    """Whatever can be asked of the loop's transport can be asked of ours."""
    if transport.name == "unix":
        return
    context = transport.server_context if transport.tls else None
    async with loops_own(context) as (made, address), ours(transport) as (our_made, our_address):
        client, theirs = await connected(transport, made, address)
        our_client, own = await connected(transport, our_made, our_address)
        assert public(theirs) - {"max_size"} <= public(own)
        assert isinstance(own, asyncio.Transport)
        for one in (client, our_client):
            one.close()


async def test_every_method_of_datagram_transports_is_there() -> None:
    """The same for a DatagramProtocol."""
    loop, made = asyncio.get_running_loop(), []

    class Keeps(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            made.append(transport)

    theirs, _ = await loop.create_datagram_endpoint(Keeps, ("127.0.0.1", 0))
    async with asyncserver.serve_datagrams(from_protocol(Keeps), "127.0.0.1", 0):
        await until(lambda: len(made) == 2)
        assert public(theirs) - OF_STREAMS_ONLY <= public(made[1])
        made[1].set_write_buffer_limits(high=100)
        assert made[1].get_write_buffer_limits() == (25, 100)
        with pytest.raises(TypeError, match=r"^sendto\(\) takes bytes; got 'text': encode it"):
            made[1].sendto("text", ("127.0.0.1", 9))
    theirs.close()
    await until(theirs.is_closing)


def limits(transport: Any) -> list[Any]:
    found = []
    for arguments in ((), (10,), (10, 10), (10, 4), (0,), (None, 5)):
        transport.set_write_buffer_limits(*arguments)
        found.append(transport.get_write_buffer_limits())
    return found


def read_limits(transport: Any) -> list[Any]:
    found = [transport.get_read_buffer_limits()]
    for arguments in ((10,), (10, 4), (None, 5), ()):
        transport.set_read_buffer_limits(*arguments)
        found.append(transport.get_read_buffer_limits())
    return [*found, transport.get_read_buffer_size()]


def reading(transport: Any) -> list[bool]:
    found = [transport.is_reading()]
    for name in ("pause_reading", "pause_reading", "resume_reading", "resume_reading"):
        getattr(transport, name)()
        found.append(transport.is_reading())
    return found


def informed(transport: Any) -> list[Any]:
    names = (
        "peername",
        "sockname",
        "socket",
        "sslcontext",
        "ssl_object",
        "cipher",
        "compression",
        "peercert",
        "nothing",
    )
    told = [transport.get_extra_info(name) for name in names]
    sock = told[2]
    tls = told[4] and (told[4].version(), told[4].cipher(), told[4].server_side, told[4].selected_alpn_protocol())
    facts = (sock.family, sock.type, sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)
    return [type(told[0]), type(told[1]), facts, tls, *told[3:4], *told[5:], transport.get_extra_info("nothing", 5)]


def closed(transport: Any) -> list[Any]:
    transport.close()
    transport.close()
    transport.write(b"too late")
    return [transport.is_closing(), transport.get_write_buffer_size()]  # the loops' TLS says that it still reads


def ended(transport: Any) -> list[Any]:
    transport.write_eof()
    transport.write_eof()
    with pytest.raises(RuntimeError):
        transport.write(b"")
    return [transport.is_closing(), transport.is_reading()]


def written(transport: Any) -> list[Any]:
    transport.write(b"")
    transport.write(bytearray(b"1"))
    transport.write(memoryview(b"22"))
    transport.writelines([b"333", memoryview(b"4444"), bytearray(b"")])
    transport.writelines([])
    return [transport.get_write_buffer_size() < 100]


CALLS: dict[str, Callable[[Any], Any]] = {
    "limits": limits,
    "negative limits": lambda transport: transport.set_write_buffer_limits(-1),
    "limits the wrong way round": lambda transport: transport.set_write_buffer_limits(1, 2),
    "read limits": read_limits,
    "read limits the wrong way round": lambda transport: transport.set_read_buffer_limits(1, 2),
    "reading": reading,
    "information": informed,
    "text": lambda transport: transport.write("text"),
    "number": lambda transport: transport.write(5),
    "writes": written,
    "can_write_eof": lambda transport: transport.can_write_eof(),
    "write_eof": ended,
    "write buffer": lambda transport: transport.get_write_buffer_size(),
    "protocol": lambda transport: type(transport.get_protocol()),
    "close": closed,
    "abort": lambda transport: (transport.abort(), transport.is_closing()),
}


def outcome(call: Callable[[Any], Any], transport: Any) -> Any:
    try:
        return call(transport)
    except Exception as exc:
        return type(exc)


@pytest.mark.parametrize("call", list(CALLS))
async def test_every_method_does_the_same(transport: Transport, call: str) -> None:
    """The same results, and the same kinds of errors."""
    if transport.name == "unix" or (call.startswith("read limits") and not transport.tls):  # theirs has none
        return
    context = transport.server_context if transport.tls else None
    async with loops_own(context) as (made, address), ours(transport) as (our_made, our_address):
        client, theirs = await connected(transport, made, address)
        our_client, own = await connected(transport, our_made, our_address)
        expected, found = outcome(CALLS[call], theirs), outcome(CALLS[call], own)
        if call == "limits" and not transport.tls and "uvloop" in type(theirs).__module__:
            expected[0] = found[0]  # uvloop's lower limit is 16 bytes by default, not 16 KiB
        if call == "close" and transport.tls and expected is AttributeError:
            expected = found  # the stock loop's TLS has forgotten its protocol by then
        assert found == expected
        for one in (client, our_client):
            one.close()


async def test_text_instead_of_bytes(tcp: Transport) -> None:
    """The error names the call, and says what it takes and what it got."""
    async with ours(tcp) as (made, address):
        client, transport = await connected(tcp, made, address)
        with pytest.raises(TypeError, match=r"^write\(\) takes bytes; got 'text': encode it, \.encode\(\)$"):
            transport.write("text")
        with pytest.raises(TypeError, match=r"^write\(\) takes bytes; got 5$"):
            transport.write(5)
        assert await client.ask(b"hello") == b"HELLO"
        client.close()


# -- the loop's functions


@pytest.mark.parametrize("kind", ["protocol", "callback"])
async def test_sendfile(transport: Transport, kind: str) -> None:
    """`loop.sendfile()` of the stock loop sends a file, in a drain too; uvloop has none, for no transport."""
    content = bytes(range(256)) * 2000
    outcomes: list[Any] = []

    async def send(transport: Any) -> None:
        loop = asyncio.get_running_loop()
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            try:
                outcomes.append(await loop.sendfile(transport, file))
            except NotImplementedError as exc:
                outcomes.append(exc)
                transport.write(content)
            transport.close()

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        await send(writer.transport)

    class Sends(UpperProtocol):
        def data_received(self, data: bytes) -> None:
            self.task = asyncio.create_task(send(self.transport))

    handler = from_callback(callback) if kind == "callback" else from_protocol(Sends)
    async with transport.serve(handler) as server:
        client = await transport.connect(server)
        await client.send(b"file\n")
        first = await client.receive_exactly(1000)
        closing = asyncio.create_task(server.close(20))
        assert first + await client.receive_all() == content
        client.close()
        assert (await within(closing)).completed == 1
    assert server.stats().bytes_sent == len(content)
    uvloop = "uvloop" in type(asyncio.get_running_loop()).__module__
    assert isinstance(outcomes[0], NotImplementedError) if uvloop else outcomes == [len(content)]


class StartsTLS(UpperProtocol):
    """Goes over to TLS when asked, as protocols do that have no StreamWriter."""

    context: ssl.SSLContext

    def data_received(self, data: bytes) -> None:
        if data == b"STARTTLS":
            self.task = asyncio.create_task(self.secure())
        else:
            super().data_received(data)

    async def secure(self) -> None:
        self.transport.write(b"go ahead")
        loop = asyncio.get_running_loop()
        new = await loop.start_tls(self.transport, self, self.context, server_side=True)
        assert new is not None
        self.transport = new


@pytest.mark.parametrize("end", ["client", "drain", "abort"])
async def test_loop_start_tls(tcp: Transport, end: str, caplog: pytest.LogCaptureFixture) -> None:
    """`loop.start_tls()` of both loops takes our transport, and every end of the connection ends both."""
    made = Made(StartsTLS)
    StartsTLS.context = tcp.server_context
    async with tcp.serve(from_protocol(made)) as server:
        client = await tcp.connect(server)
        assert await client.ask(b"STARTTLS") == b"go ahead"
        plain = made.protocols[0].transport
        secure = TLSClient(client.sock, tcp.client_context)
        await secure.handshake()
        await until(lambda: made.protocols[0].transport is not plain)
        assert await secure.ask(b"hello") == b"HELLO"
        if end == "abort":
            made.protocols[0].transport.abort()
            with contextlib.suppress(OSError):
                assert await secure.receive_all() == b""
        elif end == "drain":
            closing = asyncio.create_task(server.close(20))
            if "uvloop" in type(asyncio.get_running_loop()).__module__:
                with contextlib.suppress(OSError):  # its TLS layer ends without a close_notify
                    assert await secure.receive_all() == b""
            else:
                assert await secure.receive_all() == b""
            client.close()
            assert (await within(closing)).completed == 1
        client.close()
        await within(made.protocols[0].lost)
        await until(lambda: server.stats().completed == 1)
    assert not records(caplog)


async def test_drain_of_a_callback_after_start_tls(tcp: Transport) -> None:
    """It comes to its reader's end, and writes on: never within an answer."""
    go_on = asyncio.Event()

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"go ahead\n")
        await writer.start_tls(tcp.server_context)
        writer.write((await reader.readline()).upper())
        await go_on.wait()
        writer.write(b"body")
        writer.close()

    async with tcp.serve(from_callback(callback)) as server:
        client = await tcp.connect(server)
        assert await client.ask(b"STARTTLS\n") == b"go ahead\n"
        secure = TLSClient(client.sock, tcp.client_context)
        await secure.handshake()
        assert await secure.ask(b"hello\n") == b"HELLO\n"
        closing = asyncio.create_task(server.close(20))
        for _ in range(20):
            await asyncio.sleep(0)
        go_on.set()
        assert await secure.receive_all() == b"body"
        client.close()
        assert (await within(closing)).completed == 1
