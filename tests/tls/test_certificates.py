"""Several certificates: which of them a client gets, what a handler learns, and what their files say."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from anyio import TypedAttributeLookupError
from anyio.streams.tls import TLSAttribute
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

import asyncserver
from asyncserver import Server, Stream
from asyncserver.tls.certificate import read_certificate
from tests.kit.clients import Client, TLSClient, open_socket
from tests.kit.transports import Transport
from tests.kit.waiting import until, within


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> list[Path]:
    """Three files with a certificate and its key each, for one name, two, and a wildcard."""
    paths = [tmp_path / name for name in ("first.pem", "second.pem", "third.pem")]
    names = [("one.example", "127.0.0.1"), ("two.example", "Zwei.Example"), ("*.example",)]
    for path, identities in zip(paths, names, strict=True):
        authority.issue_cert(*identities).private_key_and_cert_chain_pem.write_to_path(path)
    return paths


def context_of(files: list[Path], **options: Any) -> asyncserver.TLSContext:
    first, *others = files
    return asyncserver.tls_context(first, more_certificates=[(path, None) for path in others], **options)


async def tell_name(stream: Stream) -> None:
    """Answer with the name that the client asked for."""
    await stream.send(repr(stream.extra(asyncserver.SNIAttribute.server_name)).encode())


@contextlib.asynccontextmanager
async def asking(server: Server, name: str | None, context: ssl.SSLContext) -> AsyncIterator[Client]:
    """Connect, ask for a name, and take the certificate for it."""
    tls = TLSClient(await open_socket(server.addresses[0]), context)
    tls.tls = context.wrap_bio(tls._incoming, tls._outgoing, server_hostname=name)
    try:
        await tls.handshake()
        yield tls
    finally:
        tls.close()


def names_of(client: Client) -> set[str]:
    """The names in the certificate that a client was given."""
    assert isinstance(client, TLSClient)
    certificate: Any = client.tls.getpeercert()
    return {name for _, name in certificate["subjectAltName"]}


@pytest.fixture
def unchecked(client_context: ssl.SSLContext, authority: trustme.CA) -> ssl.SSLContext:
    """A client that trusts the authority and takes any name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    context.check_hostname = False
    return context


# -- which of them


@pytest.mark.parametrize(
    ("asked", "given_names"),
    [
        ("one.example", {"one.example", "127.0.0.1"}),
        ("two.example", {"two.example", "zwei.example"}),
        ("zwei.example", {"two.example", "zwei.example"}),
        ("ZWEI.EXAMPLE", {"two.example", "zwei.example"}),
        ("any.example", {"*.example"}),
        ("deep.any.example", {"one.example", "127.0.0.1"}),
        ("stranger.test", {"one.example", "127.0.0.1"}),
        (None, {"one.example", "127.0.0.1"}),
    ],
)
async def test_the_name_chooses_the_certificate(
    tls: Transport, files: list[Path], unchecked: ssl.SSLContext, asked: str | None, given_names: set[str]
) -> None:
    """The exact name first, then a wildcard for one label, else the first; the handler learns what was asked."""
    async with tls.serve(tell_name, ssl=context_of(files)) as server, asking(server, asked, unchecked) as client:
        assert {name.lower() for name in names_of(client)} == given_names
        assert (await client.receive_all()).decode() == repr(None if asked is None else asked.lower())


