"""tls_context, and new certificates while connections stay."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

import asyncserver
from tests.kit.clients import Client, TLSClient
from tests.kit.handlers import upper
from tests.kit.transports import Transport

# -- tls_context


def test_defaults(server_context: asyncserver.TLSContext) -> None:
    """Nothing older than TLS 1.2, no certificate asked for."""
    assert server_context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert server_context.verify_mode == ssl.CERT_NONE
    assert isinstance(server_context, ssl.SSLContext)


def test_minimum_version(certfile: Path) -> None:
    """Stricter than the default, if asked for; also after a reload."""
    context = asyncserver.tls_context(certfile, minimum_version=ssl.TLSVersion.TLSv1_3)
    assert context.minimum_version == context.reload().minimum_version == ssl.TLSVersion.TLSv1_3


def test_key_in_a_file_of_its_own(tmp_path: Path, authority: trustme.CA) -> None:
    """Certificate and key may be apart."""
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for kind in (str, lambda path: path):
        context = asyncserver.tls_context(kind(tmp_path / "cert.pem"), kind(tmp_path / "key.pem"))
        assert isinstance(context, ssl.SSLContext)


@pytest.mark.parametrize("argument", ["certfile", "keyfile", "client_ca"])
def test_missing_file_is_named(tmp_path: Path, certfile: Path, argument: str) -> None:
    """OpenSSL does not say which file it was; we do."""
    arguments: Any = {"certfile": certfile, argument: tmp_path / "missing.pem"}
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*missing\.pem"):
        asyncserver.tls_context(**arguments)


def test_file_without_a_certificate_is_named(tmp_path: Path, certfile: Path) -> None:
    """Neither does it when the file holds something else."""
    (tmp_path / "empty.pem").write_text("nothing of the kind\n")
    with pytest.raises(ssl.SSLError, match=r"empty\.pem"):
        asyncserver.tls_context(tmp_path / "empty.pem")
    with pytest.raises(ssl.SSLError, match=r"empty\.pem"):
        asyncserver.tls_context(certfile, client_ca=tmp_path / "empty.pem")


def test_key_that_does_not_fit(tmp_path: Path, authority: trustme.CA) -> None:
    """A certificate and another one's key."""
    authority.issue_cert("localhost").cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "key.pem")
    with pytest.raises(ssl.SSLError, match="no usable certificate and key"):
        asyncserver.tls_context(tmp_path / "cert.pem", tmp_path / "key.pem")


def test_missing_file_of_a_relative_name_is_told_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program was started elsewhere, most likely."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"directory, looked for in {tmp_path}: 'missing\.pem'"):
        asyncserver.tls_context("missing.pem")


def test_part_that_is_missing_or_in_the_other_file_is_told(tmp_path: Path, authority: trustme.CA) -> None:
    """OpenSSL says "PEM lib" to all of these."""
    certificate = authority.issue_cert("localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(cert)
    certificate.private_key_pem.write_to_path(key)
    for arguments, words in [
        ((cert,), r"no private key in .*cert\.pem: give keyfile \(--keyfile\)"),
        ((cert, cert), r"no private key in .*cert\.pem: is it another file\?"),
        ((key, cert), r"no certificate in .*key\.pem, but a key: exchange it with .*cert\.pem"),
        ((key,), r"no certificate in .*key\.pem, but a key: give it as keyfile"),
    ]:
        with pytest.raises(ssl.SSLError, match=words):
            asyncserver.tls_context(*arguments)


@pytest.mark.parametrize("wrong", [("other.pem", "other.key"), ["ab"], [("other.pem",)]])
def test_more_certificates_are_pairs(certfile: Path, wrong: Any) -> None:
    """One pair instead of a sequence of them, most likely."""
    with pytest.raises(TypeError, match=r"pairs, \[\(certfile, keyfile or None\), \.\.\.\]; got "):
        asyncserver.tls_context(certfile, more_certificates=wrong)


def _encrypted(tmp_path: Path, authority: trustme.CA) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization

    certificate = authority.issue_cert("localhost")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"sesame")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (tmp_path / "key.pem").write_bytes(pem)
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def test_encrypted_key(tmp_path: Path, authority: trustme.CA) -> None:
    """With its password it works, also again; without, nobody is asked on the terminal."""
    certfile, keyfile = _encrypted(tmp_path, authority)
    assert isinstance(asyncserver.tls_context(certfile, keyfile, password="sesame").reload(), ssl.SSLContext)
    with pytest.raises(ValueError, match="password"):
        asyncserver.tls_context(certfile, keyfile)
    with pytest.raises(ssl.SSLError, match="no usable certificate and key"):
        asyncserver.tls_context(certfile, keyfile, password="wrong")
    with pytest.raises(TypeError, match="password expects text, bytes or a function that returns them; got int"):
        asyncserver.tls_context(certfile, keyfile, password=1234)  # type: ignore[arg-type]


