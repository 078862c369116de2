"""What is wrong with a PEM file that OpenSSL refuses: its own error is always "PEM lib".

Only for the sentence in an error: what OpenSSL takes from a file only OpenSSL knows
(certificate.py).
"""

from __future__ import annotations

import os
import re
from typing import TypeAlias

FilePath: TypeAlias = str | os.PathLike[str]

_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_HIDDEN = re.compile(rb"^[^\n-]+-----BEGIN ", re.MULTILINE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/=\s]+")
# OpenSSL removes them from the end of lines, crypto/pem/pem_lib.c.
_SPACES = bytes(range(0x21))

_REQUEST = "holds a request for a certificate: give the certificate that the authority has answered"

# What files hold that other programs call the same, and how to convert it.
_OTHERS: dict[bytes, str] = {
    b"CERTIFICATE REQUEST": _REQUEST,
    b"NEW CERTIFICATE REQUEST": _REQUEST,
    b"PKCS7": "holds PKCS #7: convert it, `openssl pkcs7 -print_certs -in FILE -out NEW`",
    b"PUBLIC KEY": "holds a public key: the server needs the private one",
    b"OPENSSH PRIVATE KEY": "holds a key as ssh writes it: convert a copy, `ssh-keygen -p -m PEM -f COPY`",
}
# PKCS #12 (RFC 7292, 4) begins with its version, 3; a certificate with a sequence.
_PKCS12 = re.compile(rb"\x30[\x80-\x84]?[^\x02]{0,4}\x02\x01\x03", re.DOTALL)


def explain(certfile: FilePath, keyfile: FilePath | None) -> str | None:
    """Say why OpenSSL takes no certificate or no key from these files; None if that is not seen."""
    held: list[list[bytes]] = []
    hint = ""
    for file in (certfile, keyfile or certfile):
        labels, mistake = _blocks(content := _content(file))
        if mistake is not None:
            return f"{file} {mistake}"
        held.append(labels)
        if (hidden := _HIDDEN.search(content)) is not None:
            line = 1 + content.count(b"\n", 0, hidden.start())
            hint = f" (-----BEGIN counts at the start of a line only, unlike that in line {line} of {file})"
    certificates, keys = held
    if (missing := _missing(certfile, keyfile, certificates, keys)) is not None:
        return missing + hint
    # The second is how RFC 1421 (4.6.1.1) writes it, for keys called RSA, EC and DSA.
    if b"ENCRYPTED PRIVATE KEY" in keys or b"\nProc-Type: 4,ENCRYPTED" in _content(keyfile or certfile):
        return f"the key in {keyfile or certfile} is encrypted: is the password wrong?"
    return None


def explain_mismatch(certfile: FilePath, keyfile: FilePath | None) -> str:
    """Say what to do where OpenSSL finds that the first certificate is not the key's."""
    return (
        f"the first certificate in {certfile} is not that of the key in {keyfile or certfile}: the server's own "
        "comes first, behind it those of the authorities that have signed it; is that their order, and the key its?"
    )


def explain_authorities(file: FilePath) -> str | None:
    """Say why OpenSSL takes no authorities' certificates from a file; None if that is not seen."""
    labels, mistake = _blocks(_content(file))
    if mistake is not None:
        return f"{file} {mistake}"
    return None if _certificate_in(labels) else f"no certificate in {file}"


def _content(file: FilePath) -> bytes:
    with open(file, "rb") as opened:
        return opened.read()


def _missing(certfile: FilePath, keyfile: FilePath | None, certificates: list[bytes], keys: list[bytes]) -> str | None:
    if _certificate_in(certificates) and not _key_in(keys):
        return f"no private key in {keyfile or certfile}: " + (
            "is it another file?" if keyfile else "give keyfile (--keyfile)"
        )
    if _key_in(certificates) and not _certificate_in(certificates):
        swapped = keyfile is not None and _certificate_in(keys)
        return f"no certificate in {certfile}, but a key: " + (
            f"exchange it with {keyfile}" if swapped else "give it as keyfile (--keyfile), the certificate as certfile"
        )
    return None


def _certificate_in(labels: list[bytes]) -> bool:
    return any(label.endswith(b"CERTIFICATE") for label in labels)


def _key_in(labels: list[bytes]) -> bool:
    return any(label.endswith(b"PRIVATE KEY") for label in labels)


def _blocks(content: bytes) -> tuple[list[bytes], str | None]:
    """Return the labels of what a PEM file holds, and the first mistake in it."""
    if (mistake := _no_pem(content)) is not None:
        return [], mistake
    labels: list[bytes] = []
    inside, began = b"", 0
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        line = line.rstrip(_SPACES)  # noqa: PLW2901
        if b"-----END " in line and b"-----BEGIN " in line:
            return labels, f"has an end and a beginning glued together in line {number}: put a line end between them"
        begins = _BEGIN.match(line)
        if not inside and begins is not None:
            if line != begins[0]:
                return labels, f"has more in line {number} than {begins[0].decode()}: put it elsewhere"
            inside, began = begins[1], number
            labels.append(inside)
        elif inside and line == b"-----END " + inside + b"-----":
            inside = b""
        elif inside and (begins is not None or not _fits(inside, line)):
            return labels, f"is broken in line {number}, between the BEGIN in line {began} and its END"
    if inside:
        return labels, f"ends before the END of what begins in line {began}: it has been cut off"
    if labels and all(label in _OTHERS for label in labels):
        return labels, _OTHERS[labels[0]]
    return labels, None


def _fits(label: bytes, line: bytes) -> bool:
    """Whether a line may be in such a block; an encrypted key may have headers (RFC 1421, 4.4)."""
    return _BASE64.fullmatch(line) is not None or (label.endswith(b"PRIVATE KEY") and not line.startswith(b"-"))


def _no_pem(content: bytes) -> str | None:
    if not content.strip():
        return "is empty"
    if content[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return "is text in UTF-16: save it as UTF-8"
    if b"-----BEGIN " not in content:
        if content[:1] != b"\x30":
            return "is not PEM: it has no line such as -----BEGIN CERTIFICATE-----"
        if _PKCS12.match(content[:20]):
            return "is PKCS #12, not PEM: convert it, `openssl pkcs12 -in FILE -out NEW -nodes`"
        return "is DER, not PEM: convert it, `openssl x509 -inform DER -in FILE -out NEW`"
    if b"\n" not in content.strip():
        return "has no line ends (but perhaps those of old Macs): write it anew with some"
    return None
