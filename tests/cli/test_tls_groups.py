"""tls_context(groups=...): what keys are agreed on with, and what handlers and older Pythons say about it."""

from __future__ import annotations

import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
from anyio import TypedAttributeLookupError
from anyio.streams.tls import TLSAttribute

import asyncserver
from asyncserver import KeyExchangeAttribute
from tests.kit.certificates import authority, client_context, write_files
from tests.kit.cli import command, internet_address
from tests.kit.clients import Client, TLSClient
from tests.kit.waiting import PATIENCE

NEW = pytest.mark.skipif(sys.version_info < (3, 15), reason="ssl.SSLContext.set_groups came with Python 3.15")
OLD = pytest.mark.skipif(sys.version_info >= (3, 15), reason="Python 3.15 can set groups")
HYBRID = "X25519MLKEM768"


def knows_hybrid() -> bool:
    """Whether OpenSSL has the post-quantum group: it has since 3.5."""
    context: Any = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return hasattr(context, "get_groups") and HYBRID in context.get_groups()


async def tell(stream: asyncserver.Stream) -> None:
    """Say which group it was, and by whom it was told."""
    group = stream.extra(KeyExchangeAttribute.group)
    tls: Any = stream.extra(TLSAttribute.ssl_object)  # typed by anyio, which knows nothing of 3.15
    assert group == tls.group()
    await stream.send(str(group).encode())


async def agreed(server: asyncserver.Server, *groups: str) -> str:
    """What the server's handler says to a client that can do with these."""
    context: Any = ssl.create_default_context()
    authority().configure_trust(context)
    if groups:
        context.set_groups(":".join(groups))
    client = await Client.connect(server.addresses[0], context)
    assert isinstance(client, TLSClient)
    try:
        return (await client.receive_all()).decode()
    finally:
        client.close()


@NEW
@pytest.mark.skipif(not knows_hybrid(), reason="this OpenSSL is older than 3.5")
async def test_post_quantum_group_is_agreed_on(folder: Path) -> None:
    """Where both sides can; the server's order counts, and a client that has none of its groups is refused."""
    write_files(folder)
    context = asyncserver.tls_context(folder / "both.pem", groups=[HYBRID, "X25519"])
    async with asyncserver.serve(tell, "127.0.0.1", 0, ssl=context) as server:
        assert await agreed(server) == HYBRID
        assert await agreed(server, HYBRID) == HYBRID
        assert (await agreed(server, "X25519")).lower() == "x25519"
        with pytest.raises(ssl.SSLError):
            await agreed(server, "secp521r1")


@NEW
async def test_groups_stay_over_a_reload_and_hold_for_each_certificate(folder: Path) -> None:
    """Files are read again; what else was asked for stays."""
    write_files(folder)
    other = folder / "other.pem"
    authority().issue_cert("other.example").private_key_and_cert_chain_pem.write_to_path(str(other))
    context = asyncserver.tls_context(folder / "both.pem", more_certificates=[(other, None)], groups=["secp384r1"])
    async with asyncserver.serve(tell, "127.0.0.1", 0, ssl=context) as server:
        for _ in range(2):
            assert await agreed(server) == "secp384r1"
            with pytest.raises(ssl.SSLError):
                await agreed(server, "X25519")
            server.reload_tls()


@NEW
async def test_without_groups_the_attribute_is_there(folder: Path) -> None:
    """What OpenSSL has chosen."""
    write_files(folder)
    async with asyncserver.serve(tell, "127.0.0.1", 0, ssl=asyncserver.tls_context(folder / "both.pem")) as server:
        assert await agreed(server) == (HYBRID if knows_hybrid() else await agreed(server, "X25519"))


@NEW
def test_unknown_group_is_named(folder: Path) -> None:
    """With where to look for those there are."""
    write_files(folder)
    with pytest.raises(ValueError, match=r"OpenSSL .* does not know the group 'x' of groups=.*SSLContext\.get_groups"):
        asyncserver.tls_context(folder / "both.pem", groups=["X25519", "x"])


@pytest.mark.parametrize("groups", ["X25519", [], [""]])
def test_what_is_no_list_of_names(folder: Path, groups: Any) -> None:
    """One name is a sequence too, of letters."""
    write_files(folder)
    with pytest.raises(ValueError, match="groups expects names, the preferred first, such as"):
        asyncserver.tls_context(folder / "both.pem", groups=groups)


@OLD
async def test_older_python_says_what_it_needs(folder: Path) -> None:
    """And the stream has no such attribute there."""
    write_files(folder)
    with pytest.raises(ValueError, match=r"groups \(--tls-groups\) needs Python 3\.15 or newer"):
        asyncserver.tls_context(folder / "both.pem", groups=["X25519"])

    async def look(stream: asyncserver.Stream) -> None:
        assert stream.extra(KeyExchangeAttribute.group, "none") == "none"
        with pytest.raises(TypedAttributeLookupError):
            stream.extra(KeyExchangeAttribute.group)
        await stream.send(b"looked")

    async with asyncserver.serve(look, "127.0.0.1", 0, ssl=asyncserver.tls_context(folder / "both.pem")) as server:
        assert await agreed(server) == "looked"


@NEW
def test_command_line(folder: Path) -> None:
    """--tls-groups: a client gets one of them, which it would not have chosen by itself."""
    write_files(folder)
    words = ["app:handler", "--tcp", "127.0.0.1:0", "--certfile", "both.pem", "--tls-groups", "secp384r1:secp521r1"]
    with (
        command(folder, *words) as program,
        socket.create_connection(internet_address(program), PATIENCE) as plain,
        client_context().wrap_socket(plain, server_hostname="localhost") as client,
    ):
        told: Any = client
        assert told.group() == "secp384r1"


@OLD
def test_command_line_of_an_older_python(folder: Path) -> None:
    """It ends at once, and says why."""
    write_files(folder)
    words = ["app:handler", "--tcp", "127.0.0.1:0", "--certfile", "both.pem", "--tls-groups", "X25519", "--check"]
    with command(folder, *words) as program:
        assert program.wait() == 2
        assert "(--tls-groups) needs Python 3.15 or newer" in program.errors