def test_password_of_a_function_is_asked_for_again(tmp_path: Path, authority: trustme.CA) -> None:
    """For each context, so that a key may get another; what it raises is raised."""
    certfile, keyfile = _encrypted(tmp_path, authority)
    passwords: list[str | bytes] = ["sesame", b"sesame", "wrong"]
    context = asyncserver.tls_context(certfile, keyfile, password=lambda: passwords.pop(0)).reload()
    with pytest.raises(ssl.SSLError, match="is the password wrong"):
        context.reload()
    with pytest.raises(IndexError):
        context.reload()


# -- protocols and ciphers


@pytest.mark.parametrize(
    ("alpn", "error", "message"),
    [
        ("h2", TypeError, 'alpn expects names, the preferred first, such as ["h2", "http/1.1"]; got \'h2\''),
        ([b"h2"], TypeError, "alpn expects names"),
        ({"h2"}, TypeError, "alpn expects names"),
        (["h2", ""], ValueError, "alpn takes names of 1 to 255 ASCII characters (RFC 7301, 3.1), such as 'h2'; got ''"),
        (["h\xb2"], ValueError, "got 'h\xb2'"),
        (["x" * 256], ValueError, "got one of 256 characters"),
        (["x" * 255] * 257, ValueError, "alpn takes names of 65535 bytes together (RFC 7301, 3.1); got 65792"),
    ],
)
def test_names_that_alpn_cannot_carry(certfile: Path, alpn: Any, error: type[Exception], message: str) -> None:
    """Python's own errors name none; a string would be taken for a name of each of its letters."""
    with pytest.raises(error) as caught:
        asyncserver.tls_context(certfile, alpn=alpn)
    assert message in str(caught.value)


@pytest.mark.parametrize("alpn", [["x" * 255], ("h2", "http/1.1"), ["x" * 255] * 255])
def test_names_that_alpn_can_carry(certfile: Path, alpn: Any) -> None:
    """As long as they may be."""
    assert isinstance(asyncserver.tls_context(certfile, alpn=alpn).reload(), ssl.SSLContext)


def test_ciphers_are_those_of_the_context(certfile: Path) -> None:
    """Also after a reload; those of TLS 1.3 are there too."""
    context = asyncserver.tls_context(certfile, ciphers="ECDHE+CHACHA20:!aNULL:-PSK:@STRENGTH")
    for one in (context, context.reload()):
        names = {cipher["name"] for cipher in one.get_ciphers() if cipher["protocol"] == "TLSv1.2"}
        assert {"ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-ECDSA-CHACHA20-POLY1305"} >= names > set()
        assert any(cipher["protocol"] == "TLSv1.3" for cipher in one.get_ciphers())


