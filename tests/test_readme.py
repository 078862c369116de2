"""The README's programs, run as a reader would: each block saved as a file and started."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tests.kit.programs import ROOT, wait_until_asleep
from tests.kit.sockets import free_port

PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
SERVERS = [program for program in PROGRAMS if "8080" in program]


def ask_tcp(port: int, folder: Path, question: bytes) -> bytes:
    del folder
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(question)
        return client.recv(99)


def ask_udp(port: int, folder: Path, question: bytes) -> bytes:
    del folder
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(question, ("127.0.0.1", port))
        return client.recv(99)


def ask_unix_and_tls(port: int, folder: Path, question: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "upper.sock"))
        client.sendall(question)
        answer = client.recv(99)
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(question)
        assert client.recv(99) == answer
    return answer


def ask_chat(port: int, folder: Path, question: bytes) -> bytes:
    """Let one member say it; what another hears, who was there before."""
    del folder
    there = ("127.0.0.1", port)
    with socket.create_connection(there, timeout=10) as hears, socket.create_connection(there, timeout=10) as says:
        says.sendall(question)
        return hears.recv(99)


def client_for(program: str) -> tuple[Callable[[int, Path, bytes], bytes], bytes]:
    if "sendto(" in program:
        return ask_udp, b"1 devices"
    if "serve_datagrams" in program:
        return ask_udp, b"HELLO\n"
    if "tls_context" in program:
        return ask_unix_and_tls, b"HELLO\n"
    if "post(" in program:
        return ask_chat, b"hello\n"
    return ask_tcp, b"5\n" if "receive_until" in program else b"HELLO\n"


def certificates(folder: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(folder / "chain.pem"), append=True)
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))


def wait_until_served(process: subprocess.Popen[bytes], port: int, kind: socket.SocketKind) -> None:
    """Wait until the kernel has a socket there: a program has no other way to say that it serves."""
    name, state = ("tcp", "0A") if kind == socket.SOCK_STREAM else ("udp", "07")  # listening, bound: proc_net_tcp(5)
    there = re.compile(rf":{port:04X} \S+ {state} ")
    while process.poll() is None:
        if there.search(Path(f"/proc/net/{name}").read_text()):
            return
    pytest.fail(f"the program ended with status {process.returncode}")


@pytest.mark.parametrize("program", SERVERS, ids=lambda text: text.splitlines()[3][:40])
def test_program_of_the_readme_serves_and_ends_politely(program: str, tmp_path: Path) -> None:
    """Each server in the README answers, and Ctrl-C ends it with status 0."""
    port = free_port()
    certificates(tmp_path)
    (tmp_path / "program.py").write_text(program.replace("8080", str(port)))
    environment = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    process = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, env=environment)
    ask, expected = client_for(program)
    try:
        kind = socket.SOCK_DGRAM if ask is ask_udp else socket.SOCK_STREAM
        wait_until_served(process, port, kind)
        assert ask(port, tmp_path, b"hello\n") == expected
        if "asyncserver.run" not in program:  # whose loop wakes up
            wait_until_asleep(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_every_program_is_tried() -> None:
    """No block of Python in the README is left out."""
    assert len(SERVERS) == len(PROGRAMS) >= 6
