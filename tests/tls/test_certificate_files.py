"""Certificates' files as people have them: what OpenSSL reads in them is what we speak of; mistakes are told."""

from __future__ import annotations

import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

import asyncserver
from asyncserver.tls.certificate import read_certificate
from tests.kit.clients import TLSClient, open_socket
from tests.kit.transports import Transport

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import trustme

    from asyncserver import Stream


def issued(authority: trustme.CA, name: str) -> tuple[str, str]:
    """A certificate and its key, PEM."""
    made = authority.issue_cert(name)
    return made.cert_chain_pems[0].bytes().decode(), made.private_key_pem.bytes().decode()


def before_each_line(prefix: str, text: str) -> str:
    return "".join(prefix + line + "\n" for line in text.splitlines())


def in_one_line(text: str) -> str:
    begin, *body, end = text.splitlines()
    return f"{begin}\n{''.join(body)}\n{end}\n"


# How a file may hold the certificate that is served (new) and its key, with one that is not (old): all of these OpenSSL
# 3.0, 3.5 and 3.6 take, and none of them for the old one.
FORMS: dict[str, Callable[[str, str, str], str]] = {
    "plain": lambda old, new, key: new + key,
    "key first": lambda old, new, key: key + new,
    "followed": lambda old, new, key: new + old + key,
    "commented": lambda old, new, key: before_each_line("# ", old) + new + key,
    "commented closely": lambda old, new, key: before_each_line("#", old) + new + key,
    "first line commented": lambda old, new, key: "#" + old + new + key,
    "quoted": lambda old, new, key: before_each_line("> ", old) + new + key,
    "indented": lambda old, new, key: before_each_line("  ", old) + new + key,
    "indented by a tab": lambda old, new, key: before_each_line("\t", old) + new + key,
    "indented first line": lambda old, new, key: " " + old + new + key,
    "commented, CRLF": lambda old, new, key: (before_each_line("# ", old) + new + key).replace("\n", "\r\n"),
    "CRLF": lambda old, new, key: (new + key).replace("\n", "\r\n"),
    "byte order mark": lambda old, new, key: "\ufeff" + new + key,
    "byte order mark, commented": lambda old, new, key: "\ufeff" + before_each_line("# ", old) + new + key,
    "byte order mark in the middle": lambda old, new, key: "\n\ufeff" + old + new + key,
    "bag attributes": lambda old, new, key: (
        f"Bag Attributes\n    localKeyID: 01 02\nsubject=CN = x\n\n{new}Bag Attributes\nKey Attributes: <none>\n{key}"
    ),
    "X509": lambda old, new, key: new.replace("CERTIFICATE", "X509 CERTIFICATE") + key,
    "TRUSTED": lambda old, new, key: new.replace("CERTIFICATE", "TRUSTED CERTIFICATE") + key,
    "a request first": lambda old, new, key: old.replace("CERTIFICATE", "CERTIFICATE REQUEST") + new + key,
    "spaces behind": lambda old, new, key: (new + key).replace("-----\n", "-----  \t\n"),
    "words behind BEGIN": lambda old, new, key: old.replace("-----\n", "----- (old)\n", 1) + new + key,
    "six dashes": lambda old, new, key: "-" + old + new + key,
    "in one line": lambda old, new, key: in_one_line(new) + key,
    "no line end at the end": lambda old, new, key: (key + new).rstrip("\n"),
}


@pytest.mark.parametrize("form", FORMS)
async def test_certificate_that_goes_out_is_the_one_spoken_of(
    tls: Transport, tmp_path: Path, authority: trustme.CA, client_context: ssl.SSLContext, form: str
) -> None:
    """Its names choose it, and `certificates`, which --check prints, says what a client gets."""
    old, new, default = (issued(authority, f"{name}.example") for name in ("old", "new", "default"))
    (tmp_path / "default.pem").write_text("".join(default))
    (path := tmp_path / "form.pem").write_bytes(FORMS[form](old[0], *new).encode())
    context = asyncserver.tls_context(tmp_path / "default.pem", more_certificates=[(path, None)])

    async def nothing(stream: Stream) -> None:
        pass

    async with tls.serve(nothing, ssl=context) as server:
        client = TLSClient(await open_socket(server.addresses[0]), client_context)
        client.tls = client_context.wrap_bio(client._incoming, client._outgoing, server_hostname="new.example")
        try:
            await client.handshake()  # which checks the name
            given = client.tls.getpeercert(binary_form=True)
        finally:
            client.close()
    assert given is not None
    assert context.certificates[1] == (str(path), read_certificate(given))
    assert read_certificate(given).names == ("new.example",)


