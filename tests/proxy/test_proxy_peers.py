"""Behind the real thing: HAProxy and nginx's `stream` module, in the foreground.

HAProxy inherits a listening socket of ours, where the kernel queues clients until it is up. nginx shares a port that we
hold, and says when it listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver import ProxyHeader, Server, Stream
from tests.kit.certificates import client_context, plain_context
from tests.kit.clients import Client
from tests.kit.handlers import UpperProtocol
from tests.kit.proxies import find, nginx_command, running

HAPROXY_TEXT = """\
defaults
    mode tcp
    timeout connect 10s
    timeout client 30s
    timeout server 30s
listen front
    bind fd@{listening}
    unique-id-format %[uuid]
    server back {host}:{port} {options}
"""

NGINX_TEXT = """\
include /etc/nginx/modules-enabled/*.conf;
master_process off;
events {{}}
stream {{
    server {{
        listen {listening} reuseport;
        proxy_pass {host}:{port};
        proxy_protocol on;
    }}
}}
"""

# A client that is not the proxy: what the server would see without the header is 127.0.0.1.
CLIENT_HOST = "127.0.0.2"


@contextlib.contextmanager
def haproxy(server: Server, folder: Path, options: str, host: str = "127.0.0.1") -> Iterator[Any]:
    """Run HAProxy before the server; yields the address where clients reach it."""
    back = server.addresses[0]
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as front:
        text = HAPROXY_TEXT.format(listening=front.fileno(), host=back[0], port=back[1], options=options)
        (folder / "haproxy.cfg").write_text(text)
        command = [find("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]
        with running(command, folder / "haproxy.log", up=lambda: True, inherited=(front.fileno(),)):
            yield front.getsockname()[:2]


@contextlib.contextmanager
def nginx(server: Server, folder: Path, options: str) -> Iterator[Any]:
    """Run nginx before the server; yields the address where clients reach it."""
    del options
    back = server.addresses[0]
    with socket.socket() as front:
        front.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        front.bind(("127.0.0.1", 0))  # not listening, it gets no connections
        name = "{}:{}".format(*front.getsockname())
        (folder / "nginx.conf").write_text(NGINX_TEXT.format(listening=name, host=back[0], port=back[1]))
        log = folder / "nginx.log"
        with running(nginx_command(folder / "nginx.conf"), log, up=lambda: "nginx/" in log.read_text()):
            yield front.getsockname()


PROXIES = [
    pytest.param(haproxy, "send-proxy", id="haproxy-v1"),
    pytest.param(haproxy, "send-proxy-v2", id="haproxy-v2"),
    pytest.param(nginx, "", id="nginx-v1"),
]


async def shout(stream: Stream) -> None:
    """Answer each chunk in capitals, after the client's address."""
    await stream.send(repr(stream.peer_address[:2]).encode() + b"\n")
    async for data in stream:
        await stream.send(data.upper())


class Shouting(UpperProtocol):
    """The same as a protocol."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.write(repr(transport.get_extra_info("peername")[:2]).encode() + b"\n")


async def ask(front: Any, host: str = CLIENT_HOST, context: ssl.SSLContext | None = None) -> None:
    """Connect as a client of the proxy and see whom the server takes us for."""
    async with Client.connect(front, context, host) as client:
        own = repr(client.sock.getsockname()[:2]).encode() + b"\n"
        assert await client.receive_exactly(len(own)) == own
        assert await client.ask(b"question") == b"QUESTION"


@pytest.mark.parametrize("handler", [shout, asyncserver.from_protocol(Shouting)], ids=["stream", "protocol"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(("proxy", "options"), PROXIES)
async def test_handler_sees_the_client(
    *, proxy: Callable[..., Any], options: str, tls: bool, handler: Any, tmp_path: Path
) -> None:
    """Through each proxy, plain and with TLS passed through it, twenty clients at once are whom they are."""
    theirs, ours = (plain_context(), client_context()) if tls else (None, None)
    async with asyncserver.serve(
        handler, "127.0.0.1", 0, ssl=theirs, proxy_protocol=True, trusted_proxies=["127.0.0.1"]
    ) as server:
        with proxy(server, tmp_path, options) as front:
            await asyncio.gather(*(ask(front, context=ours) for _ in range(20)))
            await server.close()
    stats = server.stats()
    assert (stats.completed, stats.refused) == (20, 0)


@pytest.mark.parametrize("options", ["send-proxy", "send-proxy-v2"])
async def test_ipv6_client_of_an_ipv4_server(options: str, tmp_path: Path) -> None:
    """The client's address may be of another family than the connection."""
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    async with asyncserver.serve(shout, "127.0.0.1", 0, proxy_protocol=True) as server:
        with haproxy(server, tmp_path, options, host="::1") as front:
            await ask(front, host="::1")
            await server.close()


async def test_tlvs_and_checksum_of_haproxy(tmp_path: Path) -> None:
    """HAProxy's checksum is right to us, and its unique id reaches the handler."""
    headers: list[ProxyHeader] = []

    async def handler(stream: Stream) -> None:
        assert stream.proxy_header is not None
        headers.append(stream.proxy_header)
        await shout(stream)

    async with asyncserver.serve(handler, "127.0.0.1", 0, proxy_protocol=True) as server:
        with haproxy(server, tmp_path, "send-proxy-v2 proxy-v2-options unique-id,crc32c") as front:
            await ask(front)
            await server.close()
    (header,) = headers
    assert header.destination == front
    assert sorted(kind for kind, _ in header.tlvs) == [3, 5]
    assert len(header.tlv(5) or b"") == 36  # a UUID


@pytest.mark.parametrize("options", ["send-proxy", "send-proxy-v2"])
async def test_health_checks_of_haproxy(options: str, tmp_path: Path) -> None:
    """HAProxy's own connections are served, under HAProxy's address: none is refused, and none fails."""
    checked: asyncio.Queue[tuple[Any, ProxyHeader | None]] = asyncio.Queue()

    async def handler(stream: Stream) -> None:
        checked.put_nowait((stream.peer_address, stream.proxy_header))
        await shout(stream)

    async with asyncserver.serve(handler, "127.0.0.1", 0, proxy_protocol=True) as server:
        with haproxy(server, tmp_path, f"{options} check check-send-proxy inter 50ms"):
            for _ in range(3):
                address, header = await checked.get()
                assert address[0] == "127.0.0.1"
                assert header is not None
                assert header.source in {None, address}  # LOCAL; in version 1 it names itself
        await server.close()
    stats = server.stats()
    assert (stats.refused, stats.failed) == (0, 0)


async def test_haproxy_that_is_not_trusted(tmp_path: Path) -> None:
    """A proxy outside the trusted networks gets nowhere."""
    async with asyncserver.serve(shout, "127.0.0.1", 0, proxy_protocol=True, trusted_proxies=["10.0.0.0/8"]) as server:
        with haproxy(server, tmp_path, "send-proxy-v2") as front:
            async with Client.connect(front) as client:
                assert await client.rest() == b""
    stats = server.stats()
    assert stats.proxy_untrusted == stats.refused > 0


async def test_proxies_that_send_no_header(tmp_path: Path) -> None:
    """A trusted proxy that was not told to send the header is refused, and counted."""
    async with asyncserver.serve(shout, "127.0.0.1", 0, proxy_protocol=True) as server:
        with haproxy(server, tmp_path, "") as front:
            async with Client.connect(front) as client:
                await client.send(b"GET / HTTP/1.1\r\n\r\n")
                assert await client.rest() == b""
    assert server.stats().proxy_invalid == 1
