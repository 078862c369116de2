"""Datagrams behind the real thing: dnsdist, nginx, and DNS clients that write the header themselves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncserver
from asyncserver import Datagram, Server
from docs.recipes import name_server
from tests.kit.certificates import write_files
from tests.kit.datagrams import DatagramClient, Place
from tests.kit.dns import answer, number_of, question, text_of
from tests.kit.programs import ROOT
from tests.kit.proxies import dnsdist_command, find, nginx_command, own_address, running
from tests.kit.sockets import free_port
from tests.kit.waiting import PATIENCE, until

DNSDIST_TEXT = """\
setLocal("{front}:5300")
setACL("127.0.0.0/8")
setSecurityPollSuffix("")
newServer({{address="{host}:{port}", useProxyProtocol=true, checkInterval=1{options}}})
"""
DOH = 'addDOHLocal("{front}:5443", "{folder}/chain.pem", "{folder}/key.pem", "/dns-query")\n'

NGINX_TEXT = """\
include /etc/nginx/modules-enabled/*.conf;
master_process off;
events {{}}
stream {{
    server {{
        listen {front}:5300 udp;
        listen {front}:5300;
        proxy_pass {host}:{port};
        proxy_protocol on;
        {options}
    }}
}}
"""


class Answering:
    """Answers as a DNS server does: a text that tells who has asked."""

    def __init__(self) -> None:
        self.asked: list[Datagram] = []

    async def __call__(self, datagram: Datagram) -> bytes:
        self.asked.append(datagram)
        return answer(datagram.data, "{}#{}".format(*datagram.address[:2]))

    @property
    def clients(self) -> list[Datagram]:
        """Without dnsdist's health checks, for a.root-servers.net."""
        return [one for one in self.asked if b"root-servers" not in one.data]


class AnsweringProtocol(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(answer(data, "{}#{}".format(*addr[:2])), addr)


@contextlib.contextmanager
def dnsdist(server: Server, folder: Path, options: str = "", more: str = "") -> Iterator[tuple[str, int]]:
    """Run dnsdist before the server; yields the address where clients reach it."""
    front, (host, port) = own_address(1), server.addresses[0]
    text = DNSDIST_TEXT.format(front=front, host=host, port=port, options=options)
    (folder / "dnsdist.conf").write_text(text + more.format(front=front, folder=folder))
    log = folder / "dnsdist.log"
    with running(dnsdist_command(folder / "dnsdist.conf"), log, up=lambda: "Listening on" in log.read_text()):
        yield front, 5300


@contextlib.contextmanager
def nginx(server: Server, folder: Path, options: str) -> Iterator[tuple[str, int]]:
    """The same with nginx."""
    front, (host, port) = own_address(2), server.addresses[0]
    (folder / "nginx.conf").write_text(NGINX_TEXT.format(front=front, host=host, port=port, options=options))
    log = folder / "nginx.log"
    with running(nginx_command(folder / "nginx.conf"), log, up=lambda: "nginx/" in log.read_text()):
        yield front, 5300


@contextlib.contextmanager
def clients(front: Any, count: int) -> Iterator[list[DatagramClient]]:
    """Clients of the proxy, each with an address of its own."""
    with contextlib.closing(Place("ipv4", Path())) as place:
        made = [DatagramClient(place, front, "", named=True) for _ in range(count)]
        for number, client in enumerate(made):
            client.sock.bind((f"127.0.1.{1 + number}", 0))
        yield made
        for client in made:
            client.sock.close()


async def ask(client: DatagramClient, number: int) -> str:
    """Ask until there is an answer, as DNS clients do; the text in it."""
    while True:
        client.send(question(number))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while number_of(reply := await client.receive()) != number:
                    pass
                return text_of(reply)


def shown(client: DatagramClient) -> str:
    return "{}#{}".format(*client.sock.getsockname())


def listens(address: tuple[str, int]) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(address) == 0


async def call(*command: str) -> str:
    """Run a program to its end; returns what it prints."""
    process = await asyncio.create_subprocess_exec(
        find(command[0]), *command[1:], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(PATIENCE):
        printed, _ = await process.communicate()
    return printed.decode()


def serve(handler: Any) -> asyncserver.Serving:
    return asyncserver.serve_datagrams(handler, "127.0.0.1", 0, proxy_protocol=True, trusted_proxies=["127.0.0.1"])


@pytest.mark.parametrize("options", ["", ", sockets=4"])
@pytest.mark.parametrize("protocol", [False, True], ids=["handler", "protocol"])
async def test_clients_of_dnsdist(*, protocol: bool, options: str, tmp_path: Path) -> None:
    """Ten clients at once, ten questions each: all are told who they are, and nothing is refused."""
    handler = asyncserver.from_protocol(AnsweringProtocol) if protocol else Answering()
    async with serve(handler) as server:
        with dnsdist(server, tmp_path, options) as front, clients(front, 10) as asking:

            async def go(client: DatagramClient) -> None:
                for number in range(10):
                    assert await ask(client, number) == shown(client)

            await asyncio.gather(*map(go, asking))
    stats = server.stats()
    assert (stats.refused, stats.failed) == (0, 0)
    assert stats.datagrams_answered == stats.datagrams_received >= 100


async def test_health_checks_of_dnsdist(tmp_path: Path) -> None:
    """They are LOCAL, and served under dnsdist's own address; a server that answers stays up."""
    handler = Answering()
    async with serve(handler) as server:
        with dnsdist(server, tmp_path) as front, clients(front, 1) as (client,):
            while len([one for one in handler.asked if one not in handler.clients]) < 3:
                assert await ask(client, 1) == shown(client)
    for datagram in handler.asked:
        if datagram not in handler.clients:
            assert datagram.proxy_header is not None
            assert datagram.proxy_header.source is None
            assert datagram.address == datagram.sender
    assert server.stats().refused == 0


async def test_questions_over_https_by_dnsdist(tmp_path: Path) -> None:
    """dnsdist says STREAM in a datagram's header where the client came by TCP: it is about the client's side."""
    write_files(tmp_path)
    handler = Answering()
    async with serve(handler) as server:
        with dnsdist(server, tmp_path, more=DOH) as (front, _):
            log = tmp_path / "dnsdist.log"
            await until(lambda: listens((front, 5443)) or "DoH support" in log.read_text())
            printed = await call(
                "kdig", f"@{front}", "-p", "5443", "-b", "127.0.2.1", "+https", "+retry=9", "who.example", "TXT"
            )
    if "HTTPS not supported" in printed or "DoH support" in log.read_text():
        pytest.skip("dnsdist or kdig was built without DNS over HTTPS")
    assert '"127.0.2.1#' in printed, printed
    assert server.stats().refused == 0


async def test_recipe_of_dnsdist(tmp_path: Path) -> None:
    """The file that docs/deploy.md shows, with our addresses: both instances serve, and know their clients."""
    text = (ROOT / "docs/deploy/dnsdist.conf").read_text()
    front = own_address(10)
    for theirs, ours in (('0.10:53"', '0.10:5300"'), ("10.0.0.0/8", "127.0.0.0/8"), ("10.0.0.1", front[:-1])):
        assert theirs in text
        text = text.replace(theirs, ours)
    (tmp_path / "dnsdist.conf").write_text(text)
    async with contextlib.AsyncExitStack() as stack:
        handlers = [Answering(), Answering()]
        for number, handler in enumerate(handlers):
            serving = asyncserver.serve_datagrams(handler, own_address(11 + number), 5300, proxy_protocol=True)
            await stack.enter_async_context(serving)
        log = tmp_path / "dnsdist.log"
        command = dnsdist_command(tmp_path / "dnsdist.conf")
        stack.enter_context(running(command, log, up=lambda: "Listening on" in log.read_text()))
        (client,) = stack.enter_context(clients((front, 5300), 1))
        while not all(handler.clients for handler in handlers):
            assert await ask(client, 1) == shown(client)


def addresses(name: str, *, number: int = 7) -> bytes:
    """A query for A."""
    query = question(number, name)
    return query[:-3] + b"\x01" + query[-2:]


async def test_dns_server_of_the_docs(tmp_path: Path) -> None:
    """The name server of docs/deploy.md, unchanged, answers by UDP and TCP behind dnsdist."""
    trusted: dict[str, Any] = {"proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}
    async with contextlib.AsyncExitStack() as stack:
        here = "127.0.0.1", free_port()
        server = await stack.enter_async_context(asyncserver.serve_datagrams(name_server.handler, *here, **trusted))
        streams = await stack.enter_async_context(asyncserver.serve(name_server.handler, *here, **trusted))
        front = stack.enter_context(dnsdist(server, tmp_path))
        (client,) = stack.enter_context(clients(front, 1))
        replies = []
        for query in (addresses("WWW.example.com"), addresses("no.example.com"), question(7, "mail.example.com")):
            client.send(query)
            async with asyncio.timeout(PATIENCE):
                replies.append(await client.receive())
        assert [(reply[3] & 15, reply[7], reply[-4:]) for reply in replies] == [
            (0, 1, b"\xc0\x00\x02\x50"),
            (3, 0, b"\x00\x01\x00\x01"),
            (0, 0, b"\x00\x10\x00\x01"),
        ]
        reader, writer = await asyncio.open_connection(*front)
        query = addresses("mail.example.com")
        writer.write(len(query).to_bytes(2, "big") + query)
        async with asyncio.timeout(PATIENCE):
            reply = await reader.readexactly(2 + 12 + len(query) - 12 + 16)
        assert reply[-4:] == b"\xc0\x00\x02\x19"
        writer.close()
        await writer.wait_closed()
    assert (server.stats().failed, streams.stats().failed) == (0, 0)


@pytest.mark.parametrize("client", ["kdig", "dig"])
async def test_dns_clients_with_a_header(client: str) -> None:
    """`+proxy` writes a header of version 2 before the question; the answer is taken bare."""
    async with serve(Answering()) as server:
        host, port = server.addresses[0]
        printed = await call(
            client, f"@{host}", "-p", f"{port}", "+proxy=192.0.2.7#1234-198.51.100.2#53", "who.example", "TXT"
        )
        if "nvalid option" in printed or "unknown option" in printed.lower():
            pytest.skip(f"{client} is too old for +proxy")
        assert '"192.0.2.7#1234"' in printed, printed
    assert server.stats().refused == 0


async def test_clients_of_nginx(tmp_path: Path) -> None:
    """With `proxy_requests 1` each datagram has its header, also while another is not answered yet."""
    kept: list[Datagram] = []

    async def handler(datagram: Datagram) -> bytes | None:
        if number_of(datagram.data) < 5:
            kept.append(datagram)
            return None
        return answer(datagram.data, "{}#{}".format(*datagram.address))

    async with serve(handler) as server:
        with (
            nginx(server, tmp_path, "proxy_requests 1; proxy_responses 1;") as front,
            clients(front, 10) as (first, *others),
        ):
            for number in range(5):
                first.send(question(number))
            for client in others:
                assert await ask(client, 9) == shown(client)
            await until(lambda: len(kept) == 5)
            for datagram in kept:
                assert "{}#{}".format(*datagram.address) == shown(first)
                await datagram.reply(answer(datagram.data, "late"))
            assert {number_of(await first.receive()) for _ in kept} == set(range(5))
    stats = server.stats()
    assert (stats.refused, stats.failed) == (0, 0)


@pytest.mark.parametrize("options", ["", "proxy_responses 1;"])
async def test_nginx_that_writes_a_header_for_the_first_datagram_only(options: str, tmp_path: Path) -> None:
    """What comes bare is refused: nobody could tell whose it is."""
    handler = Answering()
    async with serve(handler) as server:
        with nginx(server, tmp_path, options) as front, clients(front, 1) as (client,):
            for number in range(3):
                client.send(question(number))
            assert text_of(await client.receive()) == shown(client)
            await until(lambda: server.stats().refused == 2)
    assert [number_of(one.data) for one in handler.asked] == [0]
    assert server.stats().proxy_invalid == 2
    assert handler.asked[0].proxy_header is not None
    assert handler.asked[0].proxy_header.version == 1