# What OpenSSL does not take, and calls "PEM lib" or a mismatch.
MISTAKES: dict[str, tuple[Callable[[str, str, str], str], str]] = {
    "glued": (lambda old, new, key: new.rstrip("\n") + old + key, "has an end and a beginning glued together in line"),
    "glued to the key": (lambda old, new, key: key.rstrip("\n") + new, "glued together in line"),
    "wrong order": (lambda old, new, key: old + new + key, "the first certificate in .* is not that of the key in"),
    "all commented": (
        lambda old, new, key: before_each_line("#", new) + key,
        r"no certificate in .*, but a key.*counts at the start of a line only, unlike that in line 1 of",
    ),
    "a comment inside": (lambda old, new, key: new.replace("\n", "\n# new\n", 2) + key, "is broken in line 2, between"),
    "a line left out": (lambda old, new, key: new.replace("\n", "\n\n", 3) + key, "is broken in line 2, between"),
    "words behind BEGIN": (
        lambda old, new, key: new.replace("-----\n", "----- (new)\n", 1) + key,
        "has more in line 1 than -----BEGIN CERTIFICATE-----: put it elsewhere",
    ),
    "cut off": (lambda old, new, key: key + new[:400], "ends before the END of what begins in line"),
    "BEGIN twice": (lambda old, new, key: "-----BEGIN CERTIFICATE-----\n" + new + key, "is broken in line 2"),
    "empty": (lambda old, new, key: "\n", "is empty"),
    "no PEM": (lambda old, new, key: "hello\n", "is not PEM: it has no line such as"),
    "old Mac's": (lambda old, new, key: (new + key).replace("\n", "\r"), "has no line ends"),
    "a request": (lambda old, new, key: new.replace("CERTIFICATE", "CERTIFICATE REQUEST"), "holds a request for"),
    "a public key": (lambda old, new, key: key.replace("EC PRIVATE", "PUBLIC"), "holds a public key: the server needs"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_gets_its_sentence(tmp_path: Path, authority: trustme.CA, mistake: str) -> None:
    """Behind the file's name, and never with a word out of it, since that could be the key's."""
    (old, _), (new, key) = (issued(authority, f"{name}.example") for name in ("old", "new"))
    make, expected = MISTAKES[mistake]
    (path := tmp_path / "mistake.pem").write_bytes((text := make(old, new, key)).encode())
    with pytest.raises(ssl.SSLError, match=rf"no usable certificate and key in \S*mistake\.pem: .*{expected}") as told:
        asyncserver.tls_context(path)
    assert not [line for line in text.splitlines() if len(line) > 40 and line in str(told.value)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x30\x82\x05\x00\x30\x82\x03\x00", "is DER, not PEM: convert it, `openssl x509 -inform DER"),
        (b"\x30\x82\x05\x00\x02\x01\x03\x30\x82", "is PKCS #12, not PEM: convert it, `openssl pkcs12"),
        ("-----BEGIN CERTIFICATE-----\n".encode("utf-16"), "is text in UTF-16: save it as UTF-8"),
        (b"-----BEGIN PKCS7-----\nAAAA\n-----END PKCS7-----\n", "holds PKCS #7: convert it, `openssl pkcs7"),
    ],
)
def test_other_formats_are_told(tmp_path: Path, content: bytes, expected: str) -> None:
    """With what makes the right one of them."""
    (path := tmp_path / "other.pem").write_bytes(content)
    with pytest.raises(ssl.SSLError, match=expected):
        asyncserver.tls_context(path)


def test_mistake_in_the_authorities_file(tmp_path: Path, certfile: Path, authority: trustme.CA) -> None:
    """The same sentences for client_ca."""
    pem = authority.cert_pem.bytes()
    (path := tmp_path / "ca.pem").write_bytes(pem.rstrip(b"\n") + pem)
    with pytest.raises(ssl.SSLError, match=r"no usable certificates in \S*ca\.pem: .*glued together in line"):
        asyncserver.tls_context(certfile, client_ca=path)


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
def test_wrong_password(tmp_path: Path, authority: trustme.CA, form: str) -> None:
    """It is the likely reason, and said so; for keys as OpenSSL writes them now, and as it did before 1.0."""
    from cryptography.hazmat.primitives import serialization

    certificate, key = issued(authority, "new.example")
    encrypted = serialization.load_pem_private_key(key.encode(), None).private_bytes(
        serialization.Encoding.PEM,
        getattr(serialization.PrivateFormat, form),
        serialization.BestAvailableEncryption(b"right"),
    )
    (path := tmp_path / "new.pem").write_text(certificate + encrypted.decode())
    asyncserver.tls_context(path, password="right")
    with pytest.raises(ssl.SSLError, match=r"new\.pem is encrypted: is the password wrong\?"):
        asyncserver.tls_context(path, password="wrong")


def test_curve_that_clients_do_not_know(tmp_path: Path) -> None:
    """It can be served alone, to clients who are told to know it; beside others nobody would get it."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp256k1", "-nodes"]
    command += ["-subj", "/CN=x", "-addext", "subjectAltName=DNS:curve.example", "-keyout", "-", "-out", "-"]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (path := tmp_path / "curve.pem").write_text(made)
    assert asyncserver.tls_context(path).certificates == ((str(path), None),)
    with pytest.raises(ValueError, match=r"no client can have the certificate in \S*curve\.pem: OpenSSL's defaults"):
        asyncserver.tls_context(path, more_certificates=[(path, None)])
