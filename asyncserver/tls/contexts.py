"""tls_context: TLS for servers with today's defaults, which can reload its files."""

from __future__ import annotations

import contextlib
import os
import ssl
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from anyio import TypedAttributeSet, typed_attribute

from . import pem
from .certificate import Certificate, read_certificate, sent_certificate
from .offers import Offer, offers
from .settings import check_ciphers, check_password, checked_groups, checked_protocols

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .pem import FilePath

__all__ = ["KeyExchangeAttribute", "SNIAttribute", "TLSContext", "tls_context"]

_Password: TypeAlias = "str | bytes | Callable[[], str | bytes]"  # noqa: S105 - a type


class SNIAttribute(TypedAttributeSet):
    """For `stream.extra()` under a context of `tls_context()`, besides anyio's TLSAttribute.

    Example::

        name = stream.extra(asyncserver.SNIAttribute.server_name, None)
    """

    #: the server name that the client asked for, in lower case (RFC 6066), or None
    server_name: str | None = typed_attribute()


class KeyExchangeAttribute(TypedAttributeSet):
    """For `stream.extra()` under TLS from Python 3.15 on, besides anyio's TLSAttribute.

    Example::

        group = stream.extra(asyncserver.KeyExchangeAttribute.group, None)
    """

    #: the key exchange group in use as OpenSSL calls it, such as "X25519MLKEM768", or None
    group: str | None = typed_attribute()


class _Socket(ssl.SSLSocket):
    server_name: str | None = None


class _Object(ssl.SSLObject):  # what the loops' own transports use
    server_name: str | None = None


class TLSContext(ssl.SSLContext):
    """An `ssl.SSLContext` that remembers what it was made from.

    Its sockets (`ssl.SSLSocket`, `ssl.SSLObject`) have an attribute `server_name`, the
    name that the client asked for.

    Example::

        context = asyncserver.tls_context("chain.pem", "key.pem")
        print(*context.certificates)

    Attributes:
        certificates: what clients get, each with its file: names, key, when it expires; None for
            one that no client can have with OpenSSL's defaults (an unusual curve).
    """

    sslsocket_class: type[ssl.SSLSocket] = _Socket
    sslobject_class: type[ssl.SSLObject] = _Object
    _arguments: dict[str, Any]
    certificates: tuple[tuple[str, Certificate | None], ...]

    def reload(self) -> TLSContext:
        """Make another from the same files, as they are now. Raises as `tls_context()`."""
        return tls_context(**self._arguments)


def tls_context(
    certfile: FilePath,
    keyfile: FilePath | None = None,
    *,
    more_certificates: Sequence[tuple[FilePath, FilePath | None]] = (),
    password: str | bytes | Callable[[], str | bytes] | None = None,
    client_ca: FilePath | None = None,
    client_cert: Literal["required", "optional"] = "required",
    alpn: Sequence[str] = (),
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    ciphers: str | None = None,
    groups: Sequence[str] | None = None,
) -> TLSContext:
    """Make a context for `serve(..., ssl=...)`. `Server.reload_tls()` reads its files again.

    Example::

        context = asyncserver.tls_context(
            "chain.pem", "key.pem", more_certificates=[("other.pem", "other.key")], alpn=["h2"]
        )
        asyncserver.run(asyncserver.serve(handler, "127.0.0.1", 8443, ssl=context))

    Args:
        certfile: the certificate chain, PEM, the server's own first; it may hold the key as well.
        keyfile: the private key, PEM.
        more_certificates: further pairs of such files. A client gets the first certificate that is
            for the name it asks for (SNI), else one for a wildcard (`*.example.org`) that covers
            it, else that of `certfile`. Of several for one name, with keys of different kinds (RSA,
            ECDSA), it gets the one that it understands.
        password: that of the keys, or a function that returns it, called again for each reload.
        client_ca: certificates of the authorities, PEM, one of which must have signed the client's
            certificate (mutual TLS); None asks clients for none.
        client_cert: with `client_ca`, "optional" lets in clients without a certificate too; a
            handler finds out by `stream.extra(TLSAttribute.peer_certificate)`.
        alpn: application protocols to offer, the preferred first (RFC 7301). A client that knows
            none of them is served without; a handler finds the one agreed on as
            `stream.extra(TLSAttribute.alpn_protocol)`.
        minimum_version: TLS 1.2 by default (RFC 8996 retired what came before).
        ciphers: those of TLS 1.2, a string as openssl-ciphers(1) has it, such as
            "ECDHE+AESGCM:ECDHE+CHACHA20"; None leaves them to Python. Those of TLS 1.3 stay.
        groups: key exchange groups, the preferred first: ["X25519MLKEM768", "X25519"]; None leaves
            them to OpenSSL. Needs Python 3.15. A handler finds the one in use as
            `stream.extra(KeyExchangeAttribute.group)`.

    Raises:
        OSError: a file cannot be read; as ssl.SSLError it does not hold what it should.
            The message names the file.
        ValueError: one of `more_certificates` would never be sent, or `client_cert` is given
            without `client_ca`; a key is encrypted and there is no password; a name in `alpn` is
            too long; OpenSSL does not know one of `ciphers` or `groups`, or Python is too old for
            groups. What a function for `password` raises is raised.
    """
    if client_cert not in {"required", "optional"}:
        raise ValueError(f'client_cert must be "required" or "optional", got {client_cert!r}')
    if client_cert == "optional" and client_ca is None:
        raise ValueError('client_cert="optional" has no effect without client_ca: no client is asked for a certificate')
    check_password(password)
    common: dict[str, Any] = {
        "password": password,
        "client_ca": client_ca,
        "client_cert": client_cert,
        "alpn": checked_protocols(alpn),
        "minimum_version": minimum_version,
        "ciphers": ciphers,
        "groups": None if groups is None else checked_groups(groups),
    }
    if ciphers is not None:
        check_ciphers(ciphers, minimum_version)
    others: tuple[Any, ...] = tuple(more_certificates)
    for pair in others:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(
                f"more_certificates expects pairs, [(certfile, keyfile or None), ...]; got {pair!r} for one"
            )
    pairs: list[tuple[FilePath, FilePath | None]] = [(certfile, keyfile), *others]
    made = [_make([pair], **common) for pair in pairs]
    certificates = [found for one in made for found in one.certificates]
    default, by_name = offers(certificates)
    contexts: dict[Offer, TLSContext] = {(number,): one for number, one in enumerate(made)}
    for offer in {default, *by_name.values()} - {*contexts}:
        contexts[offer] = _make([pairs[number] for number in offer], **common)
    context = contexts[default]
    context.certificates = tuple(certificates)
    context._arguments = {"certfile": certfile, "keyfile": keyfile, "more_certificates": others, **common}
    context.sni_callback = _chooser({name: contexts[offer] for name, offer in by_name.items()})
    return context


