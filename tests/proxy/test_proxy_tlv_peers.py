"""What HAProxy says of clients that come to it by TLS, with and without a certificate, and of those that do not."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver import ProxyHeader, Server, Stream
from tests.kit.certificates import authority, client_context, write_files
from tests.kit.clients import Client
from tests.kit.proxies import find, running

HAPROXY_TEXT = """\
defaults
    mode tcp
    timeout connect 10s
    timeout client 30s
    timeout server 30s
listen front
    bind fd@{listening} {options}
    server back {host}:{port} {sending}
"""
TLS = "ssl crt {folder}/both.pem alpn h2,http/1.1 ca-file {folder}/ca.pem verify optional"
SENDING = [
    "send-proxy-v2-ssl-cn",
    "send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,authority,crc32c",
]


@contextlib.contextmanager
def haproxy(server: Server, folder: Path, sending: str, options: str = "") -> Iterator[Any]:
    """Run HAProxy before the server; yields the address where clients reach it."""
    host, port = server.addresses[0]
    with socket.create_server(("127.0.0.1", 0)) as front:
        text = HAPROXY_TEXT.format(
            listening=front.fileno(), host=host, port=port, sending=sending, options=options.format(folder=folder)
        )
        (folder / "haproxy.cfg").write_text(text)
        command = [find("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]
        with running(command, folder / "haproxy.log", up=lambda: True, inherited=(front.fileno(),)):
            yield front.getsockname()


async def header_of(folder: Path, sending: str, options: str, context: ssl.SSLContext | None) -> ProxyHeader:
    """The header of one client."""
    headers: list[ProxyHeader] = []

    async def handler(stream: Stream) -> None:
        assert stream.proxy_header is not None
        headers.append(stream.proxy_header)
        await stream.send(await stream.receive())

    async with asyncserver.serve(handler, "127.0.0.1", 0, proxy_protocol=True) as server:
        with haproxy(server, folder, sending, options) as front:
            async with Client.connect(front, context) as client:
                assert await client.ask(b"question") == b"question"
            await server.close()
    assert server.stats().refused == 0
    (header,) = headers
    return header


@pytest.mark.parametrize("sending", SENDING)
async def test_client_with_a_certificate(sending: str, tmp_path: Path) -> None:
    """Its name is the proxy's word for it, and so is that it has been verified."""
    write_files(tmp_path)
    context = client_context()
    authority().issue_cert("client.example", common_name="Zoë").configure_cert(context)
    found = (await header_of(tmp_path, sending, TLS, context)).tls
    assert found is not None
    assert (found.version, found.verified, found.client_cn) == ("TLSv1.3", True, "Zoë")
    assert found.cipher is None or found.cipher.startswith("TLS_")


@pytest.mark.parametrize("sending", SENDING)
async def test_client_without_a_certificate(sending: str, tmp_path: Path) -> None:
    """It came by TLS, and nobody has verified who it is, although HAProxy's field says 0, no error."""
    write_files(tmp_path)
    header = await header_of(tmp_path, sending, TLS, client_context())
    found = header.tls
    assert found is not None
    assert (found.version, found.verified, found.client_cn) == ("TLSv1.3", False, None)
    assert (header.tlv(0x20) or b"")[:5] == b"\1\0\0\0\0"


@pytest.mark.parametrize("sending", SENDING)
async def test_client_without_tls(sending: str, tmp_path: Path) -> None:
    """HAProxy sends the field all the same."""
    header = await header_of(tmp_path, sending, "", None)
    assert header.tlv(0x20) is not None
    assert header.tls is None


@pytest.mark.parametrize("sending", ["send-proxy-v2", SENDING[1]])
async def test_agreed_protocol_and_asked_name(sending: str, tmp_path: Path) -> None:
    """ALPN comes without being asked for; the name when HAProxy has been told so."""
    write_files(tmp_path)
    context = client_context()
    context.set_alpn_protocols(["h2"])
    header = await header_of(tmp_path, sending, TLS, context)
    assert header.alpn == "h2"
    assert header.authority == (None if sending == "send-proxy-v2" else "localhost")
