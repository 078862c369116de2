"""`python -m asyncserver` with TLS: write_files, several of them, and those of clients."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.kit.certificates import authority, client_context, write_files
from tests.kit.cli import command, internet_address
from tests.kit.programs import Program
from tests.kit.waiting import PATIENCE, wait_until


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


# -- passwords, protocols, ciphers


def ready(program: Program) -> tuple[str, int]:
    """Wait until it serves, with or without workers; returns its address."""
    found = program.expect(r"(?:serving|serve) on tcp://127\.0\.0\.1:(\d+)")
    return "127.0.0.1", int(found[1])


def write_encrypted(folder: Path, password: str) -> None:
    """Write a new chain.pem, and its key.pem with this password."""
    (folder / "chain.pem").unlink(missing_ok=True)
    write_files(folder)
    (folder / "key.pem").rename(folder / "plain.pem")
    command = ["openssl", "pkcs8", "-topk8", "-in", "plain.pem", "-out", "key.pem", "-passout", f"pass:{password}"]
    subprocess.run(command, cwd=folder, check=True)


def served_number(address: tuple[str, int]) -> object:
    """The number of the certificate that the server sends."""
    with (
        socket.create_connection(address, PATIENCE) as plain,
        client_context().wrap_socket(plain, server_hostname="localhost") as client,
    ):
        return (client.getpeercert() or {})["serialNumber"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_password_of_the_key(folder: Path, workers: str) -> None:
    """It is in a file, and read again on SIGHUP, as the key is."""
    write_encrypted(folder, "first")
    (folder / "password.txt").write_text("first\n")
    files = ["--certfile", "chain.pem", "--keyfile", "key.pem", "--keyfile-password-file", "password.txt"]
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0", *files, "--workers", workers) as program:
        address = ready(program)
        before = served_number(address)
        write_encrypted(folder, "second")
        program.tell(signal.SIGHUP)
        program.wait_for("is the password wrong?")
        assert served_number(address) == before
        (folder / "password.txt").write_text("second\r\n")
        program.tell(signal.SIGHUP)
        wait_until(lambda: served_number(address) != before)
        assert program.end() == 0


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"first", 0, ""),
        (b"other\n", 2, "the key in key.pem is encrypted: is the password wrong?"),
        (b"", 2, "--keyfile-password-file password.txt: expected one line, the password of all keys"),
        (b"\n", 2, "at most 1024 bytes; it has a line of 0 bytes"),
        (b"x" * 1025, 2, "at most 1024 bytes; it has a line of 1025 bytes"),
        (b"first\nsecond\n", 2, "at most 1024 bytes; it has 2 lines"),
        (None, 2, "--keyfile-password-file password.txt: No such file or directory"),
    ],
)
def test_check_tries_the_password(folder: Path, content: bytes | None, status: int, message: str) -> None:
    """One sentence says what is wrong with it, and never the password."""
    write_encrypted(folder, "first")
    if content is not None:
        (folder / "password.txt").write_bytes(content)
    files = ["--certfile", "chain.pem", "--keyfile", "key.pem", "--keyfile-password-file", "password.txt"]
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0", *files, "--check") as program:
        assert program.wait() == status
        assert message in program.errors
        assert "other" not in program.errors
        assert "Traceback" not in program.errors


def test_a_missing_password_is_told(folder: Path) -> None:
    """The option is named that gives it."""
    write_encrypted(folder, "first")
    with command(
        folder, "app:handler", "--tcp", ":0", "--certfile", "chain.pem", "--keyfile", "key.pem", "--check"
    ) as program:
        assert program.wait() == 2
        assert "the private key is encrypted: give its password" in program.errors
        assert "--keyfile-password-file" in program.errors


def test_protocols_and_ciphers(folder: Path) -> None:
    """The server prefers in the order of --alpn; a client of TLS 1.2 gets one of --ciphers."""
    write_files(folder)
    files = ["--certfile", "both.pem", "--alpn", "echo/2,echo/1", "--ciphers", "ECDHE+CHACHA20"]
    with command(folder, "app:handler", "--tcp", "127.0.0.1:0", *files) as program:
        address = internet_address(program)
        context = client_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["echo/1", "echo/2"])
        with (
            socket.create_connection(address, PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            assert client.selected_alpn_protocol() == "echo/2"
            assert "CHACHA20" in (client.cipher() or ("",))[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ciphers", "HIGH:TYPO"], "does not know 'TYPO' of ciphers='HIGH:TYPO'"),
        (["--ciphers", "HIGH", "--tls-min", "1.3"], "ciphers='HIGH' has no effect: these are TLS 1.2's"),
        (["--alpn", "h2,"], "alpn takes names of 1 to 255 ASCII characters (RFC 7301, 3.1), such as 'h2'; got ''"),
        (["--alpn", "x" * 256], "got one of 256 characters"),
    ],
)
def test_wrong_protocols_and_ciphers(folder: Path, options: list[str], message: str) -> None:
    """One sentence says what was expected."""
    write_files(folder)
    with command(folder, "app:handler", "--tcp", ":0", "--certfile", "both.pem", *options, "--check") as program:
        assert program.wait() == 2
        assert message in program.errors