async def test_protocols_get_them_too(tls: Transport, files: list[Path], unchecked: ssl.SSLContext) -> None:
    """On the loop's own transport, with the name on the object that it calls `ssl_object`."""

    class Telling(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.write(transport.get_extra_info("ssl_object").server_name.encode())
            transport.close()

    handler = asyncserver.from_protocol(Telling)
    async with tls.serve(handler, ssl=context_of(files)) as server, asking(server, "x.example", unchecked) as client:
        assert names_of(client) == {"*.example"}
        assert await client.receive_all() == b"x.example"


async def test_the_first_of_two_for_one_name_is_used(
    tls: Transport, tmp_path: Path, authority: trustme.CA, unchecked: ssl.SSLContext
) -> None:
    """Also among those behind the first file."""
    paths = [tmp_path / f"{number}.pem" for number in range(3)]
    for number, path in enumerate(paths):
        authority.issue_cert("same.example", f"{number}.example").private_key_and_cert_chain_pem.write_to_path(path)
    first_to_last = context_of(paths)
    async with tls.serve(tell_name, ssl=first_to_last) as server, asking(server, "same.example", unchecked) as client:
        assert "0.example" in names_of(client)
    async with tls.serve(tell_name, ssl=context_of([paths[2], *paths[:2]])) as server:
        async with asking(server, "same.example", unchecked) as client:
            assert "2.example" in names_of(client)
        async with asking(server, "1.example", unchecked) as client:
            assert "1.example" in names_of(client)


async def test_reload_reads_all_of_them(
    tls: Transport, files: list[Path], authority: trustme.CA, unchecked: ssl.SSLContext
) -> None:
    """A certificate behind the first is new too, and a name that came with it chooses it; a broken one changes none."""
    async with tls.serve(tell_name, ssl=context_of(files)) as server:
        renewed = authority.issue_cert("two.example", "three.example.org")
        renewed.private_key_and_cert_chain_pem.write_to_path(files[1])
        server.reload_tls()
        async with asking(server, "three.example.org", unchecked) as client:
            assert names_of(client) == {"two.example", "three.example.org"}
        files[1].write_text("half written")
        files[0].write_bytes(files[2].read_bytes())
        with pytest.raises(ssl.SSLError, match=r"second\.pem"):
            server.reload_tls()
        async with asking(server, "one.example", unchecked) as client:
            assert names_of(client) == {"one.example", "127.0.0.1"}


@pytest.mark.parametrize("asked", ["one.example", "two.example"])
async def test_all_of_them_have_the_same_rules(
    tls: Transport, files: list[Path], authority: trustme.CA, unchecked: ssl.SSLContext, asked: str
) -> None:
    """Protocols on offer, client certificates: whichever certificate a client gets."""
    authority.cert_pem.write_to_path(ca := files[0].parent / "ca.pem")
    context = context_of(files, client_ca=ca, alpn=["upper/1"])

    async def tell(stream: Stream) -> None:
        certificate: Any = stream.extra(TLSAttribute.peer_certificate)
        await stream.send(f"{certificate['subjectAltName'][0][1]} {stream.extra(TLSAttribute.alpn_protocol)}".encode())

    unchecked.set_alpn_protocols(["upper/1"])
    async with tls.serve(tell, ssl=context) as server:
        async with asking(server, asked, unchecked) as client:
            with contextlib.suppress(OSError):  # in TLS 1.3 the refusal comes after the handshake
                assert await client.receive_all() == b""
        await until(lambda: server.stats().refused == 1)
        authority.issue_cert("client.example").configure_cert(unchecked)
        async with asking(server, asked, unchecked) as client:
            assert await client.receive_all() == b"client.example upper/1"


# -- clients' certificates that are optional


async def test_optional_client_certificate(
    tls: Transport, files: list[Path], authority: trustme.CA, unchecked: ssl.SSLContext
) -> None:
    """Who has none is served as nobody, who has one as himself, and who has a stranger's is refused."""
    authority.cert_pem.write_to_path(ca := files[0].parent / "ca.pem")
    context = context_of(files, client_ca=ca, client_cert="optional")

    async def tell(stream: Stream) -> None:
        certificate: Any = stream.extra(TLSAttribute.peer_certificate)
        await stream.send(certificate["subjectAltName"][0][1].encode() if certificate else b"nobody")

    async with tls.serve(tell, ssl=context) as server:
        async with asking(server, "one.example", unchecked) as client:
            assert await client.receive_all() == b"nobody"
        authority.issue_cert("client.example").configure_cert(unchecked)
        async with asking(server, "one.example", unchecked) as client:
            assert await client.receive_all() == b"client.example"
        type(authority)().issue_cert("client.example").configure_cert(unchecked)
        with contextlib.suppress(OSError):
            async with asking(server, "one.example", unchecked) as client:
                assert await within(client.receive_all()) == b""
        await until(lambda: server.stats().refused == 1)


# -- of several kinds


def issue(authority: trustme.CA, path: Path, kind: trustme.KeyType, *identities: str) -> Path:
    authority.issue_cert(*identities, key_type=kind).private_key_and_cert_chain_pem.write_to_path(path)
    return path


@pytest.fixture
def both(tmp_path: Path, authority: trustme.CA) -> list[Path]:
    """Of one certificate with RSA and one with ECDSA, the files: for a name and an address, in common."""
    kinds = {"rsa.pem": trustme.KeyType.RSA, "ecdsa.pem": trustme.KeyType.ECDSA}
    return [issue(authority, tmp_path / name, kind, "same.example", "127.0.0.1") for name, kind in kinds.items()]


@pytest.mark.parametrize("asked", ["same.example", "stranger.test", None])
@pytest.mark.parametrize("case", list(itertools.product(["RSA", "ECDSA"], [1, -1])))
async def test_one_name_and_two_kinds_of_keys(
    tls: Transport, both: list[Path], unchecked: ssl.SSLContext, asked: str | None, case: tuple[str, int]
) -> None:
    """Whoever understands one of them only gets that, in either order of the files, by name and as the default."""
    kind, order = case
    unchecked.maximum_version = ssl.TLSVersion.TLSv1_2  # whose cipher suites say which kind the client understands
    unchecked.set_ciphers(f"ECDHE-{kind}-AES128-GCM-SHA256")
    async with (
        tls.serve(tell_name, ssl=context_of(both[::order])) as server,
        asking(server, asked, unchecked) as client,
    ):
        assert isinstance(client, TLSClient)
        assert kind in str(client.tls.cipher())
        assert names_of(client) == {"same.example", "127.0.0.1"}


async def test_second_kind_for_some_names_only(
    tls: Transport, both: list[Path], tmp_path: Path, authority: trustme.CA, unchecked: ssl.SSLContext
) -> None:
    """A certificate of another kind is offered for its own names, not for those of the first alone, nor by default."""
    more = issue(authority, tmp_path / "more.pem", trustme.KeyType.RSA, "same.example", "more.example")
    unchecked.maximum_version = ssl.TLSVersion.TLSv1_2
    unchecked.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    async with tls.serve(tell_name, ssl=context_of([both[1], more])) as server:
        for asked in ("same.example", "more.example"):
            async with asking(server, asked, unchecked) as client:
                assert "more.example" in names_of(client)
        with pytest.raises(OSError, match=r"(?i)handshake.failure"):
            async with asking(server, None, unchecked):
                pass


def test_certificate_that_nobody_would_get(both: list[Path], tmp_path: Path, authority: trustme.CA) -> None:
    """A second one for the same names, with a key of the same kind, is refused, and so is a file given twice."""
    again = issue(authority, tmp_path / "again.pem", trustme.KeyType.ECDSA, "same.example")
    expected = (
        r"no client would get the certificate in \S*again\.pem: for same\.example that in \S*ecdsa\.pem comes before"
    )
    with pytest.raises(ValueError, match=expected):
        context_of([*both, again])
    with pytest.raises(ValueError, match=r"rsa\.pem comes before it, with a key of the same kind"):
        context_of([both[0], both[0]])
    context_of([again, both[0]])


def test_addresses_of_two_kinds(tmp_path: Path, authority: trustme.CA) -> None:
    """Certificates for no name are of use together if they are for the same addresses."""
    kinds = (trustme.KeyType.RSA, trustme.KeyType.ECDSA)
    files = [issue(authority, tmp_path / f"{kind.name}.pem", kind, "127.0.0.1", "::1") for kind in kinds]
    assert [found.addresses for _, found in context_of(files).certificates if found is not None] == [
        (b"\x7f\0\0\1", bytes(15) + b"\1")
    ] * 2


# -- what is told when something is wrong


async def test_context_of_somebody_else_tells_no_name(
    tls: Transport, unchecked: ssl.SSLContext, certfile: Path
) -> None:
    """A plain ssl.SSLContext does not keep it; asking says that there is no such attribute."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certfile)

    async def tell(stream: Stream) -> None:
        with pytest.raises(TypedAttributeLookupError):
            stream.extra(asyncserver.SNIAttribute.server_name)
        await stream.send(b"no")

    async with tls.serve(tell, ssl=context) as server, asking(server, "localhost", unchecked) as client:
        assert await client.receive_all() == b"no"


def test_further_certificate_without_a_name(files: list[Path], tmp_path: Path, authority: trustme.CA) -> None:
    """Nobody could ask for it: an error that names the file and the way out."""
    path = tmp_path / "nameless.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    with pytest.raises(ValueError, match=r"nameless\.pem: it is for no DNS name; give it first"):
        context_of([files[0], path])
    context_of([path, files[0]])


def test_file_among_several_is_named(files: list[Path]) -> None:
    """The one that is wrong, not the others."""
    files[1].write_text("nothing")
    with pytest.raises(ssl.SSLError, match=r"no usable certificate and key in \S*second\.pem: "):
        context_of(files)


def test_client_cert_is_one_of_two_words(files: list[Path]) -> None:
    """Anything else is refused, and that where no client is asked for a certificate."""
    with pytest.raises(ValueError, match='client_cert="optional" has no effect without client_ca'):
        context_of(files, client_cert="optional")
    with pytest.raises(ValueError, match='client_cert must be "required" or "optional", got True'):
        context_of(files, client_cert=True)


# -- what a certificate says: cryptography writes it, the server reads it

LABELS = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?", fullmatch=True)
NAMES = st.builds(
    lambda star, labels: ("*." if star else "") + ".".join(labels),
    st.booleans(),
    st.lists(LABELS, min_size=1, max_size=4),
)
KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(names: list[str], expires: dt.datetime, *, others: bool, common_name: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime(1960, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(expires)
    )
    if others:
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    if names:
        general: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        general += [x509.RFC822Name("somebody@mail.example")] if others else []
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=others)
    if others:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(KEY.public_key()), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@given(
    names=st.lists(NAMES, max_size=12),
    seconds=st.integers(-280_000_000, 7_000_000_000),  # from 1961 to 2191
    others=st.booleans(),
)
def test_names_and_expiry_are_those_of_the_certificate(names: list[str], seconds: int, others: bool) -> None:
    """However many, in whichever order of extensions, before and after 2050."""
    expires = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)
    found = read_certificate(certificate(names, expires, others=others, common_name="common.example"))
    assert found.names == tuple(name.lower() for name in names)
    assert found.expires == expires
    assert found.key == bytes.fromhex("2a8648ce3d0201")  # id-ecPublicKey, RFC 5480
