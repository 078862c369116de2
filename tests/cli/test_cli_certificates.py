"""`python -m asyncserver` with TLS: write_files, several of them, and those of clients."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from tests.kit.certificates import authority, client_context, write_files
from tests.kit.cli import command, internet_address
from tests.kit.waiting import PATIENCE


def ask_secretly(address: tuple[str, int], name: str = "localhost") -> str | None:
    """Be answered by a server whose certificate has the name; returns the version of TLS."""
    with (
        socket.create_connection(address, PATIENCE) as plain,
        client_context().wrap_socket(plain, server_hostname=name) as client,  # which checks the name
    ):
        client.sendall(b"secret")
        assert client.recv(9) == b"terces"
        return client.version()


# -- one certificate


@pytest.mark.parametrize("files", [["--certfile", "chain.pem", "--keyfile", "key.pem"], ["--certfile", "both.pem"]])
def test_tls(folder: Path, files: list[str]) -> None:
    """With a certificate --tcp speaks TLS."""
    write_files(folder)
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0", *files) as program:
        ask_secretly(internet_address(program))


def test_client_certificates(folder: Path) -> None:
    """With --client-ca who has no certificate is refused, who has one is served."""
    write_files(folder)
    files = ["--certfile", "both.pem", "--client-ca", "ca.pem"]
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0", *files) as program:
        address = internet_address(program)
        without = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        with_one = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        authority().issue_cert("client").configure_cert(with_one)
        answers = []
        for context in (without, with_one):
            with (
                socket.create_connection(address, PATIENCE) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as client,
            ):
                try:
                    client.sendall(b"secret")
                    answers.append(client.recv(9))
                except OSError:
                    answers.append(b"")
        assert answers == [b"", b"terces"]


# -- several certificates


def test_several_certificates(folder: Path) -> None:
    """--certfile and --keyfile in pairs, one minimum version for all."""
    write_files(folder)
    authority().issue_cert("other.example").private_key_and_cert_chain_pem.write_to_path(str(folder / "other.pem"))
    files = ["--certfile", "chain.pem", "--keyfile", "key.pem", "--certfile", "other.pem", "--keyfile", "other.pem"]
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0", *files, "--tls-min", "1.3") as program:
        address = internet_address(program)
        for name in ("localhost", "other.example"):
            assert ask_secretly(address, name) == "TLSv1.3"


def test_optional_client_certificates(folder: Path) -> None:
    """--client-cert optional lets in who has none."""
    write_files(folder)
    files = ["--certfile", "both.pem", "--client-ca", "ca.pem", "--client-cert", "optional"]
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0", *files) as program:
        ask_secretly(internet_address(program))