def _make(
    pairs: Sequence[tuple[FilePath, FilePath | None]],
    *,
    password: _Password | None,
    client_ca: FilePath | None,
    client_cert: str,
    alpn: Sequence[str],
    minimum_version: ssl.TLSVersion,
    ciphers: str | None,
    groups: Sequence[str] | None,
) -> TLSContext:
    """Make a context with these certificates, no two of them with keys of one kind."""
    context = TLSContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = minimum_version
    # A renegotiation costs the server more than the client; TLS 1.3 has none.
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load(context, *pairs[0], password)
    # Before other settings can change handshakes.
    context.certificates = ((str(pairs[0][0]), _sent(context)),)
    for pair in pairs[1:]:
        _load(context, *pair, password)
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if groups is not None:
        newer: Any = context  # Python 3.15's, see checked_groups()
        newer.set_groups(":".join(groups))
    if client_ca is not None:
        with _explained("certificates", client_ca):
            try:
                context.load_verify_locations(client_ca)
            except ssl.SSLError as exc:
                raise _explanation(exc, pem.explain_authorities(client_ca)) from exc
        context.verify_mode = ssl.CERT_REQUIRED if client_cert == "required" else ssl.CERT_OPTIONAL
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def _load(context: TLSContext, certfile: FilePath, keyfile: FilePath | None, password: _Password | None) -> None:
    with _explained("certificate and key", certfile, keyfile):
        try:
            # Without a password OpenSSL would ask for it on the terminal, and hang the server.
            context.load_cert_chain(certfile, keyfile, password if password is not None else _no_password)
        except ssl.SSLError as exc:
            mismatch = exc.reason in {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"}
            explain = pem.explain_mismatch if mismatch else pem.explain
            raise _explanation(exc, explain(certfile, keyfile)) from exc


def _explanation(error: ssl.SSLError, sentence: str | None) -> ssl.SSLError:
    return error if sentence is None else ssl.SSLError(error.errno, sentence)


def _sent(context: TLSContext) -> Certificate | None:
    """Return what clients get; None if OpenSSL's defaults let them have nothing (unusual curve)."""
    try:
        return read_certificate(sent_certificate(context))
    except ssl.SSLError:
        return None


@contextlib.contextmanager
def _explained(what: str, *files: FilePath | None) -> Iterator[None]:
    """Name the files in an error; OpenSSL's own does not."""
    names = [str(name) for name in files if name is not None]
    for name in names:
        try:
            with open(name, "rb"):
                pass
        except FileNotFoundError as exc:
            where = "" if os.path.isabs(name) else f", looked for in {os.getcwd()}"
            raise FileNotFoundError(exc.errno, f"{exc.strerror}{where}", name) from None
    try:
        yield
    except ssl.SSLError as exc:
        raise ssl.SSLError(exc.errno, f"no usable {what} in {', '.join(names)}: {exc.strerror or exc}") from exc


def _chooser(choices: dict[str, TLSContext]) -> Callable[[Any, str | None, ssl.SSLContext], None]:
    """Let the name that a client asks for choose the context."""

    def choose(sock: _Socket | _Object, name: str | None, context: ssl.SSLContext) -> None:
        if name is None:
            return
        sock.server_name = name = name.lower()
        chosen = choices[name] if name in choices else choices.get("*." + name.partition(".")[2])
        if chosen is not None and chosen is not context:
            sock.context = chosen

    return choose


def _no_password() -> str:
    raise ValueError(
        "the private key is encrypted: give its password, tls_context(password=...) or "
        "--keyfile-password-file, or a key without one"
    )