@pytest.mark.parametrize(
    ("ciphers", "error", "message"),
    [
        (
            "ECDHE+AESGCM:ECDHE-RSA-AES129-GCM",
            ValueError,
            "does not know 'ECDHE-RSA-AES129-GCM' of ciphers=",
        ),
        ("HIGH TYPO", ValueError, "does not know 'TYPO' of ciphers='HIGH TYPO': `openssl ciphers -s ALL` tells"),
        ("TLS_AES_128_GCM_SHA256", ValueError, "its ciphers are of TLS 1.2, and those of TLS 1.3 stay as they are"),
        ("HIGH:!ALL", ValueError, "ciphers='HIGH:!ALL' leaves none: `openssl ciphers -s 'STRING'` tells"),
        ("", ValueError, "ciphers='' leaves none"),
        (["HIGH"], TypeError, "ciphers expects a string as of openssl-ciphers(1)"),
    ],
)
def test_wrong_ciphers(certfile: Path, ciphers: Any, error: type[Exception], message: str) -> None:
    """OpenSSL says nothing of a name that it does not know, if it knows another."""
    with pytest.raises(error) as caught:
        asyncserver.tls_context(certfile, ciphers=ciphers)
    assert message in str(caught.value)


def test_ciphers_without_effect_are_refused(certfile: Path) -> None:
    """With TLS 1.3 alone."""
    with pytest.raises(ValueError, match=r"ciphers='HIGH' has no effect: these are TLS 1\.2's"):
        asyncserver.tls_context(certfile, ciphers="HIGH", minimum_version=ssl.TLSVersion.TLSv1_3)


# -- reload


def _subject(client: Client) -> str:
    assert isinstance(client, TLSClient)
    certificate = client.tls.getpeercert()
    assert certificate is not None
    names: Any = certificate["subjectAltName"]
    return " ".join(str(name) for _, name in names)


async def test_reload_tls(tls: Transport, tmp_path: Path, authority: trustme.CA) -> None:
    """New files, new certificates for new connections; one that is open stays open, with the one it had."""
    path = tmp_path / "server.pem"
    authority.issue_cert("localhost", "old.example").private_key_and_cert_chain_pem.write_to_path(path)
    async with tls.serve(upper, ssl=asyncserver.tls_context(path)) as server, tls.connect(server) as before:
        assert "old.example" in _subject(before)
        authority.issue_cert("localhost", "new.example").private_key_and_cert_chain_pem.write_to_path(path)
        server.reload_tls()
        after = await tls.connect(server)
        assert "new.example" in _subject(after)
        assert await before.ask(b"still here") == b"STILL HERE"
        assert await after.ask(b"hello") == b"HELLO"
        after.close()


async def test_reload_tls_with_a_broken_file_keeps_the_old_one(
    tls: Transport, tmp_path: Path, authority: trustme.CA
) -> None:
    """An error to whoever asked, and everybody is served as before."""
    path = tmp_path / "server.pem"
    authority.issue_cert("localhost", "old.example").private_key_and_cert_chain_pem.write_to_path(path)
    async with tls.serve(upper, ssl=asyncserver.tls_context(path)) as server:
        path.write_text("half written")
        with pytest.raises(ssl.SSLError, match=r"server\.pem"):
            server.reload_tls()
        path.unlink()
        with pytest.raises(FileNotFoundError):
            server.reload_tls()
        client = await tls.connect(server)
        assert "old.example" in _subject(client)
        client.close()


async def test_reload_tls_with_a_context(tls: Transport, authority: trustme.CA, server_context: ssl.SSLContext) -> None:
    """Any ssl.SSLContext can be given; one that was not made by us cannot be read again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "given.example").configure_cert(context)
    async with tls.serve(upper) as server:
        server.reload_tls(context)
        client = await tls.connect(server)
        assert "given.example" in _subject(client)
        client.close()
        with pytest.raises(RuntimeError, match="tls_context"):
            server.reload_tls()


async def test_reload_tls_needs_tls(tcp: Transport, server_context: ssl.SSLContext) -> None:
    """A plain server has nothing to reload, nor has one that is closed."""
    async with tcp.serve(upper) as server:
        with pytest.raises(RuntimeError, match="does not speak TLS"):
            server.reload_tls(server_context)
    with pytest.raises(RuntimeError, match="closed"):
        server.reload_tls(server_context)
